"""What handlers really did, written down by themselves outside the database, and a checker of what may never happen.

Each line is one JSON object, appended by a single write to a file opened with O_APPEND: lines of several processes do not mix, and what
was written stays whatever happens to the process. Times are of the clock that all processes of this machine share and that goes on while
it sleeps. Handlers write `start` and `end`; the test that kills, stops and continues processes writes `killed`, `stopped`, `continued`.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

END_STATES = frozenset({"completed", "failed", "cancelled", "needs_review"})


def now() -> float:
    """Seconds on the clock of the history."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@dataclass(frozen=True, slots=True)
class Event:
    """One line.

    Of a handler: all fields. Of a process (`spawned`, `killed`, `stopped`, `continued`): no job. Of the test: `enqueued`, and `maybe`
    before an enqueue whose commit may come to be in doubt.
    """

    at: float
    what: str
    pid: int = 0
    worker: str = ""
    job_id: int = 0
    user_id: str = ""
    how: str = ""
    """With `end`: `returned`, or the exception's name. With `maybe`: the key. With `enqueued`: `delayed`, if it is."""
    worker_id: int = 0
    epoch: int = 0
    """Which owner a handler runs for; 0 if that is not known."""


@dataclass(frozen=True, slots=True)
class JobRow:
    """What the database says of a job in the end."""

    job_id: int
    user_id: str
    priority: int
    state: str
    is_sync: bool = False
    worker_id: int | None = None
    epoch: int | None = None
    """Of a finished job: the owner that wrote its end, if one did."""
    key: str | None = None


@dataclass(frozen=True, slots=True)
class Interval:
    """A stretch of time in which handler code of a job may have run."""

    user_id: str
    job_id: int
    pid: int
    start: float
    end: float
    how: str
    worker_id: int = 0
    epoch: int = 0


def append(path: Path, event: Event) -> None:
    """Add one line."""
    line = json.dumps(asdict(event)) + "\n"
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        written = os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)
    if written != len(line.encode()):
        raise OSError(f"only {written} bytes of a line of the history were written")


