"""What a worker hears of the database's notifications."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import psycopg
import pytest

from archibald_pgq import Archibald
from archibald_pgq.runtime import listener
from archibald_pgq.store.connect import connect
from tests.support import PATIENCE, Look, Stage, working

MANY = 1000


class Heard:
    """All that `listen` said, and its connections."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.connections: list[psycopg.AsyncConnection[Any]] = []
        self._more = asyncio.Event()

    def __call__(self, text: str) -> None:
        self.texts.append(text)
        self._more.set()

    async def until(self, wanted: Callable[[list[str]], bool]) -> None:
        """Wait until what was heard is as wanted."""
        async with asyncio.timeout(PATIENCE):
            while not wanted(self.texts):
                self._more.clear()
                await self._more.wait()


@asynccontextmanager
async def listening(database: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Heard]:
    heard = Heard()

    async def connecting(conninfo: str) -> psycopg.AsyncConnection[tuple[Any, ...]]:
        made = await connect(conninfo)
        heard.connections.append(made)
        return made

    monkeypatch.setattr(listener, "connect", connecting)
    task = asyncio.create_task(listener.listen(database, heard))
    try:
        await heard.until(lambda texts: "connected" in texts)
        yield heard
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def terminate(look: Look, connection: psycopg.AsyncConnection[Any]) -> None:
    await look.rows(f"SELECT pg_terminate_backend({connection.info.backend_pid}, 5000)")


async def test_every_notification_is_heard_once_and_in_order(
    database: str, look: Look, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with listening(database, monkeypatch) as heard:
        await look.rows(f"SELECT pg_notify('archibald', n::text) FROM generate_series(1, {MANY}) AS n")
        await heard.until(lambda texts: str(MANY) in texts)
        assert heard.texts == ["connected", *(str(n) for n in range(1, MANY + 1))]


async def test_a_lost_connection_is_replaced_and_that_is_told(
    database: str, look: Look, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with listening(database, monkeypatch) as heard:
        for times in (2, 3):
            await terminate(look, heard.connections[-1])
            await heard.until(lambda texts, times=times: texts.count("connected") == times)  # type: ignore[misc]
            await look.rows(f"SELECT pg_notify('archibald', 'after loss {times - 1}')")
            await heard.until(lambda texts, times=times: f"after loss {times - 1}" in texts)  # type: ignore[misc]
    assert all(connection.closed for connection in heard.connections)


async def test_a_lost_connection_takes_no_reader_from_who_got_its_number(
    database: str, look: Look, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver closes a lost connection's socket at once: the next socket of this process has its number, and is waited for."""
    loop, read = asyncio.get_running_loop(), asyncio.Event()
    async with listening(database, monkeypatch) as heard:
        (number,) = [connection.fileno() for connection in heard.connections]
        ending = asyncio.create_task(terminate(look, heard.connections[0]))
        async with asyncio.timeout(PATIENCE):
            while _is_open(number):  # noqa: ASYNC110  # in each turn of the loop, to be the next who opens one
                await asyncio.sleep(0)
        ours, theirs = socket.socketpair()
        with ours, theirs:
            assert ours.fileno() == number
            loop.add_reader(ours, read.set)
            await ending
            await heard.until(lambda texts: texts.count("connected") == 2)
            theirs.send(b"!")
            async with asyncio.timeout(PATIENCE):
                await read.wait()
            loop.remove_reader(ours)


async def test_what_anybody_may_notify_does_a_worker_no_harm(
    app: Archibald, look: Look, caplog: pytest.LogCaptureFixture
) -> None:
    session = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND query = 'LISTEN archibald'"
    Stage(hold=False).register(app, "check", job_class="read")
    async with working(app):
        await look.until(f"SELECT EXISTS ({session})")
        before = await look.value(session)
        await look.rows("SET client_encoding = 'LATIN1'")
        for text in ("", "turn", "turn ", "turn x", "turn -1", "turn 99999999999999999999", "\xe9", "x" * 7999):
            await look.rows("SELECT pg_notify('archibald', %s)", text)
        job = await app.enqueue("check", user_id="alice")
        await job.wait(PATIENCE)
        assert await look.value(session) == before
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True
