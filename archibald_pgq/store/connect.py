"""Connections of a worker: direct, autocommit, and never waiting for long.

Guarantees: a dead peer is noticed within the lease on both sides; no statement waits for a caller's lock longer than 200 ms; a
connection pooler in between is refused, because session locks and LISTEN break silently on one. Told by the process id of the session: a
pooler gives its clients numbers of its own, for it must know whom a cancel request means; `store.direct` looks for the others.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable
from typing import Any

import psycopg
from psycopg import pq
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from archibald_pgq.errors import DatabaseError
from archibald_pgq.store.dsn import redacted, to_libpq, with_options

HANGS = 30
"""Seconds after which the server cancels a statement of a worker: one of a millisecond that hangs would stop the worker for ever."""

CONNECT_TIMEOUT = 5
"""Seconds; libpq takes whole ones, at least 2."""


def worker_options(dsn: str, name: str, lease: float) -> str:
    """Return the conninfo for a connection of a worker that must notice a dead peer well within `lease` seconds."""
    dead_after = max(int(lease * 1000 / 3), 500)
    # Not what the role or the database may set: each statement of a turn must see what was committed before it, a turn of a millisecond
    # gains nothing from a compiler, and options in the DSN come on top of these instead of replacing them.
    options = (
        f"{conninfo_to_dict(to_libpq(dsn)).get('options') or ''} -c lock_timeout=200ms -c jit=off"
        f" -c default_transaction_isolation=read\\ committed -c tcp_user_timeout={dead_after}"
        # and no function or operator of another schema is called, whoever put it there
        " -c search_path=pg_catalog,pg_temp"
        " -c tcp_keepalives_idle=1 -c tcp_keepalives_interval=1"
        f" -c statement_timeout={HANGS * 1000}ms -c idle_session_timeout=0"
    )
    conninfo = with_options(
        dsn,
        application_name=f"archibald-pgq {name}",
        connect_timeout=max(2, int(lease / 3)),
        tcp_user_timeout=dead_after,
        keepalives_idle=1,
        keepalives_interval=1,
        keepalives_count=max(1, dead_after // 1000),
    )
    return make_conninfo(conninfo, options=options.strip())


# transaction_timeout is there since PostgreSQL 17, and an option at the start that the server does not know would be refused.
_FIRST = """
SELECT pg_backend_pid(),
       CASE WHEN current_setting('transaction_timeout', true) IS NOT NULL THEN set_config('transaction_timeout', '0', false) END
"""


async def connect(conninfo: str) -> psycopg.AsyncConnection[tuple[Any, ...]]:
    """Open a worker's connection.

    Raises:
        psycopg.OperationalError: the server cannot be reached; the caller decides whether to try again.
        DatabaseError: there is a connection pooler in between.
    """
    try:
        connection = await psycopg.AsyncConnection.connect(conninfo, autocommit=True)
    except psycopg.OperationalError as error:
        if "unsupported startup parameter" in str(error):  # PgBouncer's words for the options that a worker needs
            raise pooled(conninfo) from None
        raise
    try:
        # A turn's plan must not change with the shape of its arrays, and its text is long: prepare it at once.
        connection.prepare_threshold = 0
        row = await (await connection.execute(_FIRST, prepare=False)).fetchone()
        if row is None or row[0] != connection.info.backend_pid:
            raise pooled(conninfo)
    except BaseException:  # also a cancellation: nobody else knows of this session yet
        await connection.close()
        raise
    return connection


def pooled(dsn: str) -> DatabaseError:
    """Return the error for a worker whose own connections would go through a pooler."""
    return DatabaseError(
        f"there is a connection pooler at {redacted(dsn)}, which breaks a worker's session locks; "
        "give the worker the address of Postgres itself in ARCHIBALD_DIRECT_URL"
    )


def cut(connection: psycopg.AsyncConnection[Any] | psycopg.Connection[Any]) -> None:
    """Break a connection now, whatever waits on it: its statement ends with an error, and not when the network gives up.

    A cancellation would wait for the server's answer, which is just what does not come.
    """
    with contextlib.suppress(OSError, psycopg.Error), socket.socket(fileno=os.dup(connection.fileno())) as shared:
        shared.shutdown(socket.SHUT_RDWR)


class Deadline:
    """Cuts a connection if what is inside takes longer: a peer whose kernel answers, and nobody else, is noticed by nothing else."""

    __slots__ = ("_connection", "_late", "_seconds", "_timer")

    def __init__(
        self, connection: psycopg.AsyncConnection[Any], seconds: float, late: Callable[[], None] | None = None
    ) -> None:
        """`late` is called right before."""
        self._connection, self._seconds, self._late = connection, seconds, late

    def __enter__(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._seconds, self._end)

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()

    def _end(self) -> None:
        if self._late is not None:
            self._late()
        cut(self._connection)


def server_refuses(conninfo: str, error: psycopg.Error) -> bool:
    """True if the server is down or starting: then nobody else can reach it either, and no lease can be taken over on it."""
    text = str(error)
    # libpq's own texts are not translated in the bundled library; the server's may be, so the server is asked by PQping.
    if "Connection refused" in text or "No such file or directory" in text:
        return True
    return pq.PGconn.ping(to_libpq(conninfo).encode()) == pq.Ping.REJECT


def told(error: psycopg.Error) -> str:
    """Return what the server says, without the details: they quote rows, which hold payloads, and this goes into a log."""
    return error.diag.message_primary or next(iter(str(error).strip().splitlines()), type(error).__name__)


def unreachable(dsn: str, error: psycopg.Error, setting: str = "ARCHIBALD_DATABASE_URL") -> DatabaseError:
    """Return the error for a person: which database, why, and what to do; `setting` is what names it."""
    # libpq's hints ("Is the server running…") are indented; of several addresses the last one's reason is told
    lines = [line for line in str(error).strip().splitlines() if not line.startswith(("\t", "DETAIL", "HINT"))] or [
        "no answer"
    ]
    reason = error.diag.message_primary or lines[-1]
    reason = reason.split("FATAL:")[-1].split("failed: ")[-1].strip()
    return DatabaseError(f"the database at {redacted(dsn)} cannot be used: {reason}; check {setting} and that it is up")