def read(path: Path) -> list[Event]:
    """Return the lines in the order in which they were written."""
    return [Event(**json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []


def violations(events: Sequence[Event], jobs: Sequence[JobRow]) -> list[str]:
    """Return each broken promise as a sentence; an empty list if all were kept."""
    found: list[str] = []
    runs = list(_runs(events, found))
    found += _overlaps(runs, events)
    found += _fates(runs, events, jobs)
    found += _unfenced(runs, jobs)
    found += _disorder(runs, events, jobs)
    return found


def _runs(events: Sequence[Event], found: list[str]) -> Iterator[Interval]:
    """Pair starts with ends. A run of a killed process ends at its death; one that has no end otherwise is a violation."""
    died = {event.pid: event.at for event in events if event.what == "killed"}
    frozen = {event.pid: event.at for event in events if event.what == "stopped"}
    running: dict[tuple[int, int], Event] = {}
    for event in events:
        key = (event.pid, event.job_id)
        if event.what == "start":
            if key in running:
                found.append(f"job {event.job_id} of {event.user_id} was started twice in process {event.pid}")
            running[key] = event
        elif event.what == "end":
            start = running.pop(key, None)
            if start is None:
                found.append(f"job {event.job_id} of {event.user_id} ended in process {event.pid} without a start")
                continue
            if event.at < start.at or event.user_id != start.user_id:
                found.append(f"job {event.job_id} of {event.user_id} ended before it started, or as another user's")
            yield Interval(
                event.user_id, event.job_id, event.pid, start.at, event.at, event.how, start.worker_id, start.epoch
            )
            if (event.worker_id, event.epoch) != (start.worker_id, start.epoch):
                found.append(f"job {event.job_id} of {event.user_id} ended for another owner than it started for")
    for start in running.values():
        death = died.get(start.pid)
        if death is None or death < start.at:
            found.append(f"job {start.job_id} of {start.user_id} started in process {start.pid} and never ended")
            continue
        # A process that was stopped and never wrote an end after that did nothing more of this job.
        frozen_at = frozen.get(start.pid, death)
        yield Interval(
            start.user_id,
            start.job_id,
            start.pid,
            start.at,
            frozen_at if frozen_at > start.at else death,
            "killed",
            start.worker_id,
            start.epoch,
        )


def _overlaps(runs: Iterable[Interval], events: Sequence[Event]) -> Iterator[str]:
    """Never two handlers of one user at once. Time in which a process was stopped does not count: nothing of it ran."""
    of_user: defaultdict[str, list[Interval]] = defaultdict(list)
    pauses = _pauses(events)
    for run in runs:
        of_user[run.user_id] += _without(run, pauses.get(run.pid, []))
    for user, pieces in of_user.items():
        pieces.sort(key=lambda piece: piece.start)
        latest = pieces[0]
        for piece in pieces[1:]:
            same_run = piece.pid == latest.pid and piece.job_id == latest.job_id
            if piece.start < latest.end and not (same_run and piece.start == latest.start):
                yield (
                    f"two handlers of {user} ran at once for {min(latest.end, piece.end) - piece.start:.3f} s: "
                    f"job {latest.job_id} in process {latest.pid} and job {piece.job_id} in process {piece.pid}"
                )
            if piece.end > latest.end:
                latest = piece


def _pauses(events: Sequence[Event]) -> dict[int, list[tuple[float, float]]]:
    pauses: dict[int, list[tuple[float, float]]] = {}
    since: dict[int, float] = {}
    for event in events:
        if event.what == "stopped":
            since[event.pid] = event.at
        elif event.what == "continued" and event.pid in since:
            pauses.setdefault(event.pid, []).append((since.pop(event.pid), event.at))
    return pauses


def _without(run: Interval, pauses: Sequence[tuple[float, float]]) -> Iterator[Interval]:
    start = run.start
    for begin, end in pauses:
        if start < begin < run.end:
            yield replace(run, start=start, end=begin)
            start = min(end, run.end)
    yield replace(run, start=start)


def _fates(runs: Sequence[Interval], events: Sequence[Event], jobs: Sequence[JobRow]) -> Iterator[str]:
    """Every job that was enqueued is in exactly one row, ended; a completed one has a run that returned, and it was the last one."""
    rows = Counter(job.job_id for job in jobs)
    known = {job.job_id: job for job in jobs}
    enqueued = {event.job_id for event in events if event.what == "enqueued"}
    maybe = {event.how for event in events if event.what == "maybe"}
    enqueued |= {job.job_id for job in jobs if job.key in maybe}
    for key, count in sorted(Counter(job.key for job in known.values() if job.key in maybe).items(), key=str):
        if count > 1:
            yield f"the key {key} has {count} jobs"
    for job_id in sorted(enqueued | {run.job_id for run in runs} | set(rows)):
        if rows[job_id] != 1:
            yield f"job {job_id} is in {rows[job_id]} rows"
        elif job_id not in enqueued:
            yield f"job {job_id} was never enqueued"
    last = {run.job_id: run for run in sorted(runs, key=lambda run: run.end)}
    for job in known.values():
        if job.state not in END_STATES:
            yield f"job {job.job_id} of {job.user_id} is still {job.state}"
        run = last.get(job.job_id)
        if run is not None and run.user_id != job.user_id:
            yield f"job {job.job_id} of {job.user_id} ran as {run.user_id}'s"
        if job.state == "completed" and (run is None or run.how != "returned"):
            yield f"job {job.job_id} of {job.user_id} is completed, but its last run {'was ' + run.how if run else 'is missing'}"


def _unfenced(runs: Sequence[Interval], jobs: Sequence[JobRow]) -> Iterator[str]:
    """Epochs of an agent go up from run to run, and only the last owner of a job wrote its end."""
    latest: dict[str, Interval] = {}
    last: dict[int, Interval] = {}
    for run in sorted((run for run in runs if run.epoch), key=lambda run: run.start):
        before = latest.get(run.user_id)
        if before is not None and run.epoch <= before.epoch:
            yield f"job {run.job_id} of {run.user_id} started in epoch {run.epoch} after one of epoch {before.epoch}"
        latest[run.user_id] = last[run.job_id] = run
    for job in jobs:
        owner = last.get(job.job_id)
        if owner is None or job.state not in {"completed", "failed", "cancelled"}:
            continue
        if job.epoch is None:
            if job.state != "cancelled":  # only a job that waits can be ended by nobody's run
                yield f"the end of job {job.job_id} of {job.user_id} has no epoch"
        elif job.epoch == owner.epoch:
            if job.worker_id != owner.worker_id:
                yield f"worker {job.worker_id} wrote the end of job {job.job_id}, which worker {owner.worker_id} ran"
        elif job.state == "completed" or job.epoch < owner.epoch:
            # later and not completed: that owner claimed it, and was told to stop or died before its handler began
            yield f"epoch {job.epoch} wrote the end of job {job.job_id}, whose last run was of epoch {owner.epoch}"


def _disorder(runs: Sequence[Interval], events: Sequence[Event], jobs: Sequence[JobRow]) -> Iterator[str]:
    """Within a user: syncs last, then lower priority numbers, then lower ids first.

    Said only of jobs that were certainly in the queue when the other one was chosen: enqueued before the user's previous run ended, or,
    if there was none, before the process of the run began.
    """
    place = {job.job_id: (job.is_sync, job.priority, job.job_id) for job in jobs}
    cancelled = {job.job_id for job in jobs if job.state == "cancelled"}
    spawned = {event.pid: event.at for event in events if event.what == "spawned"}
    enqueued: defaultdict[str, dict[int, float]] = defaultdict(dict)
    for event in events:
        if event.what == "enqueued" and event.how != "delayed":
            enqueued[event.user_id][event.job_id] = event.at
    of_user: defaultdict[str, list[Interval]] = defaultdict(list)
    for run in sorted(runs, key=lambda run: run.start):
        of_user[run.user_id].append(run)
    ran = {run.job_id for run in runs}  # a job whose every owner died before its handler began was not passed over
    for user, ordered in of_user.items():
        waiting = {job for job in enqueued[user] if job not in cancelled and job in place and job in ran}
        previous_end: float | None = None
        for run in ordered:
            chosen_after = spawned.get(run.pid, 0.0) if previous_end is None else previous_end
            if run.job_id in waiting:
                waiting.discard(run.job_id)
                for other in sorted(waiting):
                    if place[other] < place[run.job_id] and enqueued[user][other] < chosen_after:
                        yield f"job {run.job_id} of {user} was run before job {other}, which goes first"
            previous_end = run.end
