"""`Archibald`: the user's object, and the place where the parts are put together.

Owns: the app's operations and its connection to the database, opened at the first use. Must not: hold SQL, or run handlers itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from archibald_pgq import config
from archibald_pgq.domain.backoff import Backoff
from archibald_pgq.domain.evidence import Evidence
from archibald_pgq.domain.explanation import Explanation
from archibald_pgq.domain.job import JobRecord
from archibald_pgq.domain.new_job import NewJob
from archibald_pgq.domain.states import State
from archibald_pgq.domain.views import AgentRecord, ClassStats, WorkerRecord
from archibald_pgq.errors import NotPermittedError
from archibald_pgq.handle import Job
from archibald_pgq.runtime.registry import Handler, Login, Valid, declared_policy
from archibald_pgq.source import Source, forget_after_fork
from archibald_pgq.store import commands, enqueues, evidence, reads
from archibald_pgq.store.client import CallerConnection, Client
from archibald_pgq.store.request import Request
from archibald_pgq.store.target import Target
from archibald_pgq.sync import SyncArchibald

if TYPE_CHECKING:
    from archibald_pgq.runtime.worker import Worker

try:
    VERSION = version("archibald-pgq")
except PackageNotFoundError:  # run from a checkout that was never installed
    VERSION = "0+unknown"

H = TypeVar("H", bound=Handler)
L = TypeVar("L", bound=Login)
V = TypeVar("V", bound=Valid)
T = TypeVar("T")


class Archibald:
    """A queue: declare operations on it, enqueue jobs with it, give it to `archibald-pgq run`.

    Args:
        database_url: the database; None takes ARCHIBALD_DATABASE_URL, else DATABASE_URL, else the embedded Postgres.
    """

    def __init__(self, database_url: str | None = None) -> None:
        """Nothing is opened and no setting is read before the first use."""
        self._source = Source(database_url)
        self._client: Client | None = None
        self._declared = 0
        """How many of the app's kinds have their rows."""
        self._opening = asyncio.Lock()
        forget_after_fork(self)

    @property
    def database_url(self) -> str | None:
        """The database that this app was made with, if any."""
        return self._source.database_url

    @property
    def kinds(self) -> list[str]:
        """The kinds that this app has handlers for, sorted."""
        return self._source.registry.kinds()

    @property
    def settings(self) -> config.Settings:
        """The settings of this process, read once.

        Raises:
            ConfigError: one of them is not allowed.
        """
        return self._source.settings

    @cached_property
    def sync(self) -> SyncArchibald:
        """The same queue for synchronous code: Flask, Django, scripts, threads."""
        return SyncArchibald(self._source)

    def operation(
        self,
        kind: str,
        *,
        job_class: str | None = None,
        priority: int | None = None,
        timeout: float | None = None,
        max_attempts: int | None = None,
        backoff: Backoff | None = None,
        idempotent: bool | None = None,
        needs_browser: bool = False,
    ) -> Callable[[H], H]:
        """Register the decorated `async def handler(ctx, data)` for a kind.

        With no policy argument, a kind keeps the policy that the database has for it (the catalogue's kinds have one), and takes the
        defaults where it has none. With any, this app declares the kind's policy: its row of `archibald.operations` is written when
        the app first uses the database.

        Args:
            kind: 1 to 100 of a-z, 0-9, '.', '_', ':' and '-'.
            job_class: "write" (default), "read" or "sync".
            priority: lower runs first, 0 to 32767; default 100.
            timeout: seconds that a handler may run; default 120.
            max_attempts: attempts in all; default 1.
            backoff: the wait between attempts, `Backoff.fixed(5)` or `Backoff.exponential(30)`; default none.
            idempotent: an interrupted write may simply be run again; default False.
            needs_browser: the handler drives a browser, see `JobContext.page`; a worker of this app then keeps a pool of contexts, and
                needs the extra `archibald-pgq[browser]`. No part of the policy.

        Raises:
            ConfigError: an argument is out of its range, or the kind has a handler already.
        """
        policy = declared_policy(
            kind,
            job_class=job_class,
            priority=priority,
            timeout=timeout,
            max_attempts=max_attempts,
            backoff=backoff,
            idempotent=idempotent,
        )

        def register(handler: H) -> H:
            self._source.registry.add(kind, handler, policy, needs_browser=needs_browser)
            return handler

        return register

    def login(self, function: L) -> L:
        """Register the decorated coroutine function of `(ctx, page)`, which logs an agent in where its browser context is new.

        `page` is a new page of that context, `ctx.user_id` the agent. It raises `LoginRefusedError` where the login itself is refused,
        and `UnreachableError` where the system does not answer.
        """
        self._source.registry.login = function
        return function

    def session_valid(self, function: V) -> V:
        """Register what says whether a kept browser context is still logged in: the decorated `async def valid(context) -> bool`.

        Without it one is that has an ASP.NET session cookie, and none that has expired.
        """
        self._source.registry.valid = function
        return function

    async def enqueue(
        self,
        kind: str,
        *,
        user_id: str,
        data: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
        delay: float = 0,
        connection: CallerConnection | None = None,
    ) -> Job:
        """Enqueue a job and return its handle; a duplicate returns the handle of the job that is already there.

        Args:
            kind: the operation.
            user_id: the agent, 1 to 200 characters; its jobs run one at a time.
            data: a JSON object of up to 1 MB, given to the handler unchanged.
            idempotency_key: makes repeated requests of this agent one job while it is live, and for 30 s after its enqueue
                (ARCHIBALD_DEDUP_WINDOW); not if it failed or was cancelled.
            delay: seconds before which it must not run.
            connection: a psycopg `AsyncConnection`, or SQLAlchemy `AsyncConnection`, `AsyncSession` or `async_scoped_session`: the job is
                then part of its transaction, and appears with its commit.

        Raises:
            InvalidJobError: an argument is not allowed; UnknownKindError: the kind has no policy in the database.
            AgentBacklogError: the agent has ARCHIBALD_AGENT_BACKLOG queued jobs already.
            DatabaseError, SchemaError: the database cannot be used.
        """
        request = enqueues.enqueue(
            kind,
            self._source.limits,
            user_id=user_id,
            data={} if data is None else data,
            idempotency_key=idempotency_key,
            delay=delay,
        )
        return self._handle(await self._ask(request, connection))

    async def enqueue_many(self, jobs: Sequence[NewJob], *, connection: CallerConnection | None = None) -> list[Job]:
        """Enqueue jobs in one statement, all or none, and return their handles in the same order.

        A duplicate, also of another one of them, gets the handle of the job that is already there. Jobs of one agent keep their order.

        Args:
            jobs: what to enqueue; see `NewJob`.
            connection: see `enqueue`.

        Raises:
            InvalidJobError: something of a job is not allowed (the text says which, from 1), or they are over 256 MB in all.
            UnknownKindError, AgentBacklogError, DatabaseError, SchemaError: see `enqueue`.
        """
        return [
            self._handle(job_id)
            for job_id in await self._ask(enqueues.enqueue_many(jobs, self._source.limits), connection)
        ]

    async def job(self, job_id: int) -> JobRecord:
        """Return a job, live or finished.

        Raises:
            UnknownJobError: there is none with this id.
            DatabaseError, SchemaError: the database cannot be used.
        """
        return await self._ask(reads.job(job_id))

    async def jobs(
        self,
        *,
        user_id: str | None = None,
        state: State | None = None,
        kind: str | None = None,
        retried_from: int | None = None,
        limit: int = 50,
    ) -> list[JobRecord]:
        """Return the newest jobs, live and finished, newest first; at most `limit`, which is 1 to 10,000.

        `retried_from` selects the jobs as which this one was run again.

        Raises:
            InvalidJobError, UnknownJobError: a filter is something that no job can have.
            DatabaseError, SchemaError: the database cannot be used.
        """
        return await self._ask(reads.jobs(user_id, state, kind, retried_from, limit))

    async def explain(self, job_id: int) -> Explanation:
        """Say in one sentence why a job is not running, and what it waits for next.

        Raises:
            UnknownJobError, DatabaseError, SchemaError: see `job`.
        """
        return await self._ask(reads.explain(job_id))

    async def review(self, *, limit: int = 50) -> list[JobRecord]:
        """Return the jobs that need a person, the oldest first: writes that may or may not have happened.

        Raises:
            InvalidJobError, DatabaseError, SchemaError: see `jobs`.
        """
        return await self._ask(reads.review(limit))

    async def agents(self, *, limit: int = 50) -> list[AgentRecord]:
        """Return what each agent is doing, busy ones first; agents with nothing to do are left out.

        Raises:
            InvalidJobError, DatabaseError, SchemaError: see `jobs`.
        """
        return await self._ask(reads.agents(limit))

    async def stats(self) -> list[ClassStats]:
        """Return how many jobs of each class there are of each sort.

        Raises:
            DatabaseError, SchemaError: the database cannot be used.
        """
        return await self._ask(reads.stats())

    async def workers(self, *, limit: int = 50) -> list[WorkerRecord]:
        """Return the workers, those that are alive first.

        Raises:
            InvalidJobError, DatabaseError, SchemaError: see `jobs`.
        """
        return await self._ask(reads.workers(limit))

    async def cancel(self, job_id: int) -> str:
        """Cancel a job, wherever it is.

        Returns:
            "cancelled" (it waited), "requested" (it runs; its worker stops it within a second), or "already"
            with the state in which it had ended before, such as "already completed".

        Raises:
            UnknownJobError: there is none with this id.
            DatabaseError, SchemaError: the database cannot be used.
        """
        return await self._ask(commands.cancel(job_id))

    async def retry(self, job_id: int) -> Job:
        """Run a job again, and return the handle of the job that does it.

        One that needs review is queued again itself. Of one that failed or was cancelled a new job is made, with the same data and key,
        whose `retried_from` names it; while such a job is live, it is returned instead of a second one.

        Raises:
            JobStateError: it completed, or is queued or running: there is nothing to retry.
            UnknownJobError, DatabaseError, SchemaError: see `cancel`.
        """
        return self._handle(await self._ask(commands.retry(job_id)))

    async def evidence(self, job_id: int) -> list[Evidence]:
        """Return what failed runs of a job last saw in their browser, the newest first, at most five.

        Raises:
            UnknownJobError: it is no id.
            DatabaseError, SchemaError: the database cannot be used.
        """
        return await self._ask(evidence.of_job(job_id))

    async def discard(self, job_id: int) -> None:
        """Put away a job that needs review: it ends as cancelled, and its key is free again.

        Raises:
            JobStateError: it needs no review.
            UnknownJobError, DatabaseError, SchemaError: see `cancel`.
        """
        await self._ask(commands.discard(job_id))

    async def pause_agent(self, user_id: str, *, reason: str | None = None) -> None:
        """Pause an agent until it is resumed: its queued jobs wait, a running one ends.

        Raises:
            UnknownAgentError: it never had a job.
            InvalidJobError, DatabaseError, SchemaError: see `jobs`; a reason has 1 to 500 characters.
        """
        await self._ask(commands.pause(user_id, reason))

    async def resume_agent(self, user_id: str) -> bool:
        """Let a paused agent go on; False if it was not paused.

        Raises:
            UnknownAgentError, InvalidJobError, DatabaseError, SchemaError: see `pause_agent`.
        """
        return await self._ask(commands.resume(user_id))

    async def worker(self) -> Worker:
        """Return a worker for this app's operations; `archibald-pgq run` is what usually calls it."""
        from archibald_pgq.runtime.worker import Worker  # who only enqueues need not wait for it

        return Worker(self._source.registry, await self._open(), self.settings, VERSION)

    def use(self, target: Target) -> None:
        """Use an opened database instead of looking for one; before the first use only."""
        self._source.use(target)

    def _handle(self, job_id: int) -> Job:
        return Job(job_id, self.job)

    async def _ask(self, request: Request[T], connection: CallerConnection | None = None) -> T:
        client = self._client
        if client is None or self._declared != len(self._source.registry):
            client = await self._open()
        return await client.ask(request, connection)

    async def _open(self) -> Client:
        async with self._opening:
            if self._client is None:
                client = Client(await asyncio.to_thread(self._source.dsn, self))
                try:
                    await client.check()
                except BaseException:
                    await client.close()
                    raise
                self._client = client
            # before the first enqueue of such a kind, and on a connection of our own: not part of a caller's transaction
            count = len(self._source.registry)
            for kind, policy in self._source.registry.declared(self._declared):
                with suppress(NotPermittedError):  # a role that may only enqueue leaves it to the workers
                    await self._client.ask(commands.declare(kind, policy))
            self._declared = count
            return self._client

    async def close(self) -> None:
        """Close the connections, also those of `sync`; the embedded server stops when nobody else uses it."""
        if self._client is not None:
            await self._client.close()
        self._client = None
        self._declared = 0
        await asyncio.to_thread(self.sync.close)
        await asyncio.to_thread(self._source.close, self)

    def _forget(self) -> None:
        """In a forked child: the connections are the parent's; see `Inherited`."""
        self._client = None
        self._declared = 0
        self._opening = asyncio.Lock()

    async def __aenter__(self) -> Archibald:
        """Use as an async context manager."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        await self.close()
