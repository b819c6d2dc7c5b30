"""The domain: the state machine, policies, waits and records."""

from __future__ import annotations

import re
from dataclasses import fields
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from archibald_pgq.domain.backoff import RETRY_LONGEST, Backoff, requeue_delay
from archibald_pgq.domain.job import JobRecord
from archibald_pgq.domain.operations import CATALOGUE, KIND_PATTERN, JobClass, Policy
from archibald_pgq.domain.outcome import Outcome
from archibald_pgq.domain.states import LIVE, TERMINAL, TRANSITIONS, Event, State, after


@given(st.lists(st.sampled_from(Event)))
def test_any_sequence_of_events_follows_the_table_or_is_refused(events: list[Event]) -> None:
    state = State.QUEUED
    for event in events:
        if (state, event) in TRANSITIONS:
            state = after(state, event)
            assert state in State
        else:
            with pytest.raises(ValueError, match=f"a job that is {state} cannot {event}"):
                after(state, event)


def test_terminal_states_have_no_exits_and_every_other_state_has_one() -> None:
    assert {state for state, _ in TRANSITIONS} == LIVE
    assert not TERMINAL & LIVE
    assert set(State) == TERMINAL | LIVE


def test_every_state_can_be_reached_and_every_event_can_happen() -> None:
    assert {State.QUEUED, *TRANSITIONS.values()} == set(State)
    assert {event for _, event in TRANSITIONS} == set(Event)


@given(st.integers(1, 2**31), st.floats(0, RETRY_LONGEST))
def test_a_retry_waits_never_less_than_before_and_never_over_an_hour(attempt: int, seconds: float) -> None:
    assert Backoff.fixed(seconds).delay(attempt) == seconds
    backoff = Backoff.exponential(seconds)
    assert seconds == backoff.delay(1) <= backoff.delay(attempt) <= backoff.delay(attempt + 1) <= RETRY_LONGEST


def test_an_exponential_backoff_doubles() -> None:
    assert [Backoff.exponential(30).delay(n) for n in range(1, 9)] == [30, 60, 120, 240, 480, 960, 1920, 3600]


def test_a_requeue_waits_2_4_8_16_30_30_seconds() -> None:
    assert [requeue_delay(n) for n in range(6)] == [2, 4, 8, 16, 30, 30]


@pytest.mark.parametrize("seconds", [-1, 3600.1, float("nan"), float("inf")])
def test_a_backoff_out_of_range_is_refused(seconds: float) -> None:
    with pytest.raises(ValueError, match="0 to 3600 seconds"):
        Backoff.fixed(seconds)


def test_a_backoff_of_unknown_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="fixed or exponential"):
        Backoff("linear", 1)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given_", "sentence"),
    [
        ({"priority": -1}, "priority is a whole number from 0 to 32767, not -1"),
        ({"priority": 32768}, "priority is a whole number from 0 to 32767, not 32768"),
        ({"priority": 1.5}, "priority is a whole number from 0 to 32767, not 1.5"),
        ({"priority": True}, "priority is a whole number from 0 to 32767, not True"),
        ({"timeout": 0}, "timeout is above 0 and at most 86400 seconds, not 0"),
        ({"timeout": 86401}, "timeout is above 0 and at most 86400 seconds, not 86401"),
        ({"timeout": float("nan")}, "timeout is above 0 and at most 86400 seconds, not nan"),
        ({"timeout": "60"}, "timeout is above 0 and at most 86400 seconds, not '60'"),
        ({"max_attempts": 0}, "max_attempts is a whole number from 1 to 100, not 0"),
        ({"max_attempts": 101}, "max_attempts is a whole number from 1 to 100, not 101"),
        ({"max_attempts": "3"}, "max_attempts is a whole number from 1 to 100, not '3'"),
        ({"idempotent": 1}, "idempotent is True or False, not 1"),
        ({"backoff": 5}, "backoff is Backoff.fixed(…) or Backoff.exponential(…), not 5"),
    ],
)
def test_a_policy_out_of_range_is_refused(given_: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        Policy(**given_)


def test_the_limits_of_a_policy_are_allowed() -> None:
    Policy(priority=0, timeout=0.001, max_attempts=1)
    Policy(priority=32767, timeout=86400, max_attempts=100, backoff=Backoff.fixed(0))


def test_only_a_write_that_is_not_idempotent_may_not_be_repeated() -> None:
    assert not Policy().repeatable
    assert Policy(idempotent=True).repeatable
    assert Policy(JobClass.READ).repeatable
    assert Policy(JobClass.SYNC).repeatable


def test_the_catalogue_has_the_15_operations_in_the_order_of_their_priorities() -> None:
    assert [policy.priority for policy in CATALOGUE.values()] == list(range(1, 16))
    assert all(KIND_PATTERN.fullmatch(kind) for kind in CATALOGUE)
    assert [policy.job_class for policy in CATALOGUE.values()] == ["write"] * 6 + ["read"] * 3 + ["sync"] * 6
    assert [policy.timeout for policy in CATALOGUE.values()] == [120] * 5 + [60] * 3 + [180] + [300] * 6
    assert [policy.max_attempts for policy in CATALOGUE.values()] == [1] * 6 + [2] * 2 + [1] + [3] * 6
    assert CATALOGUE["download-ddt-pdf"].backoff == CATALOGUE["download-invoice-pdf"].backoff == Backoff.fixed(5)
    assert {policy.backoff for kind, policy in CATALOGUE.items() if policy.job_class == "sync"} == {
        Backoff.exponential(30)
    }


def test_each_outcome_says_only_what_belongs_to_it() -> None:
    assert Outcome.completed("1") == Outcome(Event.COMPLETE, result="1")
    assert Outcome.completed(None, "too large") == Outcome(Event.COMPLETE, error="too large")
    assert Outcome.failed("e") == Outcome(Event.FAIL, error="e")
    assert Outcome.retry("e", 5) == Outcome(Event.RETRY, error="e", delay=5)
    assert Outcome.gone_back() == Outcome(Event.GO_BACK)
    assert Outcome.gone_back("shutdown") == Outcome(Event.GO_BACK, error="shutdown")
    assert Outcome.needs_review("e") == Outcome(Event.REVIEW, error="e")
    assert Outcome.cancelled("e") == Outcome(Event.CANCEL, error="e")


@pytest.mark.parametrize("state", State)
def test_a_record_is_finished_in_a_terminal_state(state: State) -> None:
    values: dict[str, Any] = {field.name: None for field in fields(JobRecord)} | {"created_at": datetime.now(UTC)}
    assert JobRecord(**{**values, "state": state}).finished is (state in TERMINAL)
