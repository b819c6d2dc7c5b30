"""Migrations: bringing a database to the schema of this code, and telling whether it has it.

Owns: where the migrations lie, the revision that this code needs, the rule of what serves what. Guarantees: `check` never changes
anything; `upgrade` is `alembic upgrade head` with the top-level `alembic.ini`, and keeps nobody waiting for longer than a moment: what it
waits for a lock is bounded, and between two attempts everybody else goes on.
"""

from __future__ import annotations

import io
import itertools
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg

from archibald_pgq.errors import DatabaseError, SchemaError
from archibald_pgq.processes.forking import opening
from archibald_pgq.store.connect import CONNECT_TIMEOUT, unreachable
from archibald_pgq.store.dsn import redacted, with_options
from archibald_pgq.store.embedded.programs import OLDEST
from archibald_pgq.store.sql import statement

CODE_REVISION = "0011"
"""The schema revision that this code was written for."""

_PACKAGE = Path(__file__).resolve().parent.parent
ALEMBIC_INI = next(path for path in (_PACKAGE / "alembic.ini", _PACKAGE.parent / "alembic.ini") if path.is_file())
"""In the wheel the migrations lie inside the package, in a checkout at its top level."""

MEND = "run `archibald-pgq migrate`"

REVISION = """
SELECT v.version_num, r.oldest_code
  FROM archibald.alembic_version v LEFT JOIN archibald.schema_revisions r ON r.revision = CAST(v.version_num AS text)
 ORDER BY v.version_num DESC LIMIT 1
"""
"""The database's revision and the oldest code that it serves; where there is no schema it fails with one of `NO_SCHEMA`."""

MIGRATION_LOCK = 7310310224816104
"""The key of the advisory lock that a migration holds."""

BUSY_TABLES = ("archibald.jobs", "archibald.agents", "archibald.workers")
"""In the order in which an enqueue takes them. The other way round enqueues met a deadlock, and it was they that failed."""

STALL = 0.5
"""Seconds that enqueues and heartbeats may wait behind an attempt that waits for locks itself, of all its locks together."""

VACUUM_PATIENCE = "3s"
"""Longer than `deadlock_timeout`, after which Postgres ends an autovacuum for us."""

PAUSE = 1.0
"""Seconds between two attempts: heartbeats and enqueues that waited behind one get through."""

PATIENCE = 60.0
"""Seconds after which the attempts end."""

# Whoever made an attempt fail has held a lock of a table of ours, or of the migrations, for longer than that attempt.
_HOLDER = """
SELECT CASE WHEN l.pid IS NULL THEN 'a prepared transaction'
            ELSE format('backend %%s (%%s, user %%s, %%s, its transaction is %%s s old)', a.pid, coalesce(nullif(a.application_name, ''),
                        a.backend_type), a.usename, coalesce(a.state, 'state unknown'), round(extract(epoch FROM now() - a.xact_start)))
       END
  FROM pg_locks l LEFT JOIN pg_stat_activity a ON a.pid = l.pid
 WHERE l.granted AND l.pid IS DISTINCT FROM pg_backend_pid()
   AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
   AND (l.relation IN (SELECT oid FROM pg_class WHERE relnamespace = to_regnamespace('archibald'))
        OR l.locktype = 'advisory' AND (l.classid::bigint << 32) + l.objid::bigint = %s)
 ORDER BY a.xact_start NULLS LAST LIMIT 1
"""

NO_SCHEMA = (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName)


_one_at_a_time = threading.Lock()
"""Alembic keeps what it works on in globals: two apps of one process must not migrate at the same time."""


def _renew() -> None:
    global _one_at_a_time  # noqa: PLW0603  # in a forked child: the thread that held it is not there
    _one_at_a_time = threading.Lock()


os.register_at_fork(after_in_child=_renew)


