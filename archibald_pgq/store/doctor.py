"""The doctor's looks: reads the facts of each check and has `domain.doctor` judge them; and the repair of lanes.

Guarantees: one connection, which works through a pooler too; each look is a read-only transaction of a bounded time, so that a busy or
broken queue is not made worse; a look that is refused is a finding and stops no other. Must not: judge.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any, TypeVar

import psycopg
from psycopg.rows import dict_row

from archibald_pgq.config import Settings
from archibald_pgq.domain.doctor import queue, server, sessions, tables, workers
from archibald_pgq.domain.doctor.finding import Finding, Severity
from archibald_pgq.errors import ArchibaldError, SchemaError
from archibald_pgq.store import migrations
from archibald_pgq.store.connect import CONNECT_TIMEOUT, unreachable
from archibald_pgq.store.dsn import redacted, with_options
from archibald_pgq.store.embedded.programs import OLDEST
from archibald_pgq.store.refusals import Translated
from archibald_pgq.store.sql import statement

F = TypeVar("F")
Judge = Callable[[], list[Finding]]

DIRECT = "ARCHIBALD_DIRECT_URL"

LANES = 10_000
"""Lanes that one look goes through of each sort: those with due jobs, ready ones, running ones."""

MENDED_AT_ONCE = 500
ROUNDS = 200
"""Repairs of so many lanes, and so often of those of one look: what breaks again must not keep this going for ever."""

LOOK_TIMEOUT = "5s"

_BACKEND = "SELECT pg_backend_pid(), clock_timestamp()"


@dataclass(frozen=True, slots=True)
class Mended:
    """A lane that was repaired, and what was wrong with it."""

    user_id: str
    fault: str


def examine(dsn: str, settings: Settings, direct_dsn: str | None = None) -> list[Finding]:
    """Look at everything; `direct_dsn`: what workers use instead of `dsn` for what breaks behind a pooler.

    Raises:
        DatabaseError: the database cannot be reached.
        ConfigError: a DSN cannot be read.
    """
    direct = None if direct_dsn is None else _way(DIRECT, direct_dsn)
    with _connected(dsn) as connection:
        look = _Look(connection)
        main = server.Way("ARCHIBALD_DATABASE_URL", redacted(dsn), pooler=_pooler(connection))
        findings = server.connection(main, direct)
        seen = look.one("server", server.Server)
        findings += server.server(seen, OLDEST)
        findings += _guarded("notify_queue", lambda: _notify_queue(look, connection, seen.notify_usage))
        findings += _guarded("clock", lambda: server.clock(_clock(connection)))
        schema = _schema(look, dsn)
        findings.append(schema)
        if schema.severity is Severity.OK:
            for name, judge in _checks(look, settings):
                findings += _guarded(name, judge)
    return findings


def mend(dsn: str, max_losses: int) -> list[Mended]:
    """Repair lanes that contradict their jobs and that no live worker is concerned with; return them.

    Raises:
        DatabaseError, SchemaError: the database cannot be reached, or its schema is not this code's.
    """
    mended: list[Mended] = []
    start: int | None = 0
    with Translated(dsn, ours=True), _connected(dsn) as connection:
        migrations.check(connection, dsn)
        while start is not None:
            start = _mend_from(connection, start, max_losses, mended)
    return mended


def _mend_from(connection: psycopg.Connection[Any], start: int, max_losses: int, mended: list[Mended]) -> int | None:
    """Repair what is found behind this agent; return the one from which to go on, None at the end."""
    following: int | None = None
    for _ in range(ROUNDS):
        params = {"start": start, "look": LANES, "limit": MENDED_AT_ONCE, "max_losses": max_losses}
        rows = connection.execute(statement("doctor/mend"), params).fetchall()
        following = next(row[2] for row in rows if row[1] is None)
        now = [Mended(user_id, fault) for user_id, fault, _ in rows if fault is not None]
        mended += now
        if not now:
            break
    return following


class _Look:
    """Reads facts, each in a short transaction of its own that can change nothing."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self._connection = connection

    def all(self, name: str, fact: Callable[..., F], **params: Any) -> list[F]:
        """Return the rows of a statement of `store/sql/doctor` as facts."""
        return [fact(**row) for row in self._rows(statement(f"doctor/{name}"), params)]

    def one(self, name: str, fact: Callable[..., F], **params: Any) -> F:
        """Return the one row of a statement as a fact."""
        (found,) = self.all(name, fact, **params)
        return found

    def revision(self) -> tuple[Any, ...] | None:
        """Return the schema's revision and the oldest code that it serves."""
        try:
            row = self._rows(migrations.REVISION, {})
        except migrations.NO_SCHEMA:
            return None
        return tuple(row[0].values()) if row else None

    def _rows(self, query: str, params: dict[str, Any]) -> list[dict[str, Any]]:
        with self._connection.transaction(), self._connection.cursor(row_factory=dict_row) as cursor:
            # LOCAL, and not as an option of the connection: a pooler refuses that. By index, whatever the statistics say.
            cursor.execute(
                f"SET TRANSACTION READ ONLY; SET LOCAL statement_timeout = '{LOOK_TIMEOUT}'; SET LOCAL lock_timeout = '1s'; "
                "SET LOCAL enable_seqscan = off; SET LOCAL jit = off"
            )
            return cursor.execute(query, params).fetchall()


