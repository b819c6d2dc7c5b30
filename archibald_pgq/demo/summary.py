"""What the day came to, and whether it kept its promises.

Owns: the verdict. Guarantees: pure; the same rows give the same summary. Must not: read or print anything.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from archibald_pgq.demo.watch import LIVE_STATES, JobRow

CLASSES = ("write", "read", "sync")


@dataclass(frozen=True, slots=True)
class Waits:
    """How long the jobs of a class waited from due to started, in seconds."""

    jobs: int
    p50: float
    p95: float


@dataclass(frozen=True, slots=True)
class Summary:
    """The numbers of one day.

    Attributes:
        seconds: how long it took.
        entries: enqueues.
        merged: enqueues that found their job already there.
        jobs: by state.
        failures: one line per failed job.
        most_running: jobs at once, seen in the database.
        requeues: in all.
        preemptions: runs of syncs that made room for a write of their agent.
        most_requeued: the highest requeue_count of a job.
        waits: by class.
        erp: what the ERP counted, as its `/stats` says.
    """

    seconds: float
    entries: int
    merged: int
    jobs: dict[str, int]
    failures: list[str]
    most_running: int
    requeues: int
    preemptions: int
    most_requeued: int
    waits: dict[str, Waits]
    erp: dict[str, int]

    @property
    def unfinished(self) -> int:
        """Jobs that have not ended."""
        return sum(self.jobs.get(state, 0) for state in LIVE_STATES)

    @property
    def problems(self) -> list[str]:
        """A sentence for each promise that was not kept."""
        found = []
        if self.unfinished:
            found.append(f"{self.unfinished} jobs are unfinished")
        if self.erp["simultaneous"]:
            found.append(f"the ERP counted {self.erp['simultaneous']} simultaneous requests or operations of one login")
        if self.erp["orders_twice"]:
            found.append(f"the ERP has {self.erp['orders_twice']} orders twice")
        return found

    def as_json(self) -> dict[str, Any]:
        """Return all numbers as JSON."""
        return {**asdict(self), "unfinished": self.unfinished, "problems": self.problems}


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the nearest-rank percentile; 0 for no values."""
    if not values:
        return 0.0
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]


def _waits(rows: Sequence[JobRow], job_class: str) -> Waits:
    seconds = [
        (row.started_at - row.waiting_since).total_seconds()
        for row in rows
        if row.job_class == job_class and row.started_at and row.waiting_since
    ]
    return Waits(len(seconds), round(percentile(seconds, 50), 2), round(percentile(seconds, 95), 2))


def summarize(  # one value for each thing counted
    rows: Sequence[JobRow],
    *,
    seconds: float,
    entries: int,
    merged: int,
    most_running: int,
    preemptions: int,
    erp: Mapping[str, int],
) -> Summary:
    """Return what the jobs and the ERP's own count come to."""
    return Summary(
        seconds=round(seconds, 1),
        entries=entries,
        merged=merged,
        jobs=dict(Counter(row.state for row in rows)),
        failures=[f"{row.user_id}: {row.kind}: {row.error}" for row in rows if row.state == "failed"],
        most_running=most_running,
        requeues=sum(row.requeue_count for row in rows),
        preemptions=preemptions,
        most_requeued=max((row.requeue_count for row in rows), default=0),
        waits={job_class: _waits(rows, job_class) for job_class in CLASSES},
        erp=dict(erp),
    )