def upgrade(dsn: str, say: Callable[[str], None] = lambda _: None) -> None:
    """Bring the database at `dsn` to this code's schema; does nothing where it is already there. `say` hears why it takes longer.

    Raises:
        DatabaseError: it cannot be reached, is too old, refuses (for instance, no right to create a schema), or somebody keeps a lock.
        SchemaError: it was migrated by newer code.
    """
    until = time.monotonic() + PATIENCE
    for attempt in itertools.count(1):
        try:
            _upgrade(dsn)
        except psycopg.errors.LockNotAvailable:
            holder = _holder(dsn)
            if time.monotonic() >= until:
                raise DatabaseError(
                    f"the database at {redacted(dsn)} is not migrated: {holder} kept a lock through {attempt} attempts; "
                    "end that transaction, and run `archibald-pgq migrate` again"
                ) from None
            say(f"attempt {attempt}: {holder} holds a lock; the next attempt is in {PAUSE:.0f} s")
            time.sleep(PAUSE)
        else:
            return


def _holder(dsn: str) -> str:
    with psycopg.connect(with_options(dsn, connect_timeout=CONNECT_TIMEOUT), autocommit=True) as connection:
        row = connection.execute(_HOLDER, (MIGRATION_LOCK,)).fetchone()
    return row[0] if row else "somebody who has let go by now"


def _upgrade(dsn: str) -> None:
    # Imported here: Alembic is slow to import, and most commands have nothing to migrate. A child that is forked meanwhile would wait
    # for a module that is half imported.
    with opening():
        from alembic import command
        from alembic.config import Config
        from alembic.util.exc import CommandError

    config = Config(str(ALEMBIC_INI), stdout=io.StringIO())
    config.attributes["dsn"] = dsn
    try:
        with _one_at_a_time:
            command.upgrade(config, "head")
    except CommandError:
        raise SchemaError(
            f"the schema archibald at {redacted(dsn)} is newer than this code; upgrade archibald-pgq"
        ) from None
    except psycopg.errors.LockNotAvailable:
        raise
    except psycopg.Error as error:
        raise _refused(dsn, error) from None
    except Exception as error:
        cause = getattr(error, "orig", None)  # SQLAlchemy wraps the driver's error
        if isinstance(cause, psycopg.errors.LockNotAvailable):
            raise cause from None
        if isinstance(cause, psycopg.Error):
            raise _refused(dsn, cause) from None
        raise


def roles_sql() -> str:
    """Return the SQL that makes the roles and gives each its rights, as one transaction for psql."""
    return f"{statement('roles')}{statement('grants')}\nCOMMIT;\n"


def bound_waits(connection: psycopg.Connection[Any], seconds: float) -> None:
    """Let no statement of this transaction wait for a lock for longer, of those that follow."""
    connection.execute("SELECT set_config('lock_timeout', %s, true)", (f"{max(1, round(seconds * 1000))}ms",))


def take_busy_tables(connection: psycopg.Connection[Any]) -> None:
    """Lock the tables that everybody uses, so that what a migration does to them waits for nobody any more.

    In two steps. The first lock stops nobody's work, and waits for an autovacuum to end. Behind the second everybody waits: it has to wait
    for transactions only, and has one bound for all tables, because `lock_timeout` is one for each lock.
    """
    connection.execute(f"SET LOCAL lock_timeout = '{VACUUM_PATIENCE}'")
    connection.execute(f"LOCK TABLE {', '.join(BUSY_TABLES)} IN SHARE UPDATE EXCLUSIVE MODE")
    until = time.monotonic() + STALL
    for table in BUSY_TABLES:
        bound_waits(connection, until - time.monotonic())
        connection.execute(f"LOCK TABLE {table}")
    bound_waits(connection, until - time.monotonic())


