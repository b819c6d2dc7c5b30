"""What the database refuses, as the errors of `archibald_pgq.errors`.

Guarantees: on a connection of our own every error of the driver is translated; on a caller's only those that are about the job, so that
the caller's own handling (serialization failures, deadlocks, a lost connection in a transaction of its own) sees what it knows.
"""

from __future__ import annotations

import sys
from types import TracebackType

import psycopg

from archibald_pgq.domain.payload import MAX_JSON_BYTES
from archibald_pgq.errors import (
    AgentBacklogError,
    DatabaseError,
    InvalidJobError,
    NotPermittedError,
    SchemaError,
    UnknownKindError,
)
from archibald_pgq.store.connect import unreachable
from archibald_pgq.store.dsn import redacted
from archibald_pgq.store.migrations import MEND
from archibald_pgq.store.pool import AllBusyError


class Translated:
    """Translates what the database refuses in the block; no generator, whose layers a single enqueue would notice.

    Args:
        dsn: of the database, for the texts.
        ours: on a connection of our own.

    Raises:
        DatabaseError, SchemaError, InvalidJobError, UnknownKindError, AgentBacklogError: see `archibald_pgq.errors`.
        psycopg.Error, sqlalchemy.exc.DBAPIError: on a caller's connection, what is the caller's to handle.
    """

    __slots__ = ("_dsn", "_ours")

    def __init__(self, dsn: str, *, ours: bool) -> None:
        self._dsn, self._ours = dsn, ours

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if error is not None and (answer := self._answer(error)) is not None:
            raise answer from error

    def _answer(self, error: BaseException) -> Exception | None:
        if isinstance(error, AllBusyError):
            return DatabaseError(f"the database at {redacted(self._dsn)} does not answer: all connections wait")
        if isinstance(error, UnicodeEncodeError):
            return InvalidJobError("a text holds a lone surrogate, which Postgres cannot store; remove it")
        if not isinstance(error, _drivers_errors()):
            return None
        cause = getattr(error, "orig", error)  # SQLAlchemy's has the driver's in it
        answer = _translate(self._dsn, cause)
        if answer is None and self._ours:
            reason = str(cause).strip().splitlines()[:1]
            answer = DatabaseError(f"the database at {redacted(self._dsn)} refuses: {' '.join(reason)}")
        return answer


def _drivers_errors() -> tuple[type[Exception], ...]:
    """SQLAlchemy's too, where it is imported: nobody else can raise it. `store.client` says why it is not imported for this."""
    sqlalchemys = sys.modules.get("sqlalchemy.exc")
    return (psycopg.Error,) if sqlalchemys is None else (psycopg.Error, sqlalchemys.DBAPIError)


def _translate(dsn: str, cause: Exception) -> Exception | None:
    state = getattr(cause, "sqlstate", None)
    message = str(cause).strip().splitlines()[0] if str(cause).strip() else "no answer"
    match state:
        case "AQ001":
            return UnknownKindError(
                f"{message}; declare it with @app.operation(…) and start that app once, or correct the name"
            )
        case "AQ002":
            return InvalidJobError(message)
        case "AQ003":
            return AgentBacklogError(message)
        case "23514" if "jobs_payload_size" in message:
            return InvalidJobError(
                f"the payload is over {MAX_JSON_BYTES} bytes (1 MB) as JSON; keep large data elsewhere"
            )
        case "42P01" | "42883" | "3F000" if "archibald" in message:
            return SchemaError(f"there is no usable schema archibald at {redacted(dsn)}; {MEND}")
        case "42501":
            return NotPermittedError(f"the database at {redacted(dsn)} refuses: {message}")
        case "53100" if isinstance(cause, psycopg.Error):
            return DatabaseError(f"the disk of the database at {redacted(dsn)} is full ({message}); make room there")
        case "54000" if "NOTIFY" in message:
            return DatabaseError(
                f"the database at {redacted(dsn)} can take no notification: {message}; end the session that "
                "listens in the oldest open transaction (pg_stat_activity.xact_start), or SET archibald.notify = off"
            )
        case str() if state[:2] in {"22", "54"}:
            return InvalidJobError(f"the database cannot take this: {message}")
        case None if isinstance(cause, psycopg.OperationalError | psycopg.InterfaceError):
            return unreachable(dsn, cause)
        case str() if state[:2] in {"08", "28", "3D", "53", "57"} and isinstance(cause, psycopg.Error):
            return unreachable(dsn, cause)
    return None
