"""Migrations: bringing a database to the schema of this code, and telling whether it has it.

Owns: where the migrations lie, the revision that this code needs, the rule of what serves what. Guarantees: `check` never changes
anything; `upgrade` is `alembic upgrade head` with the top-level `alembic.ini`.
"""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import psycopg
from alembic import command
from alembic.config import Config
from alembic.util.exc import CommandError

from archibald_pgq.errors import DatabaseError, SchemaError
from archibald_pgq.store.dsn import redacted, to_libpq

CODE_REVISION = "0001"
"""The schema revision that this code was written for."""

_PACKAGE = Path(__file__).resolve().parent.parent
ALEMBIC_INI = next(path for path in (_PACKAGE / "alembic.ini", _PACKAGE.parent / "alembic.ini") if path.is_file())
"""In the wheel the migrations lie inside the package, in a checkout at its top level."""

MEND = "run `archibald-pgq migrate`"


def upgrade(dsn: str) -> None:
    """Bring the database at `dsn` to this code's schema; does nothing where it is already there.

    Raises:
        DatabaseError: it cannot be reached, or refuses (for instance, no right to create a schema).
        SchemaError: it was migrated by newer code.
    """
    config = Config(str(ALEMBIC_INI), stdout=io.StringIO())
    config.attributes["dsn"] = dsn
    try:
        command.upgrade(config, "head")
    except CommandError:
        raise SchemaError(
            f"the schema archibald at {redacted(dsn)} is newer than this code; upgrade archibald-pgq"
        ) from None
    except psycopg.Error as error:
        raise DatabaseError(_sentence(dsn, error)) from None
    except Exception as error:
        cause = getattr(error, "orig", None)  # SQLAlchemy wraps the driver's error
        if isinstance(cause, psycopg.Error):
            raise DatabaseError(_sentence(dsn, cause)) from None
        raise


def _sentence(dsn: str, error: psycopg.Error) -> str:
    return f"the database at {redacted(dsn)} cannot be migrated: {str(error).strip().splitlines()[0]}"


def check(connection: psycopg.Connection, dsn: str) -> None:
    """Refuse a schema that this code cannot work on.

    Raises:
        SchemaError: it is missing, older, or newer and no longer serves this code; the message names the mend.
    """
    found = None
    with contextlib.suppress(psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName):
        found = connection.execute("SELECT max(version_num) FROM archibald.alembic_version").fetchone()
    revision = found[0] if found else None
    if revision is None:
        raise SchemaError(f"there is no schema archibald at {redacted(dsn)}; {MEND}")
    if revision < CODE_REVISION:
        raise SchemaError(
            f"the schema archibald at {redacted(dsn)} is at revision {revision}, this code needs {CODE_REVISION}; {MEND}"
        )
    if revision > CODE_REVISION:
        row = connection.execute(
            "SELECT oldest_code FROM archibald.schema_revisions WHERE revision = %s", (revision,)
        ).fetchone()
        if row is None or row[0] > CODE_REVISION:
            raise SchemaError(
                f"the schema archibald at {redacted(dsn)} is at revision {revision} and no longer serves this code "
                f"(revision {CODE_REVISION}); upgrade archibald-pgq"
            )


def ready(dsn: str) -> bool:
    """True if the database is at exactly this code's revision, so that `upgrade` has nothing to do."""
    with psycopg.connect(to_libpq(dsn), autocommit=True) as connection:
        try:
            row = connection.execute("SELECT max(version_num) FROM archibald.alembic_version").fetchone()
        except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName):
            return False
    return row is not None and row[0] == CODE_REVISION
