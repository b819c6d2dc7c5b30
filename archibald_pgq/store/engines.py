"""The clients' pools of connections: autocommit, at most five, checked before each use.

Guarantees: a forked child never shares a socket with its parent; nothing stays behind on the server's side between two statements, so that
a pooler in between may give each of them to another session; no parameter and no row of a statement gets into a log or into an error's
text, whatever the level of logging: they hold payloads. Must not: outlive the client that asked for it.
"""

from __future__ import annotations

import logging
import os
import socket
import weakref
from datetime import UTC, datetime
from typing import Any

import psycopg
from psycopg.abc import Buffer
from psycopg.types.datetime import TimestamptzLoader
from sqlalchemy import Engine, create_engine
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from archibald_pgq.store.connect import CONNECT_TIMEOUT
from archibald_pgq.store.dsn import with_options

FIRST_TIME = datetime(1, 1, 1, tzinfo=UTC)
LAST_TIME = datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)

_URL = "postgresql+psycopg://"
_OPTIONS: dict[str, Any] = {
    "isolation_level": "AUTOCOMMIT",
    "pool_pre_ping": True,
    "pool_size": 5,
    "max_overflow": 0,
    "hide_parameters": True,
    "logging_name": "archibald_pgq",
    # else each new connection looks for that type, in whatever schema and with whatever operator comes first there
    "use_native_hstore": False,
}
# At DEBUG SQLAlchemy logs rows, and nothing but the level of this logger hides them.
logging.getLogger("sqlalchemy.engine.Engine.archibald_pgq").setLevel(logging.WARNING)


class _TimeLoader(TimestamptzLoader):
    """Reads what Python has no date for as the first or the last that it has: a run_after of 'infinity' parks a job, and must be seen."""

    def load(self, data: Buffer) -> datetime:
        try:
            return super().load(data)
        except psycopg.DataError:
            past = bytes(data).startswith(b"-") or bytes(data).endswith(b"BC")
            return FIRST_TIME if past else LAST_TIME


_opened: weakref.WeakSet[psycopg.Connection[Any] | psycopg.AsyncConnection[Any]] = weakref.WeakSet()


def _let_go_all() -> None:
    """In a forked child: close the parent's connections without a word to the server, which would end them for the parent too."""
    for connection in list(_opened):
        if not connection.closed:
            ours, theirs = socket.socketpair()
            with ours, theirs:  # libpq says goodbye to this one
                os.dup2(ours.fileno(), connection.fileno(), inheritable=False)
                connection.pgconn.finish()


os.register_at_fork(after_in_child=_let_go_all)


def _conninfo(dsn: str) -> str:
    return with_options(dsn, application_name="archibald-pgq client", connect_timeout=CONNECT_TIMEOUT)


def async_engine(dsn: str) -> AsyncEngine:
    """Return a pool of asynchronous connections to `dsn`; nothing is opened yet.

    Raises:
        ConfigError: the DSN cannot be read.
    """
    conninfo = _conninfo(dsn)

    async def connect() -> psycopg.AsyncConnection[Any]:
        connection = await psycopg.AsyncConnection.connect(conninfo, prepare_threshold=None)
        connection.adapters.register_loader("timestamptz", _TimeLoader)
        _opened.add(connection)
        return connection

    return create_async_engine(_URL, async_creator=connect, **_OPTIONS)


def sync_engine(dsn: str) -> Engine:
    """Return a pool of connections to `dsn`; nothing is opened yet.

    Raises:
        ConfigError: the DSN cannot be read.
    """
    conninfo = _conninfo(dsn)

    def connect() -> psycopg.Connection[Any]:
        connection = psycopg.connect(conninfo, prepare_threshold=None)
        connection.adapters.register_loader("timestamptz", _TimeLoader)
        _opened.add(connection)
        return connection

    return create_engine(_URL, creator=connect, **_OPTIONS)
