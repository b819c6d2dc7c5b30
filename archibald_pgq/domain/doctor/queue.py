"""The queue itself: lanes that contradict their jobs, jobs that nobody looks at, and jobs that wait for a person."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum

from archibald_pgq.domain.doctor.finding import Finding, Severity, counted, graded, lasted, named

COUNTED = 1000
"""Jobs are counted up to here."""

UNSEEN = timedelta(seconds=10)
"""A worker looks at a new job within a second."""

REVIEW = timedelta(days=1)
"""How long a job may wait for a person before it is spoken of."""


class Fault(StrEnum):
    """How a lane may contradict its jobs; the words of `archibald.odd_lanes()`."""

    IDLE_WITH_JOB = "idle_with_job"
    WRONG_HINT = "wrong_hint"
    READY_WITHOUT_JOB = "ready_without_job"
    RUNNING_WITHOUT_WORKER = "running_without_worker"
    RUNNING_WITHOUT_JOB = "running_without_job"
    JOB_WITHOUT_LANE = "job_without_lane"


MEANINGS = {
    Fault.IDLE_WITH_JOB: "idle though a job is due",
    Fault.WRONG_HINT: "ready for another job than its first",
    Fault.READY_WITHOUT_JOB: "ready without a job",
    Fault.RUNNING_WITHOUT_WORKER: "running on a worker that is not there",
    Fault.RUNNING_WITHOUT_JOB: "running without a running job",
    Fault.JOB_WITHOUT_LANE: "not running though a job of it is marked running",
}


@dataclass(frozen=True, slots=True)
class OddLane:
    """A lane that contradicts its jobs; `mendable`: no live worker is concerned, so that `--fix` may repair it."""

    lane: int
    user_id: str
    fault: Fault
    mendable: bool
    worker_id: int | None


@dataclass(frozen=True, slots=True)
class Looked:
    """How many lanes were looked at, and whether there were more than that."""

    lanes: int
    sample: bool


@dataclass(frozen=True, slots=True)
class Unseen:
    """Jobs that ask for a look: how many (counted to 1001), and of the first of them how long the longest has waited for it."""

    jobs: int
    longest: timedelta


@dataclass(frozen=True, slots=True)
class Review:
    """Jobs in review that began over a day ago (counted to 1001), the oldest of them."""

    jobs: int
    oldest_id: int | None
    oldest_for: timedelta | None


def lanes(odd: list[OddLane], looked: Looked) -> list[Finding]:
    """Judge the lanes."""
    name = "lanes"
    sample = " (a sample)" if looked.sample else ""
    if not odd:
        return [Finding(name, Severity.OK, f"{counted(looked.lanes, 'lane')}{sample} agree with their jobs")]
    findings = []
    for mendable in (True, False):
        group = [lane for lane in odd if lane.mendable is mendable]
        if not group:
            continue
        faults = Counter(lane.fault for lane in group)
        what = "; ".join(f"{number:,} {MEANINGS[fault]}" for fault, number in faults.items())
        found = (
            f"of {counted(looked.lanes, 'lane')}{sample} {len(group):,} contradict their jobs ({named([lane.user_id for lane in group])}): "
            f"{what}"
        )
        ids = sorted({str(lane.worker_id) for lane in group if lane.worker_id is not None})
        remedy = (
            "archibald-pgq doctor --fix" if mendable else f"restart worker {named(ids)}: its agents are then taken over"
        )
        findings.append(Finding(name, Severity.SERIOUS, found, remedy))
    return findings


def unseen(seen: Unseen, live_workers: int) -> list[Finding]:
    """Judge the jobs that ask for a look."""
    name = "unseen_jobs"
    ask = "asks" if seen.jobs == 1 else "ask"
    if seen.longest <= UNSEEN:
        return [Finding(name, Severity.OK, f"{counted(seen.jobs, 'job', COUNTED)} {ask} for a look, none for long")]
    found = f"{counted(seen.jobs, 'job', COUNTED)} {ask} for a look, the longest for {lasted(seen.longest)}, and no worker has looked"
    if not live_workers:
        return [Finding(name, Severity.NOTICE, found, "start one with `archibald-pgq run`")]
    remedy = "look at the workers' log, and at oldest_transaction: somebody may hold these rows"
    return [Finding(name, Severity.SERIOUS, found, remedy)]


def review(seen: Review) -> list[Finding]:
    """Judge the jobs that need a person."""
    if not seen.jobs or seen.oldest_for is None:
        return [Finding("review", Severity.OK, "no job has needed a person for over a day")]
    need = "needs" if seen.jobs == 1 else "need"
    found = (
        f"{counted(seen.jobs, 'job', COUNTED)} {need} a person for over a day, the oldest, job {seen.oldest_id}, "
        f"began {lasted(seen.oldest_for)} ago"
    )
    return [
        Finding("review", graded(True, False), found, "archibald-pgq review, then archibald-pgq retry or discard ID")
    ]
