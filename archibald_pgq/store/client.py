"""The client's side of the database: enqueue, cancel, read, on connections of our own or of the caller's.

Guarantees: on a caller's connection everything is part of the caller's transaction; what the database refuses comes back as one of
the errors of `archibald_pgq.errors`. Must not: be used by a worker's hot path, which has connections of its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import psycopg
from psycopg.abc import Buffer
from psycopg.rows import tuple_row
from psycopg.types.datetime import TimestamptzLoader
from sqlalchemy import Select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, create_async_engine

from archibald_pgq.domain.job import JobRecord
from archibald_pgq.domain.operations import Policy
from archibald_pgq.domain.payload import MAX_JSON_BYTES
from archibald_pgq.errors import ConfigError, DatabaseError, InvalidJobError, SchemaError, UnknownKindError
from archibald_pgq.store.connect import CONNECT_TIMEOUT, unreachable
from archibald_pgq.store.dsn import redacted, with_options
from archibald_pgq.store.migrations import MEND, NO_SCHEMA, REVISION, judge
from archibald_pgq.store.reads import to_record

CallerConnection = psycopg.AsyncConnection[Any] | AsyncConnection | AsyncSession
"""What a caller may pass to be part of its transaction."""

_ENQUEUE = """
SELECT archibald.enqueue(CAST(%(user_id)s AS text), CAST(%(kind)s AS text), CAST(%(payload)s AS jsonb), CAST(%(key)s AS text),
                         clock_timestamp() + make_interval(secs => CAST(%(delay)s AS double precision)))
"""
_ENQUEUE_WINDOW = f"""
WITH setting AS MATERIALIZED (SELECT set_config('archibald.dedup_window', CAST(%(window)s AS text), true) AS done)
SELECT q.id FROM setting CROSS JOIN LATERAL ({_ENQUEUE} WHERE setting.done IS NOT NULL) AS q(id)
"""  # noqa: S608  # both parts are constants
_CANCEL = "SELECT archibald.cancel_job(%(job)s)"
_PROGRESS = """
UPDATE archibald.jobs SET progress = %(percent)s, progress_label = %(label)s
 WHERE id = %(job)s AND state = 'running' AND worker_id = %(worker)s
"""
_POLICY = """
INSERT INTO archibald.operations AS o (kind, class, priority, timeout_s, max_attempts, backoff, backoff_s, idempotent)
VALUES (%(kind)s, %(class)s, %(priority)s, %(timeout)s, %(max_attempts)s, %(backoff)s, %(backoff_s)s, %(idempotent)s)
ON CONFLICT (kind) DO
"""
_DECLARE_DEFAULT = f"{_POLICY} NOTHING"
_DECLARE = f"""{_POLICY} UPDATE
   SET class = excluded.class, priority = excluded.priority, timeout_s = excluded.timeout_s, max_attempts = excluded.max_attempts,
       backoff = excluded.backoff, backoff_s = excluded.backoff_s, idempotent = excluded.idempotent
 WHERE (o.class, o.priority, o.timeout_s, o.max_attempts, o.backoff, o.backoff_s, o.idempotent) IS DISTINCT FROM
       (excluded.class, excluded.priority, excluded.timeout_s, excluded.max_attempts, excluded.backoff, excluded.backoff_s,
        excluded.idempotent)
