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
from archibald_pgq.store.migrations import (
    MIGRATION_LOCK,
    STALL,
    become_owner,
    bound_waits,
    grant_rights,
    require_supported,
    take_busy_tables,
)
from archibald_pgq.store.tables import metadata


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
        bound_waits(driver, STALL)
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
        migration = context.get_context()
        # not for `alembic current`, which goes nowhere, nor where there is no table yet or nothing to do
        if "destination_rev" in migration.opts and migration.get_current_heads() not in {
            (),
            (context.get_head_revision(),),
        }:
            take_busy_tables(driver)
        context.run_migrations()
    engine.dispose()


run()
