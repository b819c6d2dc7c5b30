"""What the database shows of the day: one query, one snapshot.

Owns: the demo's reading of `archibald.all_jobs`. Guarantees: what is shown was read in one statement, so that its
numbers belong together. Must not: write.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from psycopg import AsyncConnection
from psycopg.rows import class_row

LIVE_STATES = ("queued", "running", "needs_review")

_ROWS = """
    -- Every job of this demo, live or finished; those of earlier days in a given database have lower ids.
    SELECT id, user_id, kind, class AS job_class, state, requeue_count, preemptions, preempted_by, progress, progress_label, error,
           extract(epoch FROM run_after - now())::float AS due_in, waiting_since, started_at
      FROM archibald.all_jobs
     WHERE id > %s
     ORDER BY id
"""


@dataclass(frozen=True, slots=True)
class JobRow:
    """One job as the view shows it; `due_in` is in seconds from now."""

    id: int
    user_id: str
    kind: str
    job_class: str
    state: str
    requeue_count: int
    preemptions: int
    preempted_by: int | None
    progress: int | None
    progress_label: str | None
    error: str | None
    due_in: float
    waiting_since: datetime | None
    started_at: datetime | None


async def last_id(connection: AsyncConnection[Any]) -> int:
    """Return the highest id of a job so far, 0 for none."""
    row = await (await connection.execute("SELECT coalesce(max(id), 0) FROM archibald.all_jobs")).fetchone()
    assert row is not None  # noqa: S101  # an aggregate has a row
    return int(row[0])


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One look.

    Attributes:
        seconds: since the day began.
        entries: enqueues of the day.
        fed: how many of them have been made.
        rows: every job.
        events: what happened so far between the queue and the other program, oldest first.
    """

    seconds: float
    entries: int
    fed: int
    rows: tuple[JobRow, ...]
    events: tuple[str, ...]

    @property
    def states(self) -> Counter[str]:
        """How many jobs are in each state."""
        return Counter(row.state for row in self.rows)

    @property
    def running(self) -> tuple[JobRow, ...]:
        """The jobs that run at this moment."""
        return tuple(row for row in self.rows if row.state == "running")

    @property
    def finished(self) -> int:
        """How many jobs have ended, whatever the outcome."""
        return sum(row.state not in LIVE_STATES for row in self.rows)

    @property
    def at_rest(self) -> bool:
        """True if no job will move by itself any more."""
        return not any(row.state in {"queued", "running"} for row in self.rows)


@dataclass
class Watch:
    """The looks of one demo; keeps what only the sequence of looks can tell.

    Attributes:
        entries: enqueues of the day.
        after_id: the highest id before the day.
        fed: set by the feeder.
        events: requeues and preemptions seen, and what others add.
        preemptions: seen in all.
        most_running: at one look.
    """

    entries: int
    after_id: int
    fed: int = 0
    events: list[str] = field(default_factory=list)
    most_running: int = 0
    preemptions: int = 0
    _requeues: dict[int, int] = field(default_factory=dict)
    _preemptions: dict[int, int] = field(default_factory=dict)

    async def look(self, connection: AsyncConnection[Any], seconds: float) -> Snapshot:
        """Read the jobs and note what has changed; `seconds` since the day began."""
        async with connection.cursor(row_factory=class_row(JobRow)) as cursor:
            rows = tuple(await (await cursor.execute(_ROWS, (self.after_id,))).fetchall())
        for row in rows:
            if row.requeue_count > self._requeues.get(row.id, 0):
                self._requeues[row.id] = row.requeue_count
                again = f", next try in {row.due_in:.0f} s" if row.state == "queued" else ""
                what = f"{row.user_id}: {row.kind} (job {row.id}) put back, its agent is locked"
                self.events.append(f"{seconds:5.1f} s  {what}: requeue_count {row.requeue_count}{again}")
            if (more := row.preemptions - self._preemptions.get(row.id, 0)) > 0:
                self.preemptions += more
                what = f"{row.user_id}: {row.kind} (job {row.id}) makes room for job {row.preempted_by}"
                self.events.append(f"{seconds:5.1f} s  {what}, a write")
            self._preemptions[row.id] = row.preemptions
        snapshot = Snapshot(seconds, self.entries, self.fed, rows, tuple(self.events))
        self.most_running = max(self.most_running, len(snapshot.running))
        return snapshot
