"""Connections of a worker: nobody is left with a session that no one closes."""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg
import pytest
from psycopg import sql

from archibald_pgq import Archibald
from archibald_pgq.store.connect import connect, worker_options
from tests.support import PATIENCE, Look, Stage, with_encoding, working


async def test_a_connect_that_is_cancelled_before_it_is_handed_over_leaves_no_session(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[psycopg.AsyncConnection[Any]] = []
    asked = asyncio.Event()

    async def execute(connection: psycopg.AsyncConnection[Any], *_arguments: Any, **_options: Any) -> None:
        opened.append(connection)
        asked.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(psycopg.AsyncConnection, "execute", execute)
    connecting = asyncio.create_task(connect(worker_options(database, "worker", 6)))
    await asked.wait()
    connecting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await connecting
    assert [connection.closed for connection in opened] == [True]


async def test_what_the_database_sets_as_timeouts_does_not_concern_a_worker(database: str) -> None:
    wanted = {"lock_timeout": "200ms", "statement_timeout": "30s", "idle_session_timeout": "0"}
    async with await psycopg.AsyncConnection.connect(database, autocommit=True) as admin:
        if admin.info.server_version >= 170000:
            wanted["transaction_timeout"] = "0"
        for name in wanted:
            await admin.execute(sql.SQL("ALTER DATABASE {} SET {} = '5s'").format(
                sql.Identifier(admin.info.dbname), sql.Identifier(name)))  # fmt: skip
    async with await connect(worker_options(database, "worker", 6)) as connection:
        for name, value in wanted.items():
            assert await (await connection.execute(f"SHOW {name}")).fetchone() == (value,)


@pytest.mark.parametrize("who", ["the DSN", "the database"])
async def test_whatever_encoding_is_set_a_worker_takes_and_writes_any_letter(
    who: str, database: str, look: Look
) -> None:
    given = with_encoding(database, "LATIN1") if who == "the DSN" else database
    if who == "the database":
        name = sql.Identifier(await look.value("SELECT current_database()"))
        await look.connection.execute(sql.SQL("ALTER DATABASE {} SET client_encoding = 'LATIN1'").format(name))
    async with Archibald(given) as app:
        Stage(hold=False).register(app, "check", job_class="read")
        async with working(app):
            job = await app.enqueue("check", user_id="Łucja", data={"text": "→ €"})
            assert await job.wait(PATIENCE) == {"ran": {"text": "→ €"}}
