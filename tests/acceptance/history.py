"""The checker: what may never happen, judged by what handlers wrote down (`events`) and by the rows in the end.

By letter, as in docs/guarantees.md: L no job is lost, O no two handlers of one agent at once (nor one beside an operator who has the agent
to themselves), T one end for each job, and one that a run came to, F no end written by a stale owner, Q the order (`order`); and a write
that was interrupted is not run again unless a person asked for it.
What cannot be promised is not asked: what a handler does in the moment after its process was stopped for long and goes on.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace

from tests.acceptance.events import END_STATES, Event, Interval, JobRow, append, now, read
from tests.acceptance.order import disorder, waits_of

__all__ = ["Event", "Interval", "JobRow", "append", "now", "read", "stillness", "violations"]

LONG_STOP = 1.0
IN_FLIGHT = 0.3
"""A process that was stopped for LONG_STOP may have lost its agents, and learns of it only when it runs again: within so many seconds it
ends its handlers or itself. What was in flight at the stop happens in that moment, whatever anybody does about it."""

INTERRUPTED = frozenset({"returned", "killed", "CancelledError"})
"""Ends of a run after which a write may have happened."""


def violations(
    events: Sequence[Event], jobs: Sequence[JobRow], fenced: Collection[int] | None = None, *, order: bool = True
) -> list[str]:
    """Return each broken promise as a sentence; an empty list if all were kept.

    `fenced`: the workers that were lost, if known; `order`: whether the history tells when each job came into the queue.
    """
    found: list[str] = []
    runs = list(_runs(events, found))
    found += _overlaps(runs, events)
    found += _fates(runs, events, jobs)
    found += _beside_operators(runs, events)
    found += _unfenced(runs, jobs)
    found += _repeated(runs, events, jobs)
    if fenced is not None:
        found += _forgotten(runs, jobs, fenced)
    if order:
        found += disorder(runs, events, jobs)
    return found


def stillness(events: Sequence[Event]) -> float:
    """Return the longest time for which an agent stood still though a job of it waited that was due and no operator had the agent."""
    runs = sorted(_runs(events, []), key=lambda run: run.start)
    waits = waits_of(runs, events)
    unlocked: defaultdict[str, list[float]] = defaultdict(list)
    for event in events:
        if event.what == "unlocked":
            unlocked[event.user_id].append(event.at)
    free: dict[str, float] = {}
    longest = 0.0
    for run in runs:
        waited = [since for since, until in waits[run.job_id] if until == run.start]
        since = max([min(waited, default=run.start), free.get(run.user_id, 0.0)])
        since = max([since, *(at for at in unlocked[run.user_id] if at < run.start)])
        longest = max(longest, run.start - since)
        free[run.user_id] = max(free.get(run.user_id, 0.0), run.end)
    return longest


def _runs(events: Sequence[Event], found: list[str]) -> Iterator[Interval]:
    """Pair starts with ends. A run of a killed process ends at its death; one that has no end otherwise is a violation."""
    died = {event.pid: event.at for event in events if event.what == "killed"}
    frozen: dict[int, float] = {}  # and not continued since
    for event in events:
        if event.what == "stopped":
            frozen[event.pid] = event.at
        elif event.what == "continued":
            frozen.pop(event.pid, None)
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
        frozen_at = frozen.get(start.pid, death)  # a process that is stopped until its death does nothing more
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
        of_user[run.user_id] += pieces_of(run, pauses.get(run.pid, []))
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


def pieces_of(run: Interval, pauses: Sequence[tuple[float, float]]) -> Iterator[Interval]:
    """Return the stretches of a run in which its process was not stopped, nor had just been for long."""
    start = run.start
    for begin, end in pauses:
        if start < begin < run.end:
            yield replace(run, start=start, end=begin)
            start = min(end + (IN_FLIGHT if end - begin >= LONG_STOP else 0.0), run.end)
    if start < run.end or start == run.start:
        yield replace(run, start=start)


def _beside_operators(runs: Sequence[Interval], events: Sequence[Event]) -> Iterator[str]:
    """While an operator has an agent to themselves, no handler of it runs."""
    pauses = _pauses(events)
    since = {(event.user_id, event.how): event.at for event in events if event.what == "locked"}
    for event in events:
        if event.what != "unlocked":
            continue
        begin = since[event.user_id, event.how]
        if begin == event.at:
            continue  # never confirmed: the answer that said so may have been late, and its session over by then
        for run in runs:
            if run.user_id == event.user_id and any(
                piece.start < event.at and piece.end > begin for piece in pieces_of(run, pauses.get(run.pid, []))
            ):
                yield (
                    f"job {run.job_id} of {run.user_id} ran in process {run.pid} while an operator had the agent to themselves, "
                    f"from {begin:.3f} to {event.at:.3f}"
                )


def _repeated(runs: Sequence[Interval], events: Sequence[Event], jobs: Sequence[JobRow]) -> Iterator[str]:
    """A write that must not be repeated is started again only after it failed by itself, or after a person's retry."""
    doubtful = {job.job_id for job in jobs if job.doubtful}
    retried: defaultdict[int, list[float]] = defaultdict(list)
    for event in events:
        if event.what == "retried":
            retried[event.job_id].append(event.at)
    last: dict[int, Interval] = {}
    for run in sorted(runs, key=lambda run: run.start):
        before = last.get(run.job_id)
        last[run.job_id] = run
        if before is None or run.job_id not in doubtful or before.how not in INTERRUPTED:
            continue
        if not any(before.start < at < run.start for at in retried[run.job_id]):
            yield f"the write {run.job_id} of {run.user_id} was run again though its run before was {before.how}, and nobody retried it"


