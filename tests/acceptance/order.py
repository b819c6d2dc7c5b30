"""Promise Q: within an agent, syncs last, then lower priority numbers, then lower ids first.

Guarantees: speaks only of jobs that were certainly in the queue and due when another one was claimed. The claim of a run comes after the
end of the agent's run before, because the same transaction that lets an agent go puts its job back. Runs of one epoch were claimed
together, before the first of them. A job waits for certain

- from its enqueue's return on (a delayed one: from some time after its delay),
- again from the end of a run that was cut short, preempted or failed, because its place is kept and it is due at once,
- from the return of a person's retry,

each until its next start, if it was not put aside in between; so only jobs that start later are spoken of.
Must not: guess. A commit in doubt has no time.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import pairwise

from tests.acceptance.events import Event, Interval, JobRow

PROMOTION = 5.0
"""Seconds after its delay in which a job may still be marked as not due: turns do that, and they need a server and a worker."""


def disorder(runs: Sequence[Interval], events: Sequence[Event], jobs: Sequence[JobRow]) -> Iterator[str]:
    """Return each run that overtook a job which goes first."""
    place = {job.job_id: (job.is_sync, job.priority, job.job_id) for job in jobs}
    waits = waits_of(runs, events)
    of_user: defaultdict[str, list[Interval]] = defaultdict(list)
    for run in sorted(runs, key=lambda run: run.start):
        of_user[run.user_id].append(run)
    spawned = {event.pid: event.at for event in events if event.what == "spawned"}
    stops = _stops(events)
    for user, ordered in of_user.items():
        others = {run.job_id for run in ordered if run.job_id in place}
        for number, run in enumerate(ordered):
            if run.job_id not in place:
                continue
            first = number  # of the turn that it was claimed with
            while first and run.epoch and ordered[first - 1].epoch == run.epoch:
                first -= 1
            chosen_after = (
                max(_left(old, run, stops) or old.start for old in ordered[:first])
                if first
                else spawned.get(run.pid, 0.0)
            )
            for other in sorted(others):
                if place[other] < place[run.job_id] and any(
                    since <= chosen_after and run.start < until for since, until in waits[other]
                ):
                    yield f"job {run.job_id} of {user} was run before job {other}, which goes first"


def _left(old: Interval, new: Interval, stops: dict[int, list[float]]) -> float | None:
    """The time after which a run can be followed by a new one: its end, or the first stop of its process, while which it may be taken over.

    Also where it ended before the new one's start: that one may have been claimed long before, by a worker whose loop was blocked.
    """
    stopped = [at for at in stops.get(old.pid, []) if old.start < at < min(old.end, new.start)]
    if stopped:
        return min(stopped)
    return old.end if old.end <= new.start else None


def waits_of(runs: Sequence[Interval], events: Sequence[Event]) -> defaultdict[int, list[tuple[float, float]]]:
    """Of each job the stretches in which it certainly waited: from a time to its next start."""
    since: defaultdict[int, list[tuple[float, float]]] = defaultdict(
        list
    )  # from when it waits, and from when it certainly is due
    enqueued: set[int] = set()
    retried: defaultdict[int, list[float]] = defaultdict(list)
    for event in events:
        if event.what == "enqueued" and event.job_id not in enqueued:
            enqueued.add(event.job_id)  # later ones were coalesced with it
            since[event.job_id].append((event.at, event.at + (float(event.how) + PROMOTION if event.how else 0.0)))
        elif event.what == "put back":
            since[event.job_id].append((event.at, event.at))
        elif event.what == "retried":
            retried[event.job_id].append(event.at)
    of_job: defaultdict[int, list[Interval]] = defaultdict(list)
    for run in sorted(runs, key=lambda run: run.start):
        of_job[run.job_id].append(run)

    def aside(job_id: int, begin: float, end: float) -> bool:
        """A person retried it meanwhile: it had been put aside, perhaps by a death between its claim and its handler's start."""
        return any(begin < at < end for at in retried[job_id])

    stops = _stops(events)
    waits: defaultdict[int, list[tuple[float, float]]] = defaultdict(list)
    for job_id, ordered in of_job.items():
        for old, new in pairwise(ordered):
            if not aside(job_id, old.start, new.start) and (begin := _left(old, new, stops)) is not None:
                waits[job_id].append((begin, new.start))
        for since_then, due in since[job_id]:
            until = min((run.start for run in ordered if run.start > since_then), default=since_then)
            if due < until and not aside(job_id, since_then, until):
                waits[job_id].append((due, until))
    return waits


def _stops(events: Sequence[Event]) -> dict[int, list[float]]:
    stops: dict[int, list[float]] = {}
    for event in events:
        if event.what == "stopped":
            stops.setdefault(event.pid, []).append(event.at)
    return stops
