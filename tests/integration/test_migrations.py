"""Migrations: what they make is what the code believes, in tables and in functions."""

from __future__ import annotations

import psycopg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from psycopg.conninfo import make_conninfo
from sqlalchemy import create_engine, pool

from archibald_pgq.store import migrations, sql
from archibald_pgq.store.tables import all_jobs, metadata
from tests.commands import CHECKOUT, alembic, fingerprint

FUNCTIONS = (
    "SELECT p.oid::regprocedure::text, p.prosrc, pg_get_function_result(p.oid), p.provolatile, p.prosecdef, p.proconfig::text "
    "FROM pg_proc p WHERE pronamespace = 'archibald'::regnamespace ORDER BY 1"
)


def test_the_tables_of_the_code_are_those_of_the_migrated_database(database: str) -> None:
    # a role named like the schema, as the embedded server's, would have it as its default schema
    dsn = make_conninfo(database, options="-c search_path=public")
    engine = create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(dsn), poolclass=pool.NullPool)
    with engine.connect() as connection:
        partitions = {
            name
            for (name,) in connection.exec_driver_sql("SELECT relname FROM pg_class WHERE relispartition").fetchall()
        }
        context = MigrationContext.configure(
            connection,
            opts={
                "include_schemas": True,
                "version_table_schema": "archibald",
                "compare_type": True,
                "compare_server_default": True,
                # a partition follows its table
                "include_object": lambda thing, name, kind, reflected, compare_to: (
                    kind != "table" or name not in partitions
                ),
            },
        )
        assert compare_metadata(context, metadata) == []
    engine.dispose()


def test_the_view_of_the_code_is_that_of_the_migrated_database(database: str) -> None:
    with psycopg.connect(database) as connection:
        cursor = connection.execute("SELECT * FROM archibald.all_jobs LIMIT 0")
        assert [column.name for column in cursor.description or ()] == [column.name for column in all_jobs.columns]


def test_the_functions_of_the_migrated_database_are_those_of_the_current_files(database: str) -> None:
    """The newest version of each file, applied to the same tables, changes nothing."""
    folder = CHECKOUT / "archibald_pgq" / "store" / "sql" / "functions"
    newest: dict[str, int] = {}
    for path in folder.glob("*.sql"):
        name, version = path.stem.rsplit(".v", maxsplit=1)
        newest[name] = max(newest.get(name, 0), int(version))
    with psycopg.connect(database) as connection:
        migrated = connection.execute(FUNCTIONS).fetchall()
        security = newest.pop("security")
        for name, number in (*newest.items(), ("security", security)):  # as in a migration, it is the last
            text = sql.function(f"{name}.v{number}").replace("CREATE FUNCTION", "CREATE OR REPLACE FUNCTION")
            connection.execute(text.replace("CREATE TRIGGER", "CREATE OR REPLACE TRIGGER"))
        assert connection.execute(FUNCTIONS).fetchall() == migrated
        connection.rollback()
    assert len(migrated) >= len(newest)


def test_each_migration_records_the_oldest_code_that_it_serves(database: str) -> None:
    with psycopg.connect(database) as connection:
        rows = connection.execute("SELECT revision, oldest_code <= revision FROM archibald.schema_revisions").fetchall()
        assert rows == [(path.name[:4], True) for path in sorted((CHECKOUT / "migrations" / "versions").glob("0*.py"))]
        assert rows[-1][0] == migrations.CODE_REVISION


def test_alembic_upgrade_head_with_the_top_level_file_is_migrate(empty_database: str, database: str) -> None:
    ended = alembic(empty_database, "upgrade", "head")
    assert ended.returncode == 0, ended.stderr
    made, expected = fingerprint(empty_database), fingerprint(database)
    for found in (made, expected):
        del found["archibald.schema_revisions"]  # it has the time
    assert made == expected


@pytest.mark.parametrize("arguments", [("upgrade", "head"), ("current",)])
def test_alembic_without_a_database_says_which_setting_names_one(arguments: tuple[str, ...]) -> None:
    ended = alembic(None, *arguments)
    assert ended.returncode != 0
    assert "no database is named; set ARCHIBALD_DATABASE_URL, or use `archibald-pgq migrate`" in ended.stderr
