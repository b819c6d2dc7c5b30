"""What is said about a job, without a database: the words, and which of several reasons comes first."""

from __future__ import annotations

from dataclasses import fields
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from archibald_pgq.domain.explanation import Reason, explain
from archibald_pgq.domain.facts import Facts
from archibald_pgq.domain.operations import JobClass
from archibald_pgq.domain.states import State

NOW = datetime(2026, 3, 2, 14, 0, 0, tzinfo=UTC)


def after(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def facts(**changes: Any) -> Facts:
    """A write that a worker is about to take."""
    nothing: dict[str, Any] = dict.fromkeys(field.name for field in fields(Facts))
    known = {
        "now": NOW,
        "id": 12,
        "user_id": "alice",
        "kind": "submit-order",
        "job_class": JobClass.WRITE,
        "state": State.QUEUED,
        "due": True,
        "run_after": after(-9),
        "attempt": 0,
        "max_attempts": 3,
        "losses": 0,
        "runs_alone": False,
        "agent_known": True,
        "looked_at": True,
        "paused": False,
        "ready_at": after(-9),
        "first_id": 12,
        "first_kind": "submit-order",
        "jobs_before": 0,
        "agents_before": 0,
        "live_workers": 2,
        "able_workers": 2,
        "consumers": 20,
        "sync_consumers": 16,
        "free_workers": 1,
        "free_for_syncs": 1,
    }
    return Facts(**{**nothing, **known, **changes})


WORKER = {"worker_id": 3, "host": "erp-1", "pid": 77}
RUNS: dict[str, Any] = {"running_id": 7, "running_kind": "sync-orders", "running_since": after(-60), **WORKER}
BEFORE: dict[str, Any] = {"first_id": 8, "first_kind": "edit-order", "jobs_before": 2}
REFUSED: dict[str, Any] = {
    "refused_id": 12,
    "refused_kind": "submit-order",
    "refused_until": after(8),
    "requeue_count": 3,
}
HOLDER: dict[str, Any] = {"holder_pid": 99, "holder_application": "psql"}

BREAKER: dict[str, Any] = {
    "breaker_failures": 3,
    "breaker_reason": "ERP error 17",
    "breaker_until": after(600),
}
PAUSED: dict[str, Any] = {"paused": True, "paused_until": after(3600)}
SYNC = JobClass.SYNC
ON = "on worker 3 (erp-1, process 77)"
SINCE = f"since 2026-03-02 13:59:00 (60 s ago) {ON}"
GOES = "it goes on when the lock is given back"
FREE = "nobody holds it now, so that a worker takes it within seconds"
BUSY = "waits: all consumers (20) of the live workers that handle its kind are busy"

SENTENCES: list[tuple[dict[str, Any], Reason, str]] = [
    ({}, Reason.NEXT, "waits: a worker takes it within a second"),
    ({"agents_before": 4}, Reason.NEXT, "waits: a worker takes it within a second; 4 other agents go first"),
    (
        {"state": State.COMPLETED, "finished_at": after(-7200)},
        Reason.FINISHED,
        "finished at 2026-03-02 12:00:00 (2 h ago) as completed",
    ),
    (
        {"state": State.FAILED, "finished_at": after(-60), "error": "no stock", "retried_as": 15},
        Reason.FINISHED,
        "finished at 2026-03-02 13:59:00 (60 s ago) as failed: no stock; it was retried as job 15",
    ),
    (
        {"state": State.NEEDS_REVIEW},
        Reason.NEEDS_REVIEW,
        "needs review, because it may or may not have happened; if it has, discard it, if it has not, retry it",
    ),
    (
        {"state": State.RUNNING, **RUNS, "silent_since": after(-7), "cancel_requested_at": after(-3)},
        Reason.RUNNING,
        f"runs {SINCE}; it was asked to stop 3 s ago; this worker was last heard of 7 s ago, and another one takes its agents over",
    ),
    ({"state": State.RUNNING, **WORKER}, Reason.RUNNING, f"runs {ON}"),
    (
        {"due": False, "run_after": after(600), "wait_reason": "delay"},
        Reason.DELAYED,
        "is not due until 2026-03-02 14:10:00 (in 10 min), because it was enqueued with a delay",
    ),
    (
        {"due": False, "run_after": after(600), "wait_reason": "delay", "job_class": SYNC, **BREAKER},
        Reason.LEFT_ALONE,
        "is left alone until 2026-03-02 14:10:00 (in 10 min), because submit-order failed 3 times for alice, the last time with: "
        "ERP error 17; to let it go on now, resume the agent",
    ),
    (
        {"due": False, "run_after": after(601), "wait_reason": "delay", "job_class": SYNC, **BREAKER},
        Reason.DELAYED,
        "is not due until 2026-03-02 14:10:01 (in 10 min), because it was enqueued with a delay",
    ),
    (
        {"due": False, "run_after": after(5), "wait_reason": "retry", "attempt": 1, "error": "timeout"},
        Reason.RETRY,
        "is not due until 2026-03-02 14:00:05 (in 5 s), after attempt 1 of 3 failed: timeout",
    ),
    ({"due": False}, Reason.NOT_SEEN, "waits: no worker has looked at it yet; one looks within a second"),
    ({"looked_at": False}, Reason.NOT_SEEN, "waits: no worker has looked at it yet; one looks within a second"),
    (PAUSED, Reason.PAUSED, "waits: its agent is paused until 2026-03-02 15:00:00 (in 60 min)"),
    (
        {"paused": True, "paused_reason": "holiday", **RUNS, **BEFORE},
        Reason.PAUSED,
        "waits: its agent is paused until somebody resumes it because of: holiday; job 7 (sync-orders) still runs; then 2 other jobs of "
        "its agent go first, next job 8 (edit-order)",
    ),
    (RUNS, Reason.AGENT_BUSY, f"waits: its agent runs job 7 (sync-orders) {SINCE}"),
    (
        {**RUNS, "preempt_requested_at": after(-29)},
        Reason.MAKING_ROOM,
        f"waits: its agent runs job 7 (sync-orders) {SINCE}, which was asked to make room 29 s ago",
    ),
    (
        {**RUNS, **REFUSED, "preempt_requested_at": after(-30)},
        Reason.NOT_MAKING_ROOM,
        f"waits: its agent runs job 7 (sync-orders) {SINCE}, which does not stop although it was asked to make room 30 s ago; it was "
        "requeued until 2026-03-02 14:00:08 (in 8 s), for the 3rd time",
    ),
    (
        {**RUNS, "silent_since": after(-9), "live_workers": 0, **BEFORE, "jobs_before": 1},
        Reason.AGENT_BUSY,
        f"waits: its agent runs job 7 (sync-orders) {SINCE}; this worker was last heard of 9 s ago, and no worker is alive that could "
        "take over; then 1 other job of its agent goes first, next job 8 (edit-order)",
    ),
    ({"live_workers": 0}, Reason.NO_WORKER, "waits: no worker is alive; start one with `archibald-pgq run`"),
    (
        {"able_workers": 0},
        Reason.NO_HANDLER,
        "waits: no live worker (2 alive) handles its kind; the next one that is free fails it for that",
    ),
    (
        {**HOLDER, "holder_since": after(-200000), "holder_address": "10.0.0.3", "retry_at": after(8), **REFUSED},
        Reason.LOCKED,
        "waits: its agent's lock is held by backend pid 99 of application psql (10.0.0.3, connected since 2026-02-28 06:26:40 (2 days "
        f"ago)); it was requeued until 2026-03-02 14:00:08 (in 8 s), for the 3rd time; {GOES}",
    ),
    (
        {**HOLDER, "holder_since": after(-5)},
        Reason.LOCKED,
        "waits: its agent's lock is held by backend pid 99 of application psql (local, connected since 2026-03-02 13:59:55 (5 s ago)); "
        f"{GOES}",
    ),
    (
        {
            "holder_pid": 99,
            "holder_application": "",
        },  # what is told to somebody who may not see other people's sessions
        Reason.LOCKED,
        f"waits: its agent's lock is held by backend pid 99 of application without a name; {GOES}",
    ),
    (
        {"retry_at": after(8), **REFUSED, "refused_id": 8, **BEFORE},
        Reason.REQUEUED,
        "waits: its agent's lock was held by somebody else; job 8 (submit-order) was requeued until 2026-03-02 14:00:08 (in 8 s), for "
        f"the 3rd time; {FREE}; then 2 other jobs of its agent go first, next job 8 (edit-order)",
    ),
    (
        {"agent_known": False, "looked_at": False},
        Reason.NEW_AGENT,
        "waits: its agent is not known yet, because no worker has looked since it was enqueued; one looks within a second",
    ),
    (
        BEFORE,
        Reason.BEHIND,
        "waits behind 2 other jobs of its agent; job 8 (edit-order) goes first; explain that one",
    ),
    (
        {**BEFORE, "jobs_before": 1001},
        Reason.BEHIND,
        "waits behind over 1000 other jobs of its agent; job 8 (edit-order) goes first; explain that one",
    ),
    (
        {"ready_at": after(1)},
        Reason.SET_ASIDE,
        "waits: its agent is set aside until 2026-03-02 14:00:01 (in 1 s), because its job was held by another session, or the tables "
        "contradict each other",
    ),
    (
        {"runs_alone": True, "losses": 2},
        Reason.RUNS_ALONE,
        "waits until a worker is free of other jobs: its workers died 2 times while it ran, so that it runs alone",
    ),
    (
        {"runs_alone": True, "losses": 1},
        Reason.RUNS_ALONE,
        "waits until a worker is free of other jobs: its workers died once while it ran, so that it runs alone",
    ),
    ({"free_workers": 0}, Reason.CONSUMERS_BUSY, f"{BUSY}; its agent goes next"),
    ({"free_workers": 0, "agents_before": 1}, Reason.CONSUMERS_BUSY, f"{BUSY}; 1 other agent goes first"),
    ({"free_workers": 0, "agents_before": 1001}, Reason.CONSUMERS_BUSY, f"{BUSY}; over 1000 other agents go first"),
    (
        {"free_workers": 0, "able_workers": 1, "consumers": 10},
        Reason.CONSUMERS_BUSY,
        "waits: all consumers (10) of the live worker that handles its kind are busy; its agent goes next",
    ),
    (
        {"free_for_syncs": 0, "job_class": SYNC},
        Reason.RESERVED,
        "waits: all consumers that syncs may use (16) are busy, and the others are reserved for what people ask for; its agent goes next",
    ),
    ({"free_for_syncs": 0}, Reason.NEXT, "waits: a worker takes it within a second"),
    ({"job_class": SYNC}, Reason.NEXT, "waits: a worker takes it within a second"),
]


@pytest.mark.parametrize(("changes", "reason", "words"), SENTENCES, ids=[each[1].value for each in SENTENCES])
def test_each_reason_has_its_sentence(changes: dict[str, Any], reason: Reason, words: str) -> None:
    found = explain(facts(**changes), UTC)
    assert (found.id, found.reason, found.sentence) == (12, reason, f"job 12 (submit-order) of alice {words}")


def test_every_reason_is_given_for_something() -> None:
    assert {reason for _, reason, _ in SENTENCES} == set(Reason)


@pytest.mark.parametrize(
    ("one", "other", "first"),
    [
        ({"due": False, "run_after": after(60)}, PAUSED, Reason.DELAYED),
        (PAUSED, RUNS, Reason.PAUSED),
        (RUNS, {"live_workers": 0, "able_workers": 0}, Reason.AGENT_BUSY),
        ({"live_workers": 0, "able_workers": 0}, HOLDER, Reason.NO_WORKER),
        ({"able_workers": 0}, HOLDER, Reason.NO_HANDLER),
        (HOLDER, {"agent_known": False}, Reason.LOCKED),
        (HOLDER, BEFORE, Reason.LOCKED),
        (BEFORE, {"free_workers": 0}, Reason.BEHIND),
        ({"ready_at": after(9)}, {"free_workers": 0}, Reason.SET_ASIDE),
        ({"runs_alone": True, "losses": 2}, {"free_workers": 0}, Reason.RUNS_ALONE),
        ({"free_workers": 0}, {"free_for_syncs": 0, "job_class": SYNC}, Reason.CONSUMERS_BUSY),
    ],
)
def test_of_two_reasons_the_one_that_must_end_first_is_given(
    one: dict[str, Any], other: dict[str, Any], first: Reason
) -> None:
    assert explain(facts(**one, **other)).reason is first


def test_what_it_waits_for_is_named_by_time_and_id() -> None:
    busy = explain(facts(**RUNS))
    assert (busy.since, busy.until, busy.job_id) == (after(-60), None, 7)
    assert explain(facts(**PAUSED)).until == after(3600)
    assert explain(facts(**BEFORE)).job_id == 8
    requeued = explain(facts(retry_at=after(8), **REFUSED))
    assert (requeued.until, requeued.job_id) == (after(8), 12)


@pytest.mark.parametrize(
    ("count", "said"),
    [(1, "1st"), (2, "2nd"), (4, "4th"), (11, "11th"), (12, "12th"), (13, "13th"), (21, "21st"), (112, "112th")],
)
def test_the_number_of_requeues_is_an_ordinal(count: int, said: str) -> None:
    found = explain(facts(retry_at=after(8), **{**REFUSED, "requeue_count": count}))
    assert f", for the {said} time" in found.sentence


def test_times_are_those_of_the_zone_and_none_is_too_early_or_too_late_to_be_shown() -> None:
    rome = timezone(timedelta(hours=1))
    assert "until 2026-03-02 16:00:00 (in 60 min)" in explain(facts(**PAUSED), rome).sentence
    late = datetime(9999, 12, 31, 23, 59, tzinfo=UTC)
    assert "until 9999-12-31 23:59:00 (in " in explain(facts(due=False, run_after=late), rome).sentence
