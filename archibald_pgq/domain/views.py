"""What people look at besides jobs: agents, workers, and how many jobs there are of each sort."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from archibald_pgq.domain.operations import JobClass


class Doing(StrEnum):
    """What an agent is doing, or what keeps it from doing something; the first that is true."""

    RUNNING = "running"
    """One of its jobs runs."""
    PAUSED = "paused"
    """Somebody paused it; its jobs wait."""
    REQUEUED = "requeued"
    """Its lock is held by somebody else; its jobs wait for the next try."""
    WAITING = "waiting"
    """It has a job that could run, and waits for a consumer."""
    DELAYED = "delayed"
    """None of its jobs is due yet."""
    NEEDS_REVIEW = "needs_review"
    """All that is left of it needs a person."""


@dataclass(frozen=True, slots=True)
class LeftAlone:
    """A sync of an agent that has failed again and again, and is not tried for a while.

    Attributes:
        kind: the operation; until: when it is tried again; failures: in a row; reason: the last one's error.
    """

    kind: str
    until: datetime
    failures: int
    reason: str


@dataclass(frozen=True, slots=True)
class AgentRecord:
    """An agent that has something to do, or is paused.

    Attributes:
        user_id: the agent.
        doing: see `Doing`.
        job_id, kind, progress, progress_label, worker_id, since: the job that runs, and since when.
        waiting: its due jobs that are queued; delayed: those not due yet; needs_review: those that need a person.
        waiting_since: since when the oldest due one has waited; due_at: when the first of those not due will be.
        retry_at: when a job whose agent was locked is tried again.
        paused: whether it is paused; paused_until: until when, None if until somebody resumes it.
        paused_reason: what was said when it was paused.
        left_alone: its syncs that are not tried for a while, because they failed.
    """

    user_id: str
    doing: Doing
    job_id: int | None
    kind: str | None
    progress: int | None
    progress_label: str | None
    worker_id: int | None
    since: datetime | None
    waiting: int
    delayed: int
    needs_review: int
    waiting_since: datetime | None
    due_at: datetime | None
    retry_at: datetime | None
    paused: bool
    paused_until: datetime | None
    paused_reason: str | None
    left_alone: list[LeftAlone]


@dataclass(frozen=True, slots=True)
class ClassStats:
    """How many jobs of one class there are of each sort.

    Attributes:
        job_class: the class.
        waiting: queued and due; active: running; delayed: not due yet (a delay, or the wait for a retry).
        requeued: queued, because the agent's lock was taken by somebody else; needs_review: they need a person.
        completed, failed, cancelled: as many as the history still has.
    """

    job_class: JobClass
    waiting: int
    active: int
    delayed: int
    requeued: int
    needs_review: int
    completed: int
    failed: int
    cancelled: int


class Health(StrEnum):
    """Whether a worker is there."""

    ALIVE = "alive"
    SILENT = "silent"
    """No heartbeat for longer than its lease: others are about to take its agents over."""
    LOST = "lost"
    """Its agents were given to others."""
    STOPPED = "stopped"
    """It said goodbye."""


@dataclass(frozen=True, slots=True)
class WorkerRecord:
    """A worker, alive or not; those that ended over a week ago are forgotten.

    Attributes:
        id: the worker; host, pid: its process; version: of archibald-pgq.
        health: see `Health`.
        running: jobs that run in it now, of at most `concurrency`.
        kinds: the operations that it has handlers for.
        started_at: when it registered; beat: its last heartbeat; lease_s: seconds.
        browsers: what its browsers did a heartbeat ago, by the names of `archibald_pgq.browser.PoolStatistics`; None for a
            worker without.
    """

    id: int
    host: str
    pid: int
    version: str
    health: Health
    running: int
    concurrency: int
    kinds: list[str]
    started_at: datetime
    beat: datetime
    lease_s: float
    browsers: dict[str, int] | None
