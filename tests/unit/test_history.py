"""The checker of the fault tests is worth something: it accepts a good history and refuses each way of spoiling it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.acceptance.history import Event, JobRow, append, now, read, violations

A, B = 101, 102  # processes

GOOD = [
    Event(0.0, "enqueued", job_id=1, user_id="alice"),
    Event(0.1, "enqueued", job_id=2, user_id="alice"),
    Event(0.2, "enqueued", job_id=3, user_id="bob"),
    Event(0.3, "enqueued", job_id=4, user_id="carol"),
    Event(0.4, "enqueued", job_id=5, user_id="alice"),
    Event(0.5, "spawned", A, "a"),
    Event(0.6, "spawned", B, "b"),
    Event(1.0, "start", A, "a", 2, "alice"),  # priority before id
    Event(1.1, "start", A, "a", 3, "bob"),
    Event(1.2, "start", B, "b", 4, "carol"),
    Event(1.5, "end", A, "a", 2, "alice", "returned"),
    Event(1.6, "start", A, "a", 1, "alice"),
    Event(1.7, "stopped", B),
    Event(2.0, "killed", A),  # with jobs 1 and 3
    Event(2.5, "continued", B),
    Event(2.6, "end", B, "b", 4, "carol", "returned"),
    Event(4.0, "start", B, "b", 1, "alice"),
    Event(4.5, "end", B, "b", 1, "alice", "returned"),
    Event(4.6, "start", B, "b", 5, "alice"),
    Event(4.7, "end", B, "b", 5, "alice", "CancelledError"),
]
JOBS = [
    JobRow(1, "alice", 20, "completed"),
    JobRow(2, "alice", 10, "completed"),
    JobRow(3, "bob", 10, "needs_review"),
    JobRow(4, "carol", 10, "completed"),
    JobRow(5, "alice", 1, "cancelled", is_sync=True),
]

Spoil = Callable[[list[Event], list[JobRow]], object]


def test_a_good_history_has_no_violation() -> None:
    assert violations(GOOD, JOBS) == []


def changed(events: list[Event], place: int, **fields: object) -> object:
    events[place] = replace(events[place], **fields)  # type: ignore[arg-type]
    return events


def changed_state(jobs: list[JobRow], place: int, state: str) -> object:
    jobs[place] = replace(jobs[place], state=state)
    return jobs


SPOILT: dict[str, tuple[Spoil, str]] = {
    "an end is missing": (lambda e, j: e.pop(15), "never ended"),
    "a start is missing": (lambda e, j: e.pop(7), "without a start"),
    "a start is there twice": (lambda e, j: e.insert(8, e[7]), "started twice"),
    "the death is missing": (lambda e, j: e.pop(13), "never ended"),
    "the death was before the start": (lambda e, j: changed(e, 13, at=0.9), "never ended"),
    "another process took over too early": (lambda e, j: changed(e, 16, at=1.9), "ran at once"),
    "another process began within a run": (lambda e, j: changed(e, 11, at=1.4), "ran at once"),
    "the second run is another user's": (lambda e, j: changed(e, 8, user_id="carol"), "ran at once"),
    "it went on while another one ran": (
        lambda e, j: e.extend(
            [Event(2.55, "start", 103, "c", 6, "carol"), Event(2.7, "end", 103, "c", 6, "carol", "x")]
        ),
        "ran at once",
    ),
    "an end before its start": (lambda e, j: changed(e, 10, at=0.9), "ended before it started"),
    "a completed job was cut short": (lambda e, j: changed(e, 17, how="CancelledError"), "last run was CancelledError"),
    "a completed job never ran": (lambda e, j: (e.pop(18), e.pop(18), changed_state(j, 4, "completed")), "is missing"),
    "a job still runs": (lambda e, j: changed_state(j, 2, "running"), "still running"),
    "a job still waits": (lambda e, j: changed_state(j, 2, "queued"), "still queued"),
    "a job is lost": (lambda e, j: j.pop(2), "in 0 rows"),
    "a job has two rows": (lambda e, j: j.append(j[2]), "in 2 rows"),
    "a job nobody enqueued": (lambda e, j: e.pop(2), "never enqueued"),
    "a job ran as another user's": (lambda e, j: j.__setitem__(3, replace(j[3], user_id="dave")), "ran as carol's"),
    "priority was passed over": (lambda e, j: j.__setitem__(0, replace(j[0], priority=5)), "which goes first"),
    "the older one was passed over": (lambda e, j: j.__setitem__(0, replace(j[0], priority=10)), "which goes first"),
    "a sync was put before others": (
        lambda e, j: (j.__setitem__(1, replace(j[1], is_sync=True)), j.__setitem__(0, replace(j[0], priority=99))),
        "which goes first",
    ),
}


@pytest.mark.parametrize("name", SPOILT)
def test_a_spoilt_history_is_refused(name: str) -> None:
    spoil, words = SPOILT[name]
    events, jobs = list(GOOD), list(JOBS)
    spoil(events, jobs)
    found = violations(events, jobs)
    assert any(words in sentence for sentence in found), found


def owned(events: list[Event], jobs: list[JobRow]) -> tuple[list[Event], list[JobRow]]:
    """The good history with owners: worker 7 is process A, 8 is B; each run of an agent has the next epoch."""
    epochs: dict[str, int] = {}
    running: dict[tuple[int, int], int] = {}
    made = []
    ends = {}
    for event in events:
        if event.what == "start":
            epochs[event.user_id] = running[event.pid, event.job_id] = epochs.get(event.user_id, 0) + 1
        if event.what in {"start", "end"}:
            owner = {A: 7, B: 8}[event.pid], running[event.pid, event.job_id]
            ends[event.job_id] = owner
            made.append(replace(event, worker_id=owner[0], epoch=owner[1]))
        else:
            made.append(event)
    return made, [
        replace(job, worker_id=ends[job.job_id][0], epoch=ends[job.job_id][1]) if job.state in FINISHED else job
        for job in jobs
    ]


FINISHED = {"completed", "failed", "cancelled"}
UNFENCED: dict[str, tuple[Spoil, str]] = {
    "the epochs of two runs are swapped": (
        lambda e, j: (changed(e, 7, epoch=2), changed(e, 10, epoch=2), changed(e, 11, epoch=1)),
        "after one of epoch",
    ),
    "an epoch is used twice": (
        lambda e, j: (changed(e, 16, epoch=2), changed(e, 17, epoch=2), j.__setitem__(0, replace(j[0], epoch=2))),
        "after one of epoch",
    ),
    "a sync shares the turn of the job before it": (
        lambda e, j: (
            changed(e, 18, epoch=e[16].epoch),
            changed(e, 19, epoch=e[16].epoch),
            j.__setitem__(4, replace(j[4], epoch=e[16].epoch)),
        ),
        "after one of epoch",
    ),
    "an overtaken run wrote the end": (
        lambda e, j: j.__setitem__(0, replace(j[0], epoch=2, worker_id=7)),
        "wrote the end",
    ),
    "another worker wrote the end": (lambda e, j: j.__setitem__(0, replace(j[0], worker_id=7)), "wrote the end"),
    "nobody completed it": (lambda e, j: j.__setitem__(0, replace(j[0], epoch=None)), "has no epoch"),
    "a run that nobody knows completed it": (lambda e, j: j.__setitem__(0, replace(j[0], epoch=9)), "wrote the end"),
    "a run changed its owner": (lambda e, j: changed(e, 17, epoch=9), "another owner"),
    "two starts of an agent are swapped": (
        lambda e, j: (changed(e, 11, at=1.0), changed(e, 7, at=1.6)),
        "ran at once",
    ),
    "two runs overlap by a millisecond": (lambda e, j: changed(e, 11, at=1.499), "ran at once for 0.001 s"),
}


def test_a_good_history_with_owners_has_no_violation() -> None:
    assert violations(*owned(GOOD, JOBS)) == []


@pytest.mark.parametrize("name", UNFENCED)
def test_a_history_in_which_a_stale_owner_wrote_is_refused(name: str) -> None:
    spoil, words = UNFENCED[name]
    events, jobs = owned(GOOD, JOBS)
    spoil(events, jobs)
    found = violations(events, jobs)
    assert any(words in sentence for sentence in found), found


def test_a_job_whose_commit_is_in_doubt_may_exist_once_or_not_at_all() -> None:
    doubt = [*GOOD, Event(5.0, "maybe", how="k")]
    assert violations(doubt, JOBS) == []
    one = JobRow(9, "dave", 10, "cancelled", key="k")
    assert violations(doubt, [*JOBS, one]) == []
    assert violations(GOOD, [*JOBS, one]) == ["job 9 was never enqueued"]
    assert violations(doubt, [*JOBS, one, replace(one, job_id=10)]) == ["the key k has 2 jobs"]
    retried = [*doubt, Event(6.0, "retried", job_id=9)]  # cancelled meanwhile, so that the retry made a new job
    assert violations(retried, [*JOBS, one, replace(one, job_id=10)]) == []
    assert violations(retried, [*JOBS, one, replace(one, job_id=10), replace(one, job_id=11)]) == [
        "the key k has 3 jobs"
    ]


def test_dropping_any_start_or_end_is_noticed() -> None:
    for place, event in enumerate(GOOD):
        if event.what == "start" and (event.pid, event.job_id) not in {(A, 1), (A, 3)}:  # those had no time to end
            assert violations(GOOD[:place] + GOOD[place + 1 :], JOBS), event
        if event.what == "end":
            assert violations(GOOD[:place] + GOOD[place + 1 :], JOBS), event


def test_two_runs_that_touch_do_not_overlap_and_a_stopped_process_runs_nothing() -> None:
    """The time from SIGSTOP to SIGCONT is nobody's, nor the moment after a long one, in which it learns what it has lost."""
    events = [
        Event(0.0, "enqueued", job_id=1, user_id="alice"),
        Event(1.0, "start", A, "a", 1, "alice"),
        Event(2.0, "stopped", A),
        Event(5.0, "start", B, "b", 1, "alice"),
        Event(6.0, "continued", A),
        Event(6.2, "killed", A),
        Event(7.0, "end", B, "b", 1, "alice", "returned"),
    ]
    job = [JobRow(1, "alice", 10, "completed")]
    assert violations(events, job) == []
    assert any(
        "ran at once" in sentence for sentence in violations([*events[:5], replace(events[5], at=6.5), events[6]], job)
    )
    events.insert(5, Event(6.5, "end", A, "a", 1, "alice", "returned"))
    assert any("ran at once" in sentence for sentence in violations(events, job))


