"""Migrations: bringing a database to the schema of this code, and telling whether it has it.

Owns: where the migrations lie, the revision that this code needs, the rule of what serves what. Guarantees: `check` never changes
anything; `upgrade` is `alembic upgrade head` with the top-level `alembic.ini`.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import psycopg

from archibald_pgq.errors import DatabaseError, SchemaError
from archibald_pgq.store.connect import CONNECT_TIMEOUT, unreachable
from archibald_pgq.store.dsn import redacted, with_options
from archibald_pgq.store.embedded.programs import OLDEST
from archibald_pgq.store.sql import statement

CODE_REVISION = "0002"
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

NO_SCHEMA = (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName)


def upgrade(dsn: str) -> None:
    """Bring the database at `dsn` to this code's schema; does nothing where it is already there.

    Raises:
        DatabaseError: it cannot be reached, is too old, or refuses (for instance, no right to create a schema).
        SchemaError: it was migrated by newer code.
    """
    # Imported here: Alembic is slow to import, and most commands have nothing to migrate.
    from alembic import command
    from alembic.config import Config
    from alembic.util.exc import CommandError

    config = Config(str(ALEMBIC_INI), stdout=io.StringIO())
    config.attributes["dsn"] = dsn
    try:
        command.upgrade(config, "head")
    except CommandError:
        raise SchemaError(
            f"the schema archibald at {redacted(dsn)} is newer than this code; upgrade archibald-pgq"
        ) from None
    except psycopg.Error as error:
        raise _refused(dsn, error) from None
    except Exception as error:
        cause = getattr(error, "orig", None)  # SQLAlchemy wraps the driver's error
        if isinstance(cause, psycopg.Error):
            raise _refused(dsn, cause) from None
        raise


def roles_sql() -> str:
    """Return the SQL that makes the roles and gives each its rights, as one transaction for psql."""
    return f"{statement('roles')}{statement('grants')}\nCOMMIT;\n"


def become_owner(connection: psycopg.Connection[Any]) -> bool:
    """Make the schema there, and go on as `archibald_owner` where it owns the schema and this role is a member; False where it does not.

    What a migration makes then belongs to that role, whoever runs it.
    """
    found = connection.execute(
        "SELECT r.rolname = 'archibald_owner', pg_has_role(r.oid, 'MEMBER') FROM pg_namespace n JOIN pg_roles r ON r.oid = n.nspowner "
        "WHERE n.nspname = 'archibald'"
    ).fetchone()
    if found is None:
        connection.execute(
            "CREATE SCHEMA archibald"
        )  # IF NOT EXISTS would need the right to create one also where it exists
        return False
    if not all(found):
        return False
    connection.execute("SET ROLE archibald_owner")
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
