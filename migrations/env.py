"""Alembic's entry: one connection, one transaction for all that is missing, and a lock so that two migrations never run at once.

The lock is the transaction's and not the session's, and so is the bound on waiting for others' locks: a connection pooler may be
in between.
"""

from __future__ import annotations

from typing import cast

import psycopg
from alembic import context
from sqlalchemy import create_engine, pool

from archibald_pgq import config as settings
from archibald_pgq.errors import ConfigError
from archibald_pgq.store.dsn import to_libpq
from archibald_pgq.store.migrations import MIGRATION_LOCK, become_owner, grant_rights, require_supported
from archibald_pgq.store.tables import metadata

LOCK_TIMEOUT = 500
"""Milliseconds, where the caller names no other bound: as long as that, enqueues may wait behind a statement that waits for a lock."""


def _not_a_partition(name: str | None, kind: str, _parents: object) -> bool:
    """The history's partitions come and go by themselves; they are no part of what the code declares."""
    return not (kind == "table" and name is not None and name.startswith("job_history_"))


def _connect(dsn: str) -> psycopg.Connection:
    connection = psycopg.connect(to_libpq(dsn), prepare_threshold=None)
    try:
        require_supported(connection, dsn)
    except BaseException:
        connection.close()
        raise
    return connection


def run() -> None:
    """Migrate the database that the caller named, else the one of the environment."""
    dsn = context.config.attributes.get("dsn")
    if dsn is None:
        given = settings.load()
        dsn = given.direct_url or given.database_url
    if dsn is None:
        raise ConfigError("no database is named; set ARCHIBALD_DATABASE_URL, or use `archibald-pgq migrate`")
    if context.is_offline_mode():
        raise ConfigError("migrations need a database; run them without --sql")
    engine = create_engine("postgresql+psycopg://", creator=lambda: _connect(dsn), poolclass=pool.NullPool)
    with engine.begin() as connection:
        driver = cast("psycopg.Connection", connection.connection.dbapi_connection)
        # as in the functions: whatever somebody put into another schema is not called with the rights of who migrates
        driver.execute("SET LOCAL search_path = pg_catalog, pg_temp")
        bound = f"{context.config.attributes.get('lock_timeout', LOCK_TIMEOUT)}ms"
        driver.execute("SELECT set_config('lock_timeout', %s, true)", (bound,))
        driver.execute("SELECT pg_advisory_xact_lock(%s)", (MIGRATION_LOCK,))
        owned = become_owner(driver)
        context.configure(
            connection=connection,
            target_metadata=metadata,
            version_table_schema="archibald",
            include_schemas=True,
            include_name=_not_a_partition,
            on_version_apply=lambda **_: grant_rights(driver) if owned else None,
        )
        context.run_migrations()
    engine.dispose()


run()
