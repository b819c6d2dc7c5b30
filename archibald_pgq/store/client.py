"""The clients: a database as the users of the queue see it, on connections of our own or of the caller's; one asynchronous, one not.

Guarantees: on a caller's connection everything is part of the caller's transaction; what the database refuses comes back as one of
the errors of `archibald_pgq.errors`. Must not: be used by a worker's hot path, which has connections of its own.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import psycopg
from psycopg.rows import namedtuple_row, tuple_row

from archibald_pgq.errors import ConfigError
from archibald_pgq.store.migrations import NO_SCHEMA, REVISION, judge
from archibald_pgq.store.pool import AsyncPool, SyncPool
from archibald_pgq.store.refusals import Translated
from archibald_pgq.store.request import PLACEHOLDER, Request, Rows
from archibald_pgq.store.statement import value

if TYPE_CHECKING:  # half of what each command would need to start; who passes one of these has imported them
    from sqlalchemy import Connection, Executable
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_scoped_session
    from sqlalchemy.orm import Session, scoped_session

T = TypeVar("T")

CallerConnection: TypeAlias = (
    "psycopg.AsyncConnection[Any] | AsyncConnection | AsyncSession | async_scoped_session[Any]"
)
"""What a caller of the asynchronous client may pass to be part of its transaction."""

SyncCallerConnection: TypeAlias = "psycopg.Connection[Any] | Connection | Session | scoped_session[Any]"
"""What a caller of the synchronous client may pass to be part of its transaction."""


class Client:
    """The asynchronous client; opens connections as needed, `close` returns them."""

    def __init__(self, dsn: str) -> None:
        """Remember the DSN; nothing is opened yet.

        Raises:
            ConfigError: the DSN cannot be read.
        """
        self.dsn = dsn
        self._pool = AsyncPool(dsn)

    async def close(self) -> None:
        """Close all connections."""
        await self._pool.close()

    async def ask(self, request: Request[T], connection: CallerConnection | None = None) -> T:
        """Run a request on `connection`, or on one of our own, and return its answer.

        Raises:
            DatabaseError, SchemaError, InvalidJobError, UnknownKindError: see `archibald_pgq.errors`.
            ConfigError: the connection is of another sort.
            psycopg.Error, sqlalchemy.exc.DBAPIError: on a caller's connection also what is the caller's to handle, such as a
                serialization failure.
        """
        with Translated(self.dsn, ours=connection is None):
            rows = await (self._on_own(request) if connection is None else self._on_callers(request, connection))
        return request.read(rows)

    async def check(self) -> None:
        """Refuse a schema that this code cannot work on.

        Raises:
            DatabaseError, SchemaError: see `store.migrations.check`.
        """
        with Translated(self.dsn, ours=True):
            own = await self._pool.take()
            try:
                found = await (await own.execute(REVISION)).fetchone()
            except psycopg.Error as error:
                if _may_only_enqueue(error):
                    return
                found = None
            finally:
                await self._pool.give_back(own)
        judge(found, self.dsn)

    async def _on_own(self, request: Request[T]) -> Rows:
        own = await self._pool.take()
        try:
            if request.value:
                return [(await own.wait(value(own, request.statement, request.params)),)]
            if request.before is not None:
                await own.execute(*request.before)
            cursor = own.cursor(row_factory=namedtuple_row if request.named else tuple_row)
            await cursor.execute(request.statement, request.params)
            return await cursor.fetchall() if cursor.description else []
        finally:
            await self._pool.give_back(own)

    async def _on_callers(self, request: Request[T], connection: CallerConnection) -> Rows:
        if isinstance(connection, psycopg.AsyncConnection):
            # not connection.cursor(): the caller may have set a cursor factory with other placeholders
            async with psycopg.AsyncCursor(connection, row_factory=tuple_row) as cursor:
                await cursor.execute(request.statement, request.params)
                return await cursor.fetchall()
        from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_scoped_session  # see above

        if isinstance(connection, AsyncSession | async_scoped_session):
            return await self._on_sqlalchemy(request, await connection.connection())
        if isinstance(connection, AsyncConnection):
            return await self._on_sqlalchemy(request, connection)
        raise _refusal(connection, "psycopg AsyncConnection or SQLAlchemy AsyncConnection or AsyncSession")

    async def _on_sqlalchemy(self, request: Request[T], connection: AsyncConnection) -> Rows:
        result = await connection.execute(_text(request.statement), dict(request.params))
        return result.all() if result.returns_rows else []


class SyncClient:
    """The synchronous client, for threads; opens connections as needed, `close` returns them."""

    def __init__(self, dsn: str) -> None:
        """Remember the DSN; nothing is opened yet.

        Raises:
            ConfigError: the DSN cannot be read.
        """
        self.dsn = dsn
        self._pool = SyncPool(dsn)

    def close(self) -> None:
        """Close all connections."""
        self._pool.close()

    def ask(self, request: Request[T], connection: SyncCallerConnection | None = None) -> T:
        """Run a request on `connection`, or on one of our own, and return its answer.

        Raises:
            DatabaseError, SchemaError, InvalidJobError, UnknownKindError, ConfigError, psycopg.Error, sqlalchemy.exc.DBAPIError:
                see `Client.ask`.
        """
        with Translated(self.dsn, ours=connection is None):
            rows = self._on_own(request) if connection is None else self._on_callers(request, connection)
        return request.read(rows)

    def check(self) -> None:
        """Refuse a schema that this code cannot work on.

        Raises:
            DatabaseError, SchemaError: see `store.migrations.check`.
        """
        with Translated(self.dsn, ours=True):
            own = self._pool.take()
            try:
                found = own.execute(REVISION).fetchone()
            except psycopg.Error as error:
                if _may_only_enqueue(error):
                    return
                found = None
            finally:
                self._pool.give_back(own)
        judge(found, self.dsn)

    def _on_own(self, request: Request[T]) -> Rows:
        own = self._pool.take()
        try:
            if request.value:
                return [(own.wait(value(own, request.statement, request.params)),)]
            if request.before is not None:
                own.execute(*request.before)
            cursor = own.cursor(row_factory=namedtuple_row if request.named else tuple_row)
            cursor.execute(request.statement, request.params)
            return cursor.fetchall() if cursor.description else []
        finally:
            self._pool.give_back(own)

    def _on_callers(self, request: Request[T], connection: SyncCallerConnection) -> Rows:
        if isinstance(connection, psycopg.Connection):
            with psycopg.Cursor(connection, row_factory=tuple_row) as cursor:
                cursor.execute(request.statement, request.params)
                return cursor.fetchall()
        from sqlalchemy import Connection  # see above
        from sqlalchemy.orm import Session, scoped_session

        if isinstance(connection, Session | scoped_session):
            return self._on_sqlalchemy(request, connection.connection())
        if isinstance(connection, Connection):
            return self._on_sqlalchemy(request, connection)
        raise _refusal(connection, "psycopg Connection or SQLAlchemy Connection or Session")

    def _on_sqlalchemy(self, request: Request[T], connection: Connection) -> Rows:
        result = connection.execute(_text(request.statement), dict(request.params))
        return result.all() if result.returns_rows else []


@cache
def _text(statement: str) -> Executable:
    from sqlalchemy import text  # see above

    return text(PLACEHOLDER.sub(r":\1", statement))


def _may_only_enqueue(error: psycopg.Error) -> bool:
    """True for a role that may not read the schema's revision: what it does next will tell; False where there is no schema."""
    if isinstance(error, psycopg.errors.InsufficientPrivilege):
        return True
    if not isinstance(error, NO_SCHEMA):
        raise error
    return False


def _refusal(connection: object, wanted: str) -> ConfigError:
    sort = f"{type(connection).__module__}.{type(connection).__qualname__}"
    return ConfigError(f"connection must be a {wanted}, not {sort}")