def _checks(look: _Look, settings: Settings) -> Iterator[tuple[str, Judge]]:
    """Yield the checks of the queue, in the order in which they are shown."""
    # asked for by each check that needs it, so that who may not see workers gets the other checks
    there = cache(lambda: look.all("workers", workers.Worker))

    def live() -> int:
        return sum(not worker.silent for worker in there())

    yield "rights", lambda: server.rights(look.one("rights", server.Rights))
    yield "workers", lambda: workers.presence(there(), look.one("demand", workers.Demand))
    yield "kinds", lambda: workers.kinds(look.all("kinds", workers.Unhandled, limit=LANES), live())
    yield "lanes", lambda: _lanes(look)
    yield "unseen_jobs", lambda: queue.unseen(look.one("unseen", queue.Unseen), live())
    yield "review", lambda: queue.review(look.one("review", queue.Review, review=queue.REVIEW))
    yield "agent_locks", lambda: sessions.agent_locks(look.all("agent_locks", sessions.LockHolder))
    yield "blocked", lambda: sessions.blocked(look.all("blocked", sessions.Blocker))
    yield "oldest_transaction", lambda: sessions.oldest_transaction(look.all("oldest_transaction", sessions.Holder))
    yield "dead_rows", lambda: tables.dead_rows(look.all("tables", tables.Table), datetime.now(UTC))
    yield "autovacuum", lambda: tables.autovacuum(look.one("vacuum", tables.Vacuum), look.all("tables", tables.Table))
    yield "history", lambda: _history(look, settings)
    yield (
        "settings",
        lambda: workers.settings(
            there(), look.one("capacity", workers.Capacity), look.all("timeouts", workers.Timeout)
        ),
    )


def _row(**columns: Any) -> dict[str, Any]:
    return columns


def _lanes(look: _Look) -> list[Finding]:
    odd: list[queue.OddLane] = []
    looked = 0
    for row in look.all("lanes", _row, limit=LANES):
        if row["fault"] is None:
            looked = row["looked"]
        else:
            del row["looked"]
            odd.append(queue.OddLane(**{**row, "fault": queue.Fault(row["fault"])}))
    return queue.lanes(odd, queue.Looked(looked, sample=looked >= LANES))


def _history(look: _Look, settings: Settings) -> list[Finding]:
    seen = look.one("history", _row)
    return tables.history(seen["days"], seen["today"], settings.retention_days)


def _schema(look: _Look, dsn: str) -> Finding:
    try:
        migrations.judge(look.revision(), dsn)
    except SchemaError as error:
        found, _, remedy = str(error).partition("; ")
        return Finding("schema", Severity.SERIOUS, f"{found}, so that nothing else can be looked at", remedy)
    except psycopg.Error as error:
        return _refused("schema", error)
    return Finding("schema", Severity.OK, f"the schema is at revision {migrations.CODE_REVISION}, or serves it")


