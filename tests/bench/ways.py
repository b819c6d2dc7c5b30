"""Every way into the queue, each as something that enqueues for given agents and commits, or rolls back."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from sqlalchemy import create_engine, make_url
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from archibald_pgq import Archibald, NewJob
from tests import node
from tests.commands import CHECKOUT, environment

KIND = "submit-order"

Enqueue = Callable[[list[str], bool], Awaitable[None]]
"""Enqueues a job for each of these agents in one transaction; True: and commits it, else rolls it back."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where it all happens."""

    database: str
    psql: Path
    folder: Path

    @property
    def url(self) -> str:
        """The database for SQLAlchemy."""
        return make_url(self.database).set(drivername="postgresql+psycopg").render_as_string(hide_password=False)


@dataclass(frozen=True, slots=True)
class Way:
    """One way in.

    Attributes:
        name: what it is.
        open: yields what enqueues.
        at_once: jobs of one transaction.
        transaction: whether it can be rolled back.
        at_most: transactions in all; for one that takes long.
    """

    name: str
    open: Callable[[Place], AbstractAsyncContextManager[Enqueue]]
    at_once: int = 1
    transaction: bool = True
    at_most: int = 1_000_000


@asynccontextmanager
async def own_async(place: Place) -> AsyncIterator[Enqueue]:
    """`await app.enqueue(…)`."""
    async with Archibald(place.database) as app:

        async def enqueue(users: list[str], commit: bool) -> None:
            await app.enqueue(KIND, user_id=users[0])

        yield enqueue


@asynccontextmanager
async def many(place: Place) -> AsyncIterator[Enqueue]:
    """`await app.enqueue_many(…)`."""
    async with Archibald(place.database) as app:

        async def enqueue(users: list[str], commit: bool) -> None:
            await app.enqueue_many([NewJob(KIND, user_id=user) for user in users])

        yield enqueue


@asynccontextmanager
async def psycopg_async(place: Place) -> AsyncIterator[Enqueue]:
    """A caller's `psycopg.AsyncConnection`."""
    async with Archibald(place.database) as app, await psycopg.AsyncConnection.connect(place.database) as connection:

        async def enqueue(users: list[str], commit: bool) -> None:
            await app.enqueue(KIND, user_id=users[0], connection=connection)
            await (connection.commit() if commit else connection.rollback())

        yield enqueue


@asynccontextmanager
async def session_async(place: Place) -> AsyncIterator[Enqueue]:
    """A caller's `AsyncSession`."""
    engine = create_async_engine(place.url)
    async with Archibald(place.database) as app, AsyncSession(engine) as session:

        async def enqueue(users: list[str], commit: bool) -> None:
            await app.enqueue(KIND, user_id=users[0], connection=session)
            await (session.commit() if commit else session.rollback())

        yield enqueue
    await engine.dispose()


@asynccontextmanager
async def own_sync(place: Place) -> AsyncIterator[Enqueue]:
    """`app.sync.enqueue(…)`."""
    with Archibald(place.database).sync as queue:

        async def enqueue(users: list[str], commit: bool) -> None:
            await asyncio.to_thread(queue.enqueue, KIND, user_id=users[0])

        yield enqueue


@asynccontextmanager
async def psycopg_sync(place: Place) -> AsyncIterator[Enqueue]:
    """A caller's `psycopg.Connection`."""
    with Archibald(place.database).sync as queue, psycopg.connect(place.database) as connection:

        def act(user: str, commit: bool) -> None:
            queue.enqueue(KIND, user_id=user, connection=connection)
            if commit:
                connection.commit()
            else:
                connection.rollback()

        async def enqueue(users: list[str], commit: bool) -> None:
            await asyncio.to_thread(act, users[0], commit)

        yield enqueue


@asynccontextmanager
async def session_sync(place: Place) -> AsyncIterator[Enqueue]:
    """A caller's `Session`."""
    engine = create_engine(place.url)
    with Archibald(place.database).sync as queue, Session(engine) as session:

        def act(user: str, commit: bool) -> None:
            queue.enqueue(KIND, user_id=user, connection=session)
            if commit:
                session.commit()
            else:
                session.rollback()

        async def enqueue(users: list[str], commit: bool) -> None:
            await asyncio.to_thread(act, users[0], commit)

        yield enqueue
    engine.dispose()


