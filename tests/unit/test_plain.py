"""A set whose jobs are looked at all at once is what it is when each of them is looked at."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from archibald_pgq.domain.new_job import NewJob
from archibald_pgq.domain.payload import MAX_JSON_BYTES, MAX_USER_ID, check_new_job
from archibald_pgq.domain.plain import plain_payloads
from archibald_pgq.errors import InvalidJobError

ANYTHING: Any = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["\x00", "\ud800", "\u00e9", float("nan"), 10**5000, (), [], {}, {"a": {1: 2}}, b"x"])
)
JOBS = st.lists(
    st.builds(
        NewJob,
        st.sampled_from(["submit-order", "read"]) | ANYTHING,
        user_id=st.text("abc", min_size=1, max_size=5) | ANYTHING,
        data=st.dictionaries(st.text(max_size=5) | st.integers(), ANYTHING, max_size=3) | ANYTHING,
        idempotency_key=st.none() | ANYTHING,
        delay=st.just(0) | ANYTHING,
    ),
    max_size=3,
)


def one_by_one(jobs: list[NewJob]) -> list[str]:
    return [check_new_job(job.kind, job.user_id, job.data, job.idempotency_key, job.delay) for job in jobs]


def plain(**other: Any) -> NewJob:
    return NewJob("submit-order", **{"user_id": "alice", "data": {"order": 7, "express": True, "note": None}, **other})


@settings(max_examples=300)
@given(JOBS)
def test_what_is_plain_would_pass_one_by_one_with_the_same_payloads(jobs: list[NewJob]) -> None:
    text = plain_payloads(jobs)
    if text is not None:
        assert text == f"[{', '.join(one_by_one(jobs))}]"
        assert json.loads(text) == [job.data for job in jobs]


def test_most_jobs_are_plain() -> None:
    jobs = [plain(), plain(delay=0.0), plain(data={}), plain(data={"text": "Zo\u00eb"})]
    assert plain_payloads(jobs) == f"[{', '.join(one_by_one(jobs))}]"


@pytest.mark.parametrize(
    "other",
    [
        {"idempotency_key": "k"},
        {"delay": 1},
        {"delay": True},
        {"delay": float("nan")},
        {"delay": []},
        {"user_id": ""},
        {"user_id": "x" * (MAX_USER_ID + 1)},
        {"user_id": "a\x00"},
        {"user_id": 7},
        {"data": []},
        {"data": {1: 2}},
        {"data": {"lines": []}},
        {"data": {"number": float("inf")}},
        {"data": {"text": "\x00"}},
        {"data": {"text": "\ud800"}},
        {"data": {"text": "x" * MAX_JSON_BYTES}},
    ],
    ids=str,
)
def test_one_that_is_not_has_each_looked_at(other: dict[str, Any]) -> None:
    assert plain_payloads([plain(), plain(**other), plain()]) is None


@pytest.mark.parametrize("kind", ["No Kind", 7, []], ids=str)
def test_what_no_kind_can_be_has_each_looked_at(kind: Any) -> None:
    assert plain_payloads([NewJob(kind, user_id="alice")]) is None
    with pytest.raises(InvalidJobError, match="kind must be"):
        one_by_one([NewJob(kind, user_id="alice")])