"""  # noqa: S608  # both parts are constants
_PLACEHOLDER = re.compile(r"%\((\w+)\)s")
_DEFAULT_WINDOW = 30.0


FIRST_TIME = datetime(1, 1, 1, tzinfo=UTC)
LAST_TIME = datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)


class _TimeLoader(TimestamptzLoader):
    """Reads what Python has no date for as the first or the last that it has: a run_after of 'infinity' parks a job, and must be seen."""

    def load(self, data: Buffer) -> datetime:
        try:
            return super().load(data)
        except psycopg.DataError:
            past = bytes(data).startswith(b"-") or bytes(data).endswith(b"BC")
            return FIRST_TIME if past else LAST_TIME


def engine_for(dsn: str) -> AsyncEngine:
    """Return a pool of autocommit connections to `dsn`; nothing is opened yet."""
    conninfo = with_options(dsn, application_name="archibald-pgq client", connect_timeout=CONNECT_TIMEOUT)

    async def connect() -> psycopg.AsyncConnection[Any]:
        connection = await psycopg.AsyncConnection.connect(conninfo)
        connection.adapters.register_loader("timestamptz", _TimeLoader)
        return connection

    return create_async_engine(
        "postgresql+psycopg://", async_creator=connect, isolation_level="AUTOCOMMIT", pool_pre_ping=True, pool_size=5
    )


async def fetch(connection: CallerConnection, sql: str, params: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    """Run one statement (psycopg placeholders) on whichever sort of connection; return its rows."""
    if isinstance(connection, psycopg.AsyncConnection):
        # not connection.cursor(): the caller may have set a cursor factory with other placeholders
        async with psycopg.AsyncCursor(connection, row_factory=tuple_row) as cursor:
            await cursor.execute(sql, params)
            return await cursor.fetchall() if cursor.description else []
    if isinstance(connection, AsyncSession):
        connection = await connection.connection()
    result = await connection.execute(text(_PLACEHOLDER.sub(r":\1", sql)), dict(params))
    return [tuple(row) for row in result] if result.returns_rows else []


class Client:
    """A database as the users of the queue see it; opens connections as needed, `close` returns them."""

    def __init__(self, dsn: str) -> None:
        """Remember the DSN; nothing is opened yet.

        Raises:
            ConfigError: the DSN cannot be read.
        """
        self.dsn = dsn
        self.engine = engine_for(dsn)

    async def close(self) -> None:
        """Close all connections."""
        await self.engine.dispose()

    async def run(
        self, sql: str, params: Mapping[str, Any], connection: CallerConnection | None = None
    ) -> list[tuple[Any, ...]]:
        """Run one statement, on `connection` or on one of our own, and translate what the database refuses.

        Raises:
            DatabaseError, SchemaError, InvalidJobError, UnknownKindError: see `archibald_pgq.errors`.
            psycopg.Error, sqlalchemy.exc.DBAPIError: on a caller's connection also what is the caller's to handle, such as a
                serialization failure.
        """
        if connection is not None:
            if not isinstance(connection, psycopg.AsyncConnection | AsyncConnection | AsyncSession):
                raise ConfigError(
                    "connection must be a psycopg AsyncConnection or SQLAlchemy AsyncConnection or AsyncSession, "
                    f"not {type(connection).__module__}.{type(connection).__qualname__}"
                )
            with self._translated(ours=False):
                return await fetch(connection, sql, params)
        with self._translated(ours=True):
            async with self.engine.connect() as own:
                return await fetch(own, sql, params)

    async def check(self) -> None:
        """Refuse a schema that this code cannot work on.

        Raises:
            DatabaseError, SchemaError: see `store.migrations.check`.
        """
        with self._translated(ours=True):
            async with self.engine.connect() as own:
                try:
                    rows = await fetch(own, REVISION, {})
                except DBAPIError as error:
                    if isinstance(error.orig, psycopg.errors.InsufficientPrivilege):
                        return  # a role that may only enqueue: what it does next will tell
                    if not isinstance(error.orig, NO_SCHEMA):
                        raise
                    rows = []
        judge(rows[0] if rows else None, self.dsn)

    async def records(self, query: Select[Any]) -> list[JobRecord]:
        """Return the jobs that a query of `store.reads` selects.

        Raises:
            DatabaseError, SchemaError: see `archibald_pgq.errors`.
        """
        with self._translated(ours=True):
            async with self.engine.connect() as own:
                return [to_record(row) for row in await own.execute(query)]

    @contextmanager
    def _translated(self, *, ours: bool) -> Iterator[None]:
        try:
            yield
        except PoolTimeoutError as error:
            raise DatabaseError(
                f"the database at {redacted(self.dsn)} does not answer: all connections wait"
            ) from error
        except (psycopg.Error, DBAPIError) as error:
            translated = self._translate(error)
            if translated is None and ours:
                reason = str(error.orig if isinstance(error, DBAPIError) else error).strip().splitlines()[:1]
                translated = DatabaseError(f"the database at {redacted(self.dsn)} refuses: {' '.join(reason)}")
            if translated is None:
                raise
            raise translated from error
        except UnicodeEncodeError as error:
            raise InvalidJobError("a text holds a lone surrogate, which Postgres cannot store; remove it") from error

    def _translate(self, error: psycopg.Error | DBAPIError) -> Exception | None:
        cause = error.orig if isinstance(error, DBAPIError) else error
        state = getattr(cause, "sqlstate", None)
        message = str(cause).strip().splitlines()[0] if str(cause).strip() else "no answer"
        match state:
            case "AQ001":
                return UnknownKindError(
                    f"{message}; declare it with @app.operation(…) and start that app once, or correct the name"
                )
            case "AQ002":
                return InvalidJobError(message)
            case "23514" if "jobs_payload_size" in message:
                return InvalidJobError(
                    f"the payload is over {MAX_JSON_BYTES} bytes (1 MB) as JSON; keep large data elsewhere"
                )
            case "42P01" | "42883" | "3F000" if "archibald" in message:
                return SchemaError(f"there is no usable schema archibald at {redacted(self.dsn)}; {MEND}")
            case "42501":
                return DatabaseError(f"the database at {redacted(self.dsn)} refuses: {message}")
            case str() if state[:2] in {"22", "54"}:
                return InvalidJobError(f"the database cannot take this: {message}")
            case None if isinstance(cause, psycopg.OperationalError | psycopg.InterfaceError):
                return unreachable(self.dsn, cause)
            case str() if state[:2] in {"08", "28", "3D", "53", "57"} and isinstance(cause, psycopg.Error):
                return unreachable(self.dsn, cause)
        return None

    async def enqueue(
        self,
        *,
        user_id: str,
        kind: str,
        payload: str,
        key: str | None,
        delay: float,
        window: float,
        connection: CallerConnection | None,
    ) -> int:
        """Enqueue one job (arguments already checked) and return its id, or the id of the job that it duplicates."""
        params: dict[str, Any] = {
            "user_id": user_id,
            "kind": kind,
            "payload": payload,
            "key": key,
            "delay": delay or None,
        }
        if key is not None and window != _DEFAULT_WINDOW:
            # The trigger reads it; the CTE is evaluated before the call that depends on it.
            rows = await self.run(_ENQUEUE_WINDOW, {**params, "window": str(window)}, connection)
        else:
            rows = await self.run(_ENQUEUE, params, connection)
        return int(rows[0][0])

    async def cancel(self, job_id: int) -> str | None:
        """Cancel a job: 'cancelled', 'requested' (it runs), 'already …' with its state if it had ended, or None for an unknown id."""
        rows = await self.run(_CANCEL, {"job": job_id})
        answer = rows[0][0]
        return None if answer is None else str(answer)

    async def write_progress(self, job_id: int, worker_id: int, percent: int, label: str | None) -> None:
        """Record how far a running job of this worker is."""
        await self.run(_PROGRESS, {"job": job_id, "worker": worker_id, "percent": percent, "label": label})

    async def declare(self, kind: str, policy: Policy, *, default: bool = False) -> None:
        """Write the policy of a kind that an app declares itself; does nothing where it is the same already.

        Args:
            kind: the kind.
            policy: its policy.
            default: it is only what a kind gets that has none: a row that is there stays as it is.
        """
        backoff = policy.backoff
        await self.run(
            _DECLARE_DEFAULT if default else _DECLARE,
            {
                "kind": kind,
                "class": policy.job_class.value,
                "priority": policy.priority,
                "timeout": policy.timeout,
                "max_attempts": policy.max_attempts,
                "backoff": backoff.shape if backoff else None,
                "backoff_s": backoff.seconds if backoff else 0.0,
                "idempotent": policy.idempotent,
            },
        )