def become_owner(connection: psycopg.Connection[Any]) -> bool:
    """Make the schema, and go on as its owner `archibald_owner` in this transaction; False if this role is no member of it.

    What a migration makes then belongs to that role, whoever runs it.
    """
    found = connection.execute(
        "SELECT r.rolname = 'archibald_owner', pg_has_role(r.oid, 'MEMBER') FROM pg_namespace n JOIN pg_roles r ON r.oid = n.nspowner "
        "WHERE n.nspname = 'archibald'"
    ).fetchone()
    if found is None:
        # IF NOT EXISTS would need the right to create one also where it exists
        connection.execute("CREATE SCHEMA archibald")
        return False
    if not all(found):
        return False
    connection.execute("SET LOCAL ROLE archibald_owner")
    return True


def grant_rights(connection: psycopg.Connection[Any]) -> None:
    """Give the roles their rights on what is there now; for who has become the owner."""
    connection.execute(statement("grants"))


def _refused(dsn: str, error: psycopg.Error) -> DatabaseError:
    if isinstance(error, psycopg.OperationalError):
        return unreachable(dsn, error)
    return DatabaseError(f"the database at {redacted(dsn)} cannot be migrated: {str(error).strip().splitlines()[0]}")


def require_supported(connection: psycopg.Connection[Any], dsn: str) -> None:
    """Refuse a server that is too old; its version is what it said at the start of the connection.

    Raises:
        DatabaseError: it is older than `OLDEST`.
    """
    found = connection.info.server_version // 10000
    if found < OLDEST:
        raise DatabaseError(
            f"the database at {redacted(dsn)} is on PostgreSQL {found}, and {OLDEST} or newer is needed; upgrade that "
            "server, or set ARCHIBALD_DATABASE_URL to a database on a newer one"
        )


def check(connection: psycopg.Connection, dsn: str) -> None:
    """Refuse a server and a schema that this code cannot work on.

    Raises:
        DatabaseError: the server is too old.
        SchemaError: it is missing, older, or newer and no longer serves this code; the message names the mend.
    """
    require_supported(connection, dsn)
    judge(_revision(connection), dsn)


def judge(found: tuple[Any, ...] | None, dsn: str) -> None:
    """Refuse what `REVISION` found (None: nothing), as `check` does.

    Raises:
        SchemaError: see `check`.
    """
    if found is None:
        raise SchemaError(f"there is no schema archibald at {redacted(dsn)}; {MEND}")
    revision, oldest_code = found
    if revision < CODE_REVISION:
        raise SchemaError(
            f"the schema archibald at {redacted(dsn)} is at revision {revision}, this code needs {CODE_REVISION}; {MEND}"
        )
    if not _serves(revision, oldest_code):
        raise SchemaError(
            f"the schema archibald at {redacted(dsn)} is at revision {revision} and no longer serves this code "
            f"(revision {CODE_REVISION}); upgrade archibald-pgq"
        )


async def serves(connection: psycopg.AsyncConnection[Any]) -> bool:
    """True while the schema serves this code: what a worker asks from time to time, for others may migrate while it runs."""
    try:
        found = await (await connection.execute(REVISION)).fetchone()
    except NO_SCHEMA:
        return False
    return found is not None and _serves(*found)


def _serves(revision: str, oldest_code: str | None) -> bool:
    return revision == CODE_REVISION or (
        revision > CODE_REVISION and oldest_code is not None and oldest_code <= CODE_REVISION
    )


def _revision(connection: psycopg.Connection) -> tuple[Any, ...] | None:
    try:
        return connection.execute(REVISION).fetchone()
    except NO_SCHEMA:
        return None


def ready(dsn: str) -> bool:
    """True if this code works on the database as it is, so that `upgrade` has nothing to do.

    Raises:
        DatabaseError: it cannot be reached.
    """
    try:
        with psycopg.connect(with_options(dsn, connect_timeout=CONNECT_TIMEOUT), autocommit=True) as connection:
            found = _revision(connection)
    except psycopg.OperationalError as error:
        raise unreachable(dsn, error) from None
    return found is not None and _serves(*found)