def _guarded(name: str, judge: Judge) -> list[Finding]:
    """Return what a check finds, or that it was refused."""
    try:
        return judge()
    except psycopg.OperationalError as error:
        if not isinstance(error, psycopg.errors.QueryCanceled | psycopg.errors.LockNotAvailable):
            raise  # the connection is gone
        return [_refused(name, error)]
    except psycopg.Error as error:
        return [_refused(name, error)]


def _refused(name: str, error: psycopg.Error) -> Finding:
    reason = str(error).strip().splitlines()[0]
    match error:
        case psycopg.errors.InsufficientPrivilege():
            remedy = "connect as a role that may read the tables of the schema archibald"
        case psycopg.errors.QueryCanceled() | psycopg.errors.LockNotAvailable():
            remedy = f"try again when the server is less busy; a look is given {LOOK_TIMEOUT}"
        case _:
            remedy = "report this as a defect of archibald-pgq"
    return Finding(name, Severity.NOTICE, f"this could not be looked at: {reason}", remedy)


def _notify_queue(look: _Look, connection: psycopg.Connection[Any], usage: float) -> list[Finding]:
    holder = None
    if usage > server.NOTIFY_NOTICE:
        pid = _named_holder(connection) if usage > server.NOTIFY_SERIOUS else None
        holder = next(iter(look.all("notify_holder", server.NotifyHolder, pid=pid)), None)
    return server.notify_queue(usage, holder)


def _named_holder(connection: psycopg.Connection[Any]) -> int | None:
    """Ask the server which session keeps its queue of notifications from being emptied; None if it does not say.

    It tells whoever notifies while half of the queue is in use, in the detail of a warning, and not more often than every 5 seconds. The
    hint that this sends is one that workers may get at any time; a full queue refuses it, and the warning comes before.
    """
    told: list[str] = []

    def take_note(notice: psycopg.errors.Diagnostic) -> None:
        if "NOTIFY" in (notice.message_primary or ""):  # the words around it are the server's language
            told.extend(re.findall(r"\d+", notice.message_detail or ""))

    connection.add_notice_handler(take_note)
    try:
        connection.execute("SELECT pg_notify('archibald', 'wake')")
    except psycopg.errors.ProgramLimitExceeded:
        pass
    finally:
        connection.remove_notice_handler(take_note)
    return int(told[0]) if told else None


def _clock(connection: psycopg.Connection[Any]) -> server.Clock:
    """Compare the clocks, by the quickest of a few round trips."""
    best: server.Clock | None = None
    for _ in range(5):
        before, started = time.time(), time.monotonic()
        row = connection.execute(_BACKEND).fetchone()
        bound = timedelta(seconds=(time.monotonic() - started) / 2)
        if row is not None and (best is None or bound < best.bound):
            best = server.Clock(row[1] - (datetime.fromtimestamp(before, UTC) + bound), bound)
    assert best is not None  # noqa: S101  # a SELECT of expressions has a row
    return best


def _pooler(connection: psycopg.Connection[Any]) -> bool:
    row = connection.execute(_BACKEND).fetchone()
    return row is None or row[0] != connection.info.backend_pid


def _way(setting: str, dsn: str) -> server.Way:
    try:
        with _connected(dsn) as connection:
            return server.Way(setting, redacted(dsn), _pooler(connection))
    except ArchibaldError as error:
        return server.Way(setting, redacted(dsn), None, str(error))


@contextmanager
def _connected(dsn: str) -> Iterator[psycopg.Connection[Any]]:
    options = with_options(dsn, connect_timeout=CONNECT_TIMEOUT, application_name="archibald-pgq doctor")
    try:
        with psycopg.connect(options, autocommit=True, prepare_threshold=None) as connection:
            yield connection
    except psycopg.OperationalError as error:
        raise unreachable(dsn, error) from None
