"""The worker's own way to Postgres: that it is direct, and leads to the database that everybody else uses.

Guarantees: a worker does not start on session locks that do not hold, or on another database than its callers'. Both are asked of the
sessions and locks themselves: that needs no rights, and holds for a standby or a copy of the same server too. Must not: be part of a
reconnect; it opens connections of its own.
"""

from __future__ import annotations

import asyncio
import random
from typing import Any

import psycopg

from archibald_pgq.errors import DatabaseError
from archibald_pgq.store.connect import CONNECT_TIMEOUT, pooled, unreachable
from archibald_pgq.store.dsn import redacted, with_options

OTHERS = 3
"""Connections that ask for a session beside the first one; in a pool with more idle sessions than that, none of them may get its own."""

Connection = psycopg.AsyncConnection[tuple[Any, ...]]


async def require_direct(connection: Connection, conninfo: str) -> None:
    """Refuse a pooler that passes on the server's process ids: others who ask for a session must not get that of `connection`.

    Raises:
        DatabaseError: one did.
        psycopg.Error: the server cannot be reached.
    """
    session = await _value(connection, "SELECT pg_backend_pid()")
    others: list[Connection] = []

    async def ask() -> Any:
        others.append(await psycopg.AsyncConnection.connect(conninfo))
        return await _value(others[-1], "SELECT pg_backend_pid()")  # in a transaction: it keeps what it gets

    try:
        # at once, and not one after the other: a worker's start waits for this
        async with asyncio.TaskGroup() as group:
            asked = [group.create_task(ask()) for _ in range(OTHERS)]
        if (
            session in {task.result() for task in asked}
            or await _value(connection, "SELECT pg_backend_pid()") != session
        ):
            raise pooled(conninfo)
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    finally:
        for other in others:
            await other.close()


async def require_same_database(connection: Connection, direct_url: str, database_url: str) -> None:
    """Refuse a direct URL that leads elsewhere: a lock that `connection` holds must be seen through `database_url`, also by a pooler.

    Raises:
        DatabaseError: it is not seen, or `database_url` cannot be reached.
    """
    key = random.getrandbits(63)  # no secret
    await connection.execute("SELECT pg_advisory_lock(%s)", (key,), prepare=False)
    try:
        conninfo = with_options(database_url, connect_timeout=CONNECT_TIMEOUT)
        async with await psycopg.AsyncConnection.connect(conninfo, autocommit=True) as pooled_connection:
            elsewhere = await _value(pooled_connection, "SELECT pg_try_advisory_xact_lock(%s)", key)
    except psycopg.Error as error:
        raise unreachable(database_url, error) from None
    finally:
        await connection.execute("SELECT pg_advisory_unlock(%s)", (key,), prepare=False)
    if elsewhere:
        raise DatabaseError(
            f"ARCHIBALD_DIRECT_URL names another database ({redacted(direct_url)}) than the jobs are enqueued in "
            f"({redacted(database_url)}); let both lead to the same one"
        )


async def _value(connection: Connection, statement: str, *params: object) -> Any:
    row = await (await connection.execute(statement, params or None, prepare=False)).fetchone()
    return row and row[0]
