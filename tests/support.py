"""What tests of the queue share: a worker in this process, handlers that tests hold and let go, and looks into the tables.

Nothing here sleeps to make something true: a test waits on an event of a handler, or on a condition in the database (`until`), which has
a deadline only so that a broken promise fails instead of hanging.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import psycopg
from psycopg.rows import tuple_row

from archibald_pgq import Archibald, JobContext
from archibald_pgq.runtime.worker import Worker

PATIENCE = 20.0
"""Seconds after which a condition that never comes true fails a test."""

LOOK_EVERY = 0.01


def with_encoding(database: str, encoding: str) -> str:
    """Return the URL with a client_encoding."""
    return f"{database}{'&' if '?' in database else '?'}client_encoding={encoding}"


class Stage:
    """A handler whose every run a test watches, holds and lets go; it also counts how many run at once, in all and per agent."""

    def __init__(self, *, hold: bool = True) -> None:
        self.hold = hold
        self.started: list[tuple[str, Any]] = []
        """(user_id, the job's data), in the order of the starts."""
        self.contexts: list[JobContext] = []
        self.active: dict[str, int] = {}
        self.most_at_once = 0
        self.most_per_agent = 0
        self._changed = asyncio.Condition()
        self._released: set[str] = set()

    async def __call__(self, ctx: JobContext, data: dict[str, Any]) -> dict[str, Any]:
        async with self._changed:
            self.started.append((ctx.user_id, data))
            self.contexts.append(ctx)
            self.active[ctx.user_id] = self.active.get(ctx.user_id, 0) + 1
            self.most_at_once = max(self.most_at_once, sum(self.active.values()))
            self.most_per_agent = max(self.most_per_agent, *self.active.values())
            self._changed.notify_all()
        try:
            async with self._changed:
                await self._changed.wait_for(lambda: not self.hold or ctx.user_id in self._released)
        finally:
            self.active[ctx.user_id] -= 1
        return {"ran": data}

    async def until_started(self, count: int) -> None:
        """Wait until so many runs have started."""
        async with asyncio.timeout(PATIENCE), self._changed:
            await self._changed.wait_for(lambda: len(self.started) >= count)

    async def let_go(self, *users: str) -> None:
        """Let the runs of these agents end, also those still to come; of all agents if none is named."""
        async with self._changed:
            self._released.update(users)
            self.hold = self.hold and bool(users)
            self._changed.notify_all()

    def users(self) -> list[str]:
        """The agents in the order of the starts."""
        return [user for user, _ in self.started]

    def register(self, app: Archibald, *kinds: str, **policy: Any) -> None:
        """Make this the handler of these kinds."""
        for kind in kinds:

            @app.operation(kind, **policy)
            async def handle(ctx: JobContext, data: dict[str, Any]) -> dict[str, Any]:
                return await self(ctx, data)


@contextlib.asynccontextmanager
async def working(app: Archibald) -> AsyncIterator[Worker]:
    """Run a worker for `app` in this process; it is drained at the end and must end with 0."""
    worker = await app.worker()
    task = asyncio.create_task(worker.run())
    ready = asyncio.create_task(worker.ready.wait())
    await asyncio.wait({task, ready}, timeout=PATIENCE, return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        task.result()
    try:
        yield worker
    finally:
        worker.request_stop()
        async with asyncio.timeout(PATIENCE):
            assert await task == 0


class Look:
    """A connection of a test, in autocommit, for looking and for acting from outside."""

    def __init__(self, connection: psycopg.AsyncConnection[tuple[Any, ...]]) -> None:
        self.connection = connection

    async def rows(self, sql: str, *params: Any) -> list[tuple[Any, ...]]:
        """Run a statement and return its rows."""
        cursor = await self.connection.execute(sql, params or None)
        return await cursor.fetchall() if cursor.description else []

    async def value(self, sql: str, *params: Any) -> Any:
        """Run a statement and return the one value of its one row."""
        rows = await self.rows(sql, *params)
        assert len(rows) == 1, rows
        return rows[0][0]

    async def until(self, sql: str, *params: Any) -> None:
        """Wait until a statement's one value is true."""
        async with asyncio.timeout(PATIENCE):
            while not await self.value(sql, *params):  # noqa: ASYNC110  # a database has no event for this
                await asyncio.sleep(LOOK_EVERY)

    async def until_state(self, job_id: int, state: str) -> None:
        """Wait until a job is in a state."""
        await self.until(
            "SELECT coalesce((SELECT state FROM archibald.all_jobs WHERE id = %s), '') = %s", job_id, state
        )

    async def heard(self) -> str:
        """Return the text of the next notification; `LISTEN archibald` comes first."""
        async with asyncio.timeout(PATIENCE):
            return await anext(notice.payload async for notice in self.connection.notifies())

    async def job(self, job_id: int, *columns: str) -> tuple[Any, ...]:
        """Return columns of a job's row in archibald.all_jobs."""
        (row,) = await self.rows(f"SELECT {', '.join(columns)} FROM archibald.all_jobs WHERE id = %s", job_id)
        return row


@contextlib.asynccontextmanager
async def looking(database: str, **options: Any) -> AsyncIterator[Look]:
    """Open a connection for looking."""
    async with await psycopg.AsyncConnection.connect(
        database, autocommit=True, row_factory=tuple_row, **options
    ) as connection:
        yield Look(connection)
