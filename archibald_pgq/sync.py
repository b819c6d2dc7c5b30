"""`SyncArchibald`: the queue for synchronous code, reached as `app.sync`.

Owns: the connections of the synchronous side, opened at the first use; threads may share it, and a forked child opens its own.
Guarantees: a method does what the method of the same name of `Archibald` does, with the same arguments and errors, and takes synchronous
connections where that takes asynchronous ones. Must not: hold SQL, or start a thread or an event loop.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, TypeVar

from archibald_pgq.domain.evidence import Evidence
from archibald_pgq.domain.explanation import Explanation
from archibald_pgq.domain.job import JobRecord
from archibald_pgq.domain.new_job import NewJob
from archibald_pgq.domain.states import State
from archibald_pgq.domain.views import AgentRecord, ClassStats, WorkerRecord
from archibald_pgq.errors import NotPermittedError
from archibald_pgq.handle import SyncJob
from archibald_pgq.source import Source, forget_after_fork
from archibald_pgq.store import commands, enqueues, evidence, reads
from archibald_pgq.store.client import SyncCallerConnection, SyncClient
from archibald_pgq.store.request import Request

T = TypeVar("T")


class SyncArchibald:
    """An app's queue for synchronous code."""

    def __init__(self, source: Source) -> None:
        """Made by `Archibald.sync`; nothing is opened before the first use."""
        self._source = source
        self._client: SyncClient | None = None
        self._declared = 0
        """How many of the app's kinds have their rows."""
        self._opening = threading.Lock()
        forget_after_fork(self)

    def enqueue(
        self,
        kind: str,
        *,
        user_id: str,
        data: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
        delay: float = 0,
        connection: SyncCallerConnection | None = None,
    ) -> SyncJob:
        """Enqueue a job; see `Archibald.enqueue`.

        `connection` is a psycopg `Connection`, or SQLAlchemy `Connection`, `Session` or `scoped_session`: the job is then part of its
        transaction, and appears with its commit.
        """
        request = enqueues.enqueue(
            kind,
            self._source.limits,
            user_id=user_id,
            data={} if data is None else data,
            idempotency_key=idempotency_key,
            delay=delay,
        )
        return self._handle(self._ask(request, connection))

    def enqueue_many(self, jobs: Sequence[NewJob], *, connection: SyncCallerConnection | None = None) -> list[SyncJob]:
        """Enqueue jobs in one statement; see `Archibald.enqueue_many`."""
        request = enqueues.enqueue_many(jobs, self._source.limits)
        return [self._handle(job_id) for job_id in self._ask(request, connection)]

    def wait(self, job: SyncJob | int, timeout: float | None = None) -> Any:
        """Wait until a job, or the job with this id, has finished and return the handler's result; see `Job.wait`."""
        return (job if isinstance(job, SyncJob) else self._handle(job)).wait(timeout)

    def job(self, job_id: int) -> JobRecord:
        """Return a job; see `Archibald.job`."""
        return self._ask(reads.job(job_id))

    def jobs(
        self,
        *,
        user_id: str | None = None,
        state: State | None = None,
        kind: str | None = None,
        retried_from: int | None = None,
        limit: int = 50,
    ) -> list[JobRecord]:
        """Return the newest jobs; see `Archibald.jobs`."""
        return self._ask(reads.jobs(user_id, state, kind, retried_from, limit))

    def explain(self, job_id: int) -> Explanation:
        """Say why a job is not running; see `Archibald.explain`."""
        return self._ask(reads.explain(job_id))

    def review(self, *, limit: int = 50) -> list[JobRecord]:
        """Return the jobs that need a person; see `Archibald.review`."""
        return self._ask(reads.review(limit))

    def agents(self, *, limit: int = 50) -> list[AgentRecord]:
        """Return what each agent is doing; see `Archibald.agents`."""
        return self._ask(reads.agents(limit))

    def stats(self) -> list[ClassStats]:
        """Return how many jobs of each class there are of each sort."""
        return self._ask(reads.stats())

    def workers(self, *, limit: int = 50) -> list[WorkerRecord]:
        """Return the workers; see `Archibald.workers`."""
        return self._ask(reads.workers(limit))

    def cancel(self, job_id: int) -> str:
        """Cancel a job; see `Archibald.cancel`."""
        return self._ask(commands.cancel(job_id))

    def retry(self, job_id: int) -> SyncJob:
        """Run a job again; see `Archibald.retry`."""
        return self._handle(self._ask(commands.retry(job_id)))

    def evidence(self, job_id: int) -> list[Evidence]:
        """Return what failed runs of a job last saw in their browser; see `Archibald.evidence`."""
        return self._ask(evidence.of_job(job_id))

    def discard(self, job_id: int) -> None:
        """Put away a job that needs review; see `Archibald.discard`."""
        self._ask(commands.discard(job_id))

    def pause_agent(self, user_id: str, *, reason: str | None = None) -> None:
        """Pause an agent; see `Archibald.pause_agent`."""
        self._ask(commands.pause(user_id, reason))

    def resume_agent(self, user_id: str) -> bool:
        """Let a paused agent go on; see `Archibald.resume_agent`."""
        return self._ask(commands.resume(user_id))

    def close(self) -> None:
        """Close the connections of this side; the embedded server stops when nobody else uses it. A further use opens new ones."""
        with self._opening:
            if self._client is not None:
                self._client.close()
            self._client = None
            self._declared = 0
            self._source.close(self)

    def _forget(self) -> None:
        """In a forked child: the connections are the parent's; see `Inherited`."""
        self._client = None
        self._declared = 0
        self._opening = threading.Lock()

    def __enter__(self) -> SyncArchibald:
        """Use as a context manager."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()

    def _handle(self, job_id: int) -> SyncJob:
        return SyncJob(job_id, self.job)

    def _ask(self, request: Request[T], connection: SyncCallerConnection | None = None) -> T:
        client = self._client
        if client is None or self._declared != len(self._source.registry):
            client = self._open()
        return client.ask(request, connection)

    def _open(self) -> SyncClient:
        with self._opening:
            if self._client is None:
                client = SyncClient(self._source.dsn(self))
                try:
                    client.check()
                except BaseException:
                    client.close()
                    raise
                self._client = client
            # before the first enqueue of such a kind, and on a connection of our own: not part of a caller's transaction
            count = len(self._source.registry)
            for kind, policy in self._source.registry.declared(self._declared):
                with suppress(NotPermittedError):  # a role that may only enqueue leaves it to the workers
                    self._client.ask(commands.declare(kind, policy))
            self._declared = count
            return self._client