def test_a_claim_may_be_as_early_as_the_stop_of_the_owner_before_however_late_its_handler_starts() -> None:
    """Seen: taken over while stopped, claimed by a worker whose loop was blocked for 3 s then; meanwhile a better job was put back."""
    events = [
        Event(0.0, "enqueued", job_id=2, user_id="alice"),
        Event(0.1, "enqueued", job_id=3, user_id="alice"),
        Event(1.0, "start", A, "a", 2, "alice"),
        Event(2.0, "stopped", A),
        Event(4.2, "enqueued", job_id=1, user_id="alice"),  # job 3 was claimed at 4.1
        Event(4.7, "continued", A),
        Event(4.8, "killed", A),
        Event(7.0, "start", B, "b", 3, "alice"),
        Event(7.1, "end", B, "b", 3, "alice", "returned"),
        Event(7.2, "start", B, "b", 1, "alice"),
        Event(7.3, "end", B, "b", 1, "alice", "returned"),
    ]
    jobs = [
        JobRow(1, "alice", 5, "completed"),
        JobRow(2, "alice", 10, "needs_review"),
        JobRow(3, "alice", 10, "completed"),
    ]
    assert violations(events, jobs) == []
    events[4] = replace(events[4], at=1.9)  # before the stop: it was passed over
    assert violations(sorted(events, key=lambda event: event.at), jobs) == [
        "job 3 of alice was run before job 1, which goes first"
    ]


def test_what_was_appended_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    assert read(path) == []
    events = [replace(event, at=now()) for event in GOOD]
    for event in events:
        append(path, event)
    assert read(path) == events


def test_a_process_that_got_the_number_of_a_dead_one_is_another_process(tmp_path: Path) -> None:
    path = tmp_path / "history"
    for event in (Event(0.0, "spawned", A, "a"), Event(1.0, "killed", A), Event(2.0, "spawned", A, "c")):
        append(path, event)
    append(path, Event(3.0, "start", A, "c", 1, "alice"))
    old, killed, new, start = (event.pid for event in read(path))
    assert old == killed != new == start
