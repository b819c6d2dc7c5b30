"""A job as it is read: a row of `archibald.all_jobs`, and a job as it was claimed."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from archibald_pgq.domain.operations import JobClass, Policy
from archibald_pgq.domain.states import TERMINAL, State


@dataclass(frozen=True, slots=True)
class JobRecord:
    """A job as a person sees it, live or finished; the fields are the columns of `archibald.all_jobs`."""

    id: int
    user_id: str
    kind: str
    job_class: JobClass
    state: State
    wait_reason: str | None
    priority: int
    run_after: datetime
    requeue_count: int
    losses: int
    attempt: int
    max_attempts: int
    idempotency_key: str | None
    payload: dict[str, Any]
    progress: int | None
    progress_label: str | None
    result: Any
    error: str | None
    worker_id: int | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    retried_from: int | None
    preempt_requested_at: datetime | None
    preempted_by: int | None
    preemptions: int

    @property
    def finished(self) -> bool:
        """True in a terminal state."""
        return self.state in TERMINAL


class ClaimedJob(NamedTuple):
    """A job that this worker owns: what its handler gets, and what its settle must name.

    It carries no requeue_count: that number is for people, and no handler may come to depend on it.
    """

    lane: int
    epoch: int
    job_id: int
    user_id: str
    kind: str
    attempt: int
    """The number of this attempt; 1 is the first."""
    max_attempts: int
    payload: dict[str, Any]
    policy: Policy
    saved_state: Any = None
    """What an earlier run of this sync saved."""
    marked: bool = True
    """Its row says that it runs. Jobs of a turn of several have mostly ended before anybody could look."""
