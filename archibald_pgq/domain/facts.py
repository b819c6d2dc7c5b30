"""What is known about one job and about what it may wait for; `domain.explanation` makes a sentence of it.

Owns: the names, which are the columns of `store/sql/explain.sql`. Must not: judge.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from archibald_pgq.domain.operations import JobClass
from archibald_pgq.domain.states import State


@dataclass(frozen=True, slots=True)
class Facts:
    """What the database knows about a job and about what it may wait for; counts go up to 1001.

    Attributes:
        now: the database's time of the look.
        id, user_id, kind, job_class, state, due, wait_reason, run_after, attempt, max_attempts, losses, error, finished_at,
            cancel_requested_at:
            the job.
        runs_alone: one more loss would fail it.
        retried_as: the job that a person had run in its place.
        agent_known: its agent has a lane; looked_at: a worker has put the job into it, and the lane is not idle.
        paused, paused_until, paused_reason: its agent is paused; until None: until somebody resumes it.
        ready_at: from when on its agent may be taken.
        running_id, running_kind, running_since, preempt_requested_at: what its agent runs.
        worker_id, host, pid, silent_since: the worker that runs it, or that ran the job last; silent: for longer than its lease.
        retry_at: the end of the pause of its agent, whose lock was taken.
        refused_id, refused_kind, refused_until, requeue_count: the job of its agent that was requeued, for that or behind a
            sync that does not make room.
        holder_pid, holder_application, holder_address, holder_since: the session that holds its agent's lock.
        row_holder_pid, row_holder_application, row_holder_since: the session whose open transaction holds the job's row, its agent's, or
            that of the agent's first job; since when that transaction is open.
        first_id, first_kind: the due job of its agent that goes first; jobs_before: how many go before this one.
        agents_before: ready agents that go before its own.
        breaker_failures, breaker_reason, breaker_until: it is a sync that failed so often in a row for its agent, and is left alone.
        live_workers: all; able_workers: those of them that handle its kind; consumers, sync_consumers: how many of theirs there are, and
            syncs may use.
        free_workers, free_for_syncs: able workers with a consumer for it that is free.
    """

    now: datetime
    id: int
    user_id: str
    kind: str
    job_class: JobClass
    state: State
    due: bool
    wait_reason: str | None
    run_after: datetime
    attempt: int
    max_attempts: int
    losses: int
    runs_alone: bool
    error: str | None
    finished_at: datetime | None
    cancel_requested_at: datetime | None
    retried_as: int | None
    agent_known: bool
    looked_at: bool
    paused: bool
    paused_until: datetime | None
    paused_reason: str | None
    ready_at: datetime | None
    running_id: int | None
    running_kind: str | None
    running_since: datetime | None
    preempt_requested_at: datetime | None
    worker_id: int | None
    host: str | None
    pid: int | None
    silent_since: datetime | None
    retry_at: datetime | None
    refused_id: int | None
    refused_kind: str | None
    refused_until: datetime | None
    requeue_count: int | None
    holder_pid: int | None
    holder_application: str | None
    holder_address: str | None
    holder_since: datetime | None
    row_holder_pid: int | None
    row_holder_application: str | None
    row_holder_since: datetime | None
    first_id: int | None
    first_kind: str | None
    jobs_before: int
    agents_before: int
    breaker_failures: int | None
    breaker_reason: str | None
    breaker_until: datetime | None
    live_workers: int
    able_workers: int
    consumers: int
    sync_consumers: int
    free_workers: int
    free_for_syncs: int