@asynccontextmanager
async def shell(place: Place) -> AsyncIterator[Enqueue]:
    """`archibald-pgq enqueue`, a process for each."""

    async def enqueue(users: list[str], commit: bool) -> None:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "archibald_pgq", "enqueue", KIND, users[0]),
            cwd=CHECKOUT,
            env=environment(place.database),
            stdout=asyncio.subprocess.DEVNULL,
        )
        assert await process.wait() == 0

    yield enqueue


@asynccontextmanager
async def _lines(command: list[str], env: dict[str, str]) -> AsyncIterator[Callable[[str], Awaitable[None]]]:
    """Run a program that takes lines until its input ends."""
    process = await asyncio.create_subprocess_exec(
        *command, env=env, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.DEVNULL
    )
    assert process.stdin is not None

    async def send(line: str) -> None:
        assert process.stdin is not None
        process.stdin.write(line.encode() + b"\n")
        await process.stdin.drain()

    yield send
    process.stdin.close()
    assert await process.wait() == 0


def in_psql(statement: str) -> Callable[[Place], AbstractAsyncContextManager[Enqueue]]:
    """Return the way of a statement that is typed in psql, with {user} in it."""

    @asynccontextmanager
    async def opened(place: Place) -> AsyncIterator[Enqueue]:
        command = [str(place.psql), "-XqAt", "-v", "ON_ERROR_STOP=1", place.database]
        async with _lines(command, environment()) as send:

            async def enqueue(users: list[str], commit: bool) -> None:
                typed = statement.format(user=users[0])
                await send(typed if commit else f"BEGIN; {typed} ROLLBACK;")

            yield enqueue

    return opened


@asynccontextmanager
async def node_pg(place: Place) -> AsyncIterator[Enqueue]:
    """Node's `pg`: BEGIN, INSERT, COMMIT."""
    await asyncio.to_thread(node.install, place.folder)
    async with _lines(*node.command(place.folder, place.database)) as send:

        async def enqueue(users: list[str], commit: bool) -> None:
            job: dict[str, Any] = {"user_id": users[0], "kind": KIND, "payload": {}, "rollback": not commit}
            await send(json.dumps(job))

        yield enqueue


@asynccontextmanager
async def copy(place: Place) -> AsyncIterator[Enqueue]:
    """COPY."""
    async with await psycopg.AsyncConnection.connect(place.database) as connection:

        async def enqueue(users: list[str], commit: bool) -> None:
            async with (
                connection.cursor() as cursor,
                cursor.copy("COPY archibald.jobs (user_id, kind) FROM STDIN") as rows,
            ):
                for user in users:
                    await rows.write_row((user, KIND))
            await (connection.commit() if commit else connection.rollback())

        yield enqueue


INSERT = "INSERT INTO archibald.jobs (user_id, kind) VALUES ('{user}', '" + KIND + "');"
FUNCTION = "SELECT archibald.enqueue('{user}', '" + KIND + "');"

WAYS = [
    Way("app.enqueue", own_async, transaction=False),
    Way("app.enqueue, psycopg AsyncConnection", psycopg_async),
    Way("app.enqueue, SQLAlchemy AsyncSession", session_async),
    Way("app.sync.enqueue", own_sync, transaction=False),
    Way("app.sync.enqueue, psycopg Connection", psycopg_sync),
    Way("app.sync.enqueue, SQLAlchemy Session", session_sync),
    Way("app.enqueue_many, 10 at once", many, at_once=10, transaction=False),
    Way("archibald-pgq enqueue", shell, transaction=False, at_most=20),
    Way("INSERT in psql", in_psql(INSERT)),
    Way("archibald.enqueue() in psql", in_psql(FUNCTION)),
    Way("INSERT from Node's pg", node_pg),
    Way("COPY, 10 at once", copy, at_once=10),
]
