"""The verdict of the demo."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from archibald_pgq.demo.summary import Summary, percentile, summarize
from archibald_pgq.demo.watch import JobRow, Snapshot

DUE = datetime(2026, 1, 1, tzinfo=UTC)
QUIET = {"simultaneous": 0, "most_per_login": 1, "most_logins_at_once": 10, "requests": 9, "orders_twice": 0}


def row(number: int, state: str = "completed", *, waited: float | None = 1.0, **fields: Any) -> JobRow:
    values: dict[str, Any] = {
        "id": number,
        "user_id": "alice",
        "kind": "submit-order",
        "job_class": "write",
        "state": state,
        "requeue_count": 0,
        "preemptions": 0,
        "preempted_by": None,
        "progress": None,
        "progress_label": None,
        "error": None,
        "due_in": 0.0,
        "waiting_since": DUE,
        "started_at": None if waited is None else DUE + timedelta(seconds=waited),
    }
    return JobRow(**{**values, **fields})


def summary(rows: list[JobRow], erp: dict[str, int] | None = None) -> Summary:
    return summarize(rows, seconds=70.0, entries=5, merged=2, most_running=10, preemptions=1, erp=erp or QUIET)


def test_a_day_whose_jobs_all_ended_has_no_problem_even_if_some_failed() -> None:
    assert summary([row(1), row(2, "failed", error="no such order"), row(3, "cancelled")]).problems == []


@pytest.mark.parametrize("state", ["queued", "running", "needs_review"])
def test_an_unfinished_job_is_a_problem(state: str) -> None:
    assert summary([row(1), row(2, state)]).problems == ["1 jobs are unfinished"]


def test_a_simultaneous_request_of_one_login_is_a_problem() -> None:
    (problem,) = summary([row(1)], {**QUIET, "simultaneous": 2}).problems

    assert "2 simultaneous" in problem


def test_an_order_that_is_there_twice_is_a_problem() -> None:
    assert summary([row(1)], {**QUIET, "orders_twice": 1}).problems == ["the ERP has 1 orders twice"]


def test_waits_are_measured_from_due_to_started_and_by_class() -> None:
    rows = [row(number, waited=float(number)) for number in range(1, 101)]
    rows += [row(200, job_class="sync", waited=7.0), row(201, job_class="sync", state="queued", waited=None)]

    waits = summary(rows).waits

    assert (waits["write"].jobs, waits["write"].p50, waits["write"].p95) == (100, 50.0, 95.0)
    assert (waits["sync"].jobs, waits["sync"].p50) == (1, 7.0)
    assert waits["read"].jobs == 0


@pytest.mark.parametrize(
    ("values", "percent", "expected"), [([], 50, 0.0), ([3.0], 95, 3.0), ([1.0, 2.0], 50, 1.0), ([2.0, 1.0], 95, 2.0)]
)
def test_a_percentile_is_one_of_the_values(values: list[float], percent: float, expected: float) -> None:
    assert percentile(values, percent) == expected


def test_requeues_and_failures_are_listed() -> None:
    told = summary([row(1, requeue_count=3), row(2, "failed", error="the ERP refused it")])

    assert (told.requeues, told.most_requeued) == (3, 3)
    assert told.failures == ["alice: submit-order: the ERP refused it"]
    assert told.as_json()["waits"]["write"]["jobs"] == 2


def test_a_snapshot_is_at_rest_when_nothing_will_move_by_itself() -> None:
    assert Snapshot(1.0, 2, 2, (row(1), row(2, "needs_review")), ()).at_rest
    assert not Snapshot(1.0, 2, 2, (row(1), row(2, "queued")), ()).at_rest
