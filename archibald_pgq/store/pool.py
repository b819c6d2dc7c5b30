"""The clients' connections: autocommit, at most five, kept open between uses; what is broken is replaced before the next use.

Guarantees: a statement is one round trip, nothing is sent beside it; a forked child never shares a socket with its parent; behind a pooler
nothing stays on the server's side between two statements, so that each of them may meet another session (a direct session keeps what it
has prepared, which saves a tenth of an enqueue). Must not: outlive the client that asked for it.
"""

from __future__ import annotations

import asyncio
import concurrent.futures.thread  # noqa: F401  # imported now, as is the next: the first look-up of a host's name would do it,
import encodings.idna  # noqa: F401  # and a child that is forked during an import waits for it for ever
import os
import select
import socket
import threading
import weakref
from datetime import UTC, datetime
from typing import Any

import psycopg
from psycopg.abc import Buffer
from psycopg.pq import TransactionStatus
from psycopg.types.datetime import TimestamptzLoader

from archibald_pgq.processes.forking import opening
from archibald_pgq.store.connect import CONNECT_TIMEOUT
from archibald_pgq.store.dsn import with_options

FIRST_TIME = datetime(1, 1, 1, tzinfo=UTC)
LAST_TIME = datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)

SIZE = 5
PATIENCE = 30.0
"""Seconds for which a use waits while all connections are in use."""

_Either = psycopg.Connection[Any] | psycopg.AsyncConnection[Any]


class _TimeLoader(TimestamptzLoader):
    """Reads what Python has no date for as the first or the last that it has: a run_after of 'infinity' parks a job, and must be seen."""

    def load(self, data: Buffer) -> datetime:
        try:
            return super().load(data)
        except psycopg.DataError:
            past = bytes(data).startswith(b"-") or bytes(data).endswith(b"BC")
            return FIRST_TIME if past else LAST_TIME


_opened: weakref.WeakSet[_Either] = weakref.WeakSet()


def let_go_all() -> None:
    """In a forked child: close the parent's connections without a word to the server, which would end them for the parent too."""
    for connection in list(_opened):
        if not connection.closed:
            ours, theirs = socket.socketpair()
            with ours, theirs:  # libpq says goodbye to this one
                os.dup2(ours.fileno(), connection.fileno(), inheritable=False)
                connection.pgconn.finish()


os.register_at_fork(after_in_child=let_go_all)


def _conninfo(dsn: str) -> str:
    return with_options(dsn, application_name="archibald-pgq client", connect_timeout=CONNECT_TIMEOUT)


_SESSION = "SELECT pg_backend_pid()"


def _made_ready(connection: _Either, session: tuple[Any, ...] | None) -> None:
    if session is None or session[0] != connection.info.backend_pid:
        connection.prepare_threshold = None  # a pooler's client: the next statement may meet another session
    connection.adapters.register_loader("timestamptz", _TimeLoader)
    _opened.add(connection)


def _silent(connection: _Either) -> bool:
    """True if the server has said nothing since the last statement; the end of the connection would be heard, without a round trip."""
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    return not poll.poll(0)


def _usable(connection: _Either) -> bool:
    return not connection.closed and connection.pgconn.transaction_status == TransactionStatus.IDLE


class AllBusyError(Exception):
    """All connections were in use for 30 s."""


class AsyncPool:
    """Asynchronous connections to one database."""

    def __init__(self, dsn: str) -> None:
        """Remember the DSN; nothing is opened yet.

        Raises:
            ConfigError: the DSN cannot be read.
        """
        self._conninfo = _conninfo(dsn)
        self._idle: list[psycopg.AsyncConnection[Any]] = []
        self._places = asyncio.Semaphore(SIZE)
        self._closed = False

    async def take(self) -> psycopg.AsyncConnection[Any]:
        """Return a connection, which the caller gives back; not a context manager, whose layers are a tenth of an enqueue in Python.

        Raises:
            AllBusyError: none came free in time; psycopg.OperationalError: the database cannot be reached.
        """
        if self._places.locked():
            try:
                await asyncio.wait_for(self._places.acquire(), PATIENCE)
            except TimeoutError:
                raise AllBusyError from None
        else:
            await self._places.acquire()
        try:
            if self._idle and _silent(self._idle[-1]):
                return self._idle.pop()  # what nearly every enqueue gets
            return await self._idle_one() or await self._open()
        except BaseException:
            self._places.release()
            raise

    async def give_back(self, connection: psycopg.AsyncConnection[Any]) -> None:
        """Take back a connection; one that is broken, or inside a transaction, is closed."""
        try:
            if _usable(connection) and not self._closed:
                self._idle.append(connection)
            else:
                await connection.close()
        finally:
            self._places.release()

    async def close(self) -> None:
        """Close the connections; one in use is closed when it comes back."""
        self._closed = True
        while self._idle:
            await self._idle.pop().close()

    async def _idle_one(self) -> psycopg.AsyncConnection[Any] | None:
        while self._idle:
            connection = self._idle.pop()
            try:
                if not _silent(connection):
                    await connection.execute("SELECT")
            except psycopg.Error:
                await connection.close()
            else:
                return connection
        return None

    async def _open(self) -> psycopg.AsyncConnection[Any]:
        with opening():
            connection = await psycopg.AsyncConnection.connect(self._conninfo, autocommit=True)
            try:
                _made_ready(connection, await (await connection.execute(_SESSION)).fetchone())
            except BaseException:
                await connection.close()
                raise
            return connection


class SyncPool:
    """Connections to one database, for threads."""

    def __init__(self, dsn: str) -> None:
        """Remember the DSN; nothing is opened yet.

        Raises:
            ConfigError: the DSN cannot be read.
        """
        self._conninfo = _conninfo(dsn)
        self._idle: list[psycopg.Connection[Any]] = []
        self._places = threading.Semaphore(SIZE)
        self._closed = False

    def take(self) -> psycopg.Connection[Any]:
        """Return a connection, which the caller gives back.

        Raises:
            AllBusyError, psycopg.OperationalError: see `AsyncPool.take`.
        """
        if not self._places.acquire(timeout=PATIENCE):
            raise AllBusyError
        try:
            return self._idle_one() or self._open()
        except BaseException:
            self._places.release()
            raise

    def give_back(self, connection: psycopg.Connection[Any]) -> None:
        """Take back a connection; see `AsyncPool.give_back`."""
        try:
            if _usable(connection) and not self._closed:
                self._idle.append(connection)
            else:
                connection.close()
        finally:
            self._places.release()

    def close(self) -> None:
        """Close the connections; one in use is closed when it comes back."""
        self._closed = True
        while self._idle:
            self._idle.pop().close()

    def _idle_one(self) -> psycopg.Connection[Any] | None:
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:  # also where another thread was faster
                return None
            try:
                if not _silent(connection):
                    connection.execute("SELECT")
            except psycopg.Error:
                connection.close()
            else:
                return connection

    def _open(self) -> psycopg.Connection[Any]:
        with opening():
            connection = psycopg.connect(self._conninfo, autocommit=True)
            try:
                _made_ready(connection, connection.execute(_SESSION).fetchone())
            except BaseException:
                connection.close()
                raise
            return connection
