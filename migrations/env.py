"""Alembic's entry: one connection, one transaction per migration, and a lock so that two migrations never run at once."""

from __future__ import annotations

from typing import cast

import psycopg
from alembic import context
from sqlalchemy import create_engine, pool

from archibald_pgq import config as settings
from archibald_pgq.errors import ConfigError
from archibald_pgq.store.dsn import to_libpq
from archibald_pgq.store.migrations import become_owner, grant_rights, require_supported
from archibald_pgq.store.tables import metadata

MIGRATION_LOCK = 7310310224816104


def _not_a_partition(name: str | None, kind: str, _parents: object) -> bool:
    """The history's partitions come and go by themselves; they are no part of what the code declares."""
    return not (kind == "table" and name is not None and name.startswith("job_history_"))


def _connect(dsn: str) -> psycopg.Connection:
    connection = psycopg.connect(to_libpq(dsn))
    try:
        require_supported(connection, dsn)
    except BaseException:
        connection.close()
        raise
    return connection


def run() -> None:
    """Migrate the database that the caller named, else the one of the environment."""
    dsn = context.config.attributes.get("dsn") or settings.load().database_url
    if dsn is None:
        raise ConfigError("no database is named; set ARCHIBALD_DATABASE_URL, or use `archibald-pgq migrate`")
    if context.is_offline_mode():
        raise ConfigError("migrations need a database; run them without --sql")
    engine = create_engine("postgresql+psycopg://", creator=lambda: _connect(dsn), poolclass=pool.NullPool)
    with engine.connect() as connection:
        connection.exec_driver_sql("SELECT pg_advisory_lock(%s)", (MIGRATION_LOCK,))
        driver = cast("psycopg.Connection", connection.connection.dbapi_connection)
        # as in the functions: whatever somebody put into another schema is not called with the rights of who migrates
        driver.execute("SET search_path = pg_catalog, pg_temp")
        owned = become_owner(driver)
        connection.commit()
        context.configure(
            connection=connection,
            target_metadata=metadata,
            version_table_schema="archibald",
            include_schemas=True,
            include_name=_not_a_partition,
            transaction_per_migration=True,
            on_version_apply=lambda **_: grant_rights(driver) if owned else None,
        )
        with context.begin_transaction():
            context.run_migrations()
        connection.commit()
    engine.dispose()


run()
