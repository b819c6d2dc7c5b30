"""Migrations: what they make is what the code believes, in tables and in functions."""

from __future__ import annotations

import asyncio
import hashlib
import re
import runpy
from pathlib import Path

import psycopg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from psycopg.conninfo import make_conninfo
from sqlalchemy import create_engine, pool

from archibald_pgq import DatabaseError
from archibald_pgq.store import migrations, sql
from archibald_pgq.store.tables import metadata
from tests.commands import CHECKOUT, alembic, command, fingerprint
from tests.support import looking

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


def test_the_columns_of_all_jobs_are_documented_and_no_others(database: str) -> None:
    page = (CHECKOUT / "docs/sql.md").read_text(encoding="utf-8").split("## The columns of archibald.all_jobs")[1]
    with psycopg.connect(database) as connection:
        cursor = connection.execute("SELECT * FROM archibald.all_jobs LIMIT 0")
        columns = [column.name for column in cursor.description or ()]
    assert re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE) == columns


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


FROZEN = Path(__file__).with_name("frozen.sha256")
"""`sha256sum` of every file that a landed migration reads, and of the migration itself; when one lands, its files are added."""


def test_no_file_that_a_landed_migration_reads_was_edited() -> None:
    lines = [line.split() for line in FROZEN.read_text(encoding="utf-8").splitlines()]
    changed = [path for digest, path in lines if hashlib.sha256((CHECKOUT / path).read_bytes()).hexdigest() != digest]
    assert changed == [], "they have landed; write the change into a new migration"
    landed = {path for _, path in lines}
    assert {"migrations/versions/0001_core.py", "migrations/sql/0001_tables.sql"} <= landed
    functions = runpy.run_path(str(CHECKOUT / "migrations/versions/0001_core.py"))["FUNCTIONS"]
    assert {f"archibald_pgq/store/sql/functions/{name}.sql" for name in functions} <= landed


async def test_a_migration_that_cannot_get_a_lock_says_who_has_it_and_ends(
    empty_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert alembic(empty_database, "upgrade", "0001").returncode == 0
    monkeypatch.setattr(migrations, "PATIENCE", 0.0)
    monkeypatch.setattr(migrations, "PAUSE", 0.1)
    with psycopg.connect(empty_database, application_name="a long transaction") as holder:
        holder.execute("LOCK TABLE archibald.alembic_version IN ACCESS SHARE MODE")
        holder.execute("SELECT pg_advisory_xact_lock(%s)", (migrations.MIGRATION_LOCK,))
        with pytest.raises(DatabaseError, match=r"backend \d+ \(a long transaction, user .*\) kept a lock"):
            migrations.upgrade(empty_database)
        monkeypatch.setattr(migrations, "PATIENCE", 20.0)
        said: list[str] = []
        waiting = asyncio.create_task(asyncio.to_thread(migrations.upgrade, empty_database, said.append))
        async with asyncio.timeout(20):
            while not said:  # noqa: ASYNC110  # told from a thread
                await asyncio.sleep(0.01)
        holder.rollback()
        await waiting
    assert "a long transaction" in said[0]
    with psycopg.connect(empty_database) as connection:
        migrations.check(connection, empty_database)


async def test_while_a_migration_waits_for_an_autovacuum_jobs_are_enqueued(empty_database: str) -> None:
    """The lock that this test holds is the one that a vacuum holds; Postgres ends only those of its own making."""
    assert alembic(empty_database, "upgrade", "0001").returncode == 0
    async with looking(empty_database) as vacuum, looking(empty_database) as look:
        await vacuum.rows("BEGIN")
        await vacuum.rows("LOCK TABLE archibald.agents IN SHARE UPDATE EXCLUSIVE MODE")
        waiting = asyncio.create_task(asyncio.to_thread(migrations.upgrade, empty_database))
        waits = "SELECT EXISTS (SELECT FROM pg_locks WHERE relation = 'archibald.agents'::regclass AND NOT granted)"
        await look.until(waits)
        await look.rows("SET lock_timeout = '1ms'")
        await look.rows("SELECT archibald.enqueue('alice', 'submit-order', '{}')")
        assert await look.value(waits)
        await vacuum.rows("COMMIT")
        await waiting
    with psycopg.connect(empty_database) as connection:
        migrations.check(connection, empty_database)


@pytest.mark.parametrize("revision", [None, "0001"])
def test_a_worker_and_a_client_refuse_a_missing_and_an_older_schema(empty_database: str, revision: str | None) -> None:
    if revision is not None:
        assert alembic(empty_database, "upgrade", revision).returncode == 0
    for arguments in (["run", "tests.acceptance.fault_app:app"], ["enqueue", "submit-order", "alice"]):
        ended = command(*arguments, database=empty_database, env={"FAULT_FOLDER": "/tmp", "FAULT_WORKER": "x"})
        assert "run `archibald-pgq migrate`" in ended.refused()