def _forgotten(runs: Sequence[Interval], jobs: Sequence[JobRow], fenced: Collection[int]) -> Iterator[str]:
    """What a run came to is written, unless its worker was lost before: one that returned is the last, and completed its job."""
    last = {run.job_id: run for run in sorted(runs, key=lambda run: run.start)}
    states = {job.job_id: job.state for job in jobs}
    for run in runs:
        if run.how != "returned" or not run.worker_id or run.worker_id in fenced:
            continue
        if last[run.job_id] is not run:
            yield f"job {run.job_id} of {run.user_id} was run again after worker {run.worker_id}, which was not lost, had run it to its end"
        elif states.get(run.job_id, "completed") != "completed":
            yield (
                f"job {run.job_id} of {run.user_id} is {states[run.job_id]}, "
                f"but worker {run.worker_id}, which was not lost, ran it to its end"
            )


def _fates(runs: Sequence[Interval], events: Sequence[Event], jobs: Sequence[JobRow]) -> Iterator[str]:
    """Every job that was enqueued is in exactly one row, ended; a completed one has a run that returned, and it was the last one."""
    rows = Counter(job.job_id for job in jobs)
    known = {job.job_id: job for job in jobs}
    enqueued = {event.job_id for event in events if event.what == "enqueued"}
    maybe = {event.how for event in events if event.what == "maybe"}
    enqueued |= {job.job_id for job in jobs if job.key in maybe}
    retries = Counter(known[event.job_id].key for event in events if event.what == "retried" and event.job_id in known)
    for key, count in sorted(Counter(job.key for job in known.values() if job.key in maybe).items(), key=str):
        if (
            count > 1 + retries[key]
        ):  # of a job that was cancelled before its retry arrived, the retry makes another one
            yield f"the key {key} has {count} jobs"
    for job_id in sorted(enqueued | {run.job_id for run in runs} | set(rows)):
        if rows[job_id] != 1:
            yield f"job {job_id} is in {rows[job_id]} rows"
        elif job_id not in enqueued:
            yield f"job {job_id} was never enqueued"
    last = {run.job_id: run for run in sorted(runs, key=lambda run: run.start)}
    for job in known.values():
        if job.state not in END_STATES:
            yield f"job {job.job_id} of {job.user_id} is still {job.state}"
        run = last.get(job.job_id)
        if run is not None and run.user_id != job.user_id:
            yield f"job {job.job_id} of {job.user_id} ran as {run.user_id}'s"
        if job.state == "completed" and (run is None or run.how != "returned"):
            yield f"job {job.job_id} of {job.user_id} is completed, but its last run {'was ' + run.how if run else 'is missing'}"


def same_turn(before: Interval, run: Interval) -> bool:
    """True if two runs of an agent, one after the other, may be of jobs that were claimed together."""
    owner = (run.pid, run.worker_id, run.epoch)
    return run.epoch > 0 and (before.pid, before.worker_id, before.epoch) == owner and before.job_id != run.job_id


def _unfenced(runs: Sequence[Interval], jobs: Sequence[JobRow]) -> Iterator[str]:
    """Epochs of an agent go up from turn to turn, and only the last owner of a job wrote its end."""
    sharing = {job.job_id for job in jobs if job.shares}
    latest: dict[str, Interval] = {}
    last: dict[int, Interval] = {}
    for run in sorted((run for run in runs if run.epoch), key=lambda run: run.start):
        before = latest.get(run.user_id)
        if before is not None and run.epoch <= before.epoch and not (same_turn(before, run) and run.job_id in sharing):
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
