"""`Archibald`: the user's object, and the place where the parts are put together.

Owns: the app's operations and its connection to the database, opened at the first use. Must not: hold SQL, or run handlers itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from types import TracebackType
from typing import Any, TypeVar

from archibald_pgq import config
from archibald_pgq.domain.backoff import Backoff
from archibald_pgq.domain.job import JobRecord
from archibald_pgq.domain.operations import JobClass, Policy
from archibald_pgq.domain.payload import (
    check_delay,
    check_job_id,
    check_key,
    check_kind,
    check_limit,
    check_payload,
    check_state,
    check_user_id,
)
from archibald_pgq.domain.states import State
from archibald_pgq.errors import ConfigError, UnknownJobError
from archibald_pgq.handle import Job
from archibald_pgq.runtime.registry import Handler, Registry
from archibald_pgq.runtime.worker import Worker
from archibald_pgq.store.client import CallerConnection, Client
from archibald_pgq.store.reads import job_by_id, newest_jobs
from archibald_pgq.store.target import Target, open_target

try:
    VERSION = version("archibald-pgq")
except PackageNotFoundError:  # run from a checkout that was never installed
    VERSION = "0+unknown"

H = TypeVar("H", bound=Handler)


class Archibald:
    """A queue: declare operations on it, enqueue jobs with it, give it to `archibald-pgq run`.

    Args:
        database_url: the database; None takes ARCHIBALD_DATABASE_URL, else DATABASE_URL, else the embedded Postgres.
    """

    def __init__(self, database_url: str | None = None) -> None:
        """Nothing is opened and no setting is read before the first use."""
        self._database_url = database_url
        self._settings: config.Settings | None = None
        self._registry = Registry()
        self._declared: set[str] = set()
        self._target: Target | None = None
        self._client: Client | None = None
        self._checked = False
        self._opening = asyncio.Lock()

    @property
    def database_url(self) -> str | None:
        """The database that this app was made with, if any."""
        return self._database_url

    @property
    def kinds(self) -> list[str]:
        """The kinds that this app has handlers for, sorted."""
        return self._registry.kinds()

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

        Raises:
            ConfigError: an argument is out of its range, or the kind has a handler already.
        """
        given = {
            "job_class": job_class,
            "priority": priority,
            "timeout": timeout,
            "max_attempts": max_attempts,
            "backoff": backoff,
            "idempotent": idempotent,
        }
        chosen: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        policy = None
        if chosen:
            try:
                if job_class is not None:
                    chosen["job_class"] = JobClass(job_class)
                policy = Policy(**chosen)
            except ValueError as error:
                raise ConfigError(f"the operation {kind!r} cannot be registered: {error}") from None

        def register(handler: H) -> H:
            self._registry.add(kind, handler, policy)
            return handler

        return register

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
            connection: a psycopg `AsyncConnection`, or SQLAlchemy `AsyncConnection` or `AsyncSession`: the job is then part of its
                transaction, and appears with its commit.

        Raises:
            InvalidJobError: an argument is not allowed; UnknownKindError: the kind has no policy in the database.
            DatabaseError, SchemaError: the database cannot be used.
        """
        payload = check_payload({} if data is None else data)
        kind, user_id, delay = check_kind(kind), check_user_id(user_id), check_delay(delay)
        key = None if idempotency_key is None else check_key(idempotency_key)
        client = await self._open()
        job_id = await client.enqueue(
            user_id=user_id,
            kind=kind,
            payload=payload,
            key=key,
            delay=delay,
            window=self.settings.dedup_window,
            connection=connection,
        )
        return Job(job_id, self.job)

    async def job(self, job_id: int) -> JobRecord:
        """Return a job, live or finished.

        Raises:
            UnknownJobError: there is none with this id.
            DatabaseError, SchemaError: the database cannot be used.
        """
        job_id = check_job_id(job_id)
        client = await self._open()
        records = await client.records(job_by_id(job_id))
        if not records:
            raise UnknownJobError(f"there is no job {job_id}; `archibald-pgq jobs` lists the newest")
        return records[0]

    async def jobs(
        self, *, user_id: str | None = None, state: State | None = None, kind: str | None = None, limit: int = 50
    ) -> list[JobRecord]:
        """Return the newest jobs, live and finished, newest first; at most `limit`, which is 1 to 10,000.

        Raises:
            InvalidJobError: a filter is something that no job can have.
            DatabaseError, SchemaError: the database cannot be used.
        """
        user_id = None if user_id is None else check_user_id(user_id)
        state = None if state is None else check_state(state)
        kind = None if kind is None else check_kind(kind)
        limit = check_limit(limit)
        client = await self._open()
        return await client.records(newest_jobs(user_id, state, kind, limit))

    async def cancel(self, job_id: int) -> str:
        """Cancel a job, wherever it is.

        Returns:
            "cancelled" (it waited), "requested" (it runs; its worker stops it within a second), or "already"
            with the state in which it had ended before, such as "already completed".

        Raises:
            UnknownJobError: there is none with this id.
            DatabaseError, SchemaError: the database cannot be used.
        """
        job_id = check_job_id(job_id)
        client = await self._open()
        answer = await client.cancel(job_id)
        if answer is None:
            raise UnknownJobError(f"there is no job {job_id}; `archibald-pgq jobs` lists the newest")
        return answer

    @property
    def settings(self) -> config.Settings:
        """The settings of this process, read once.

        Raises:
            ConfigError: one of them is not allowed.
        """
        if self._settings is None:
            self._settings = config.load()
        return self._settings

    async def worker(self) -> Worker:
        """Return a worker for this app's operations; `archibald-pgq run` is what usually calls it."""
        return Worker(self._registry, await self._open(), self.settings, VERSION)

    def use(self, target: Target) -> None:
        """Use an opened database instead of looking for one; before the first use only."""
        self._target = target

    async def _open(self) -> Client:
        async with self._opening:
            if self._client is None:
                if self._target is None:
                    self._target = await asyncio.to_thread(open_target, self._database_url, self.settings)
                self._client = Client(self._target.dsn)
            if not self._checked:
                await self._client.check()
                self._checked = True
            # before the first enqueue of such a kind, and on a connection of our own: not part of a caller's transaction
            for kind, policy in self._registry.declared():
                if kind not in self._declared:
                    await self._client.declare(kind, policy or Policy(), default=policy is None)
                    self._declared.add(kind)
            return self._client

    async def close(self) -> None:
        """Close the connections; the embedded server stops when nobody else uses it."""
        if self._client is not None:
            await self._client.close()
        if self._target is not None:
            await asyncio.to_thread(self._target.close)
        self._client = self._target = None
        self._checked = False
        self._declared.clear()

    async def __aenter__(self) -> Archibald:
        """Use as an async context manager."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        await self.close()
