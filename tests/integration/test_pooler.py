"""Behind a real PgBouncer: everything but a worker's own connections works in transaction mode, and a worker there is refused."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import psycopg
import pytest
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import create_async_engine

from archibald_pgq import Archibald, DatabaseError, NewJob
from archibald_pgq.store import connect
from archibald_pgq.store.connect import worker_options
from archibald_pgq.store.direct import require_direct
from tests.commands import call, command, together
from tests.pooler import Pooler, needs_pgbouncer, pooler
from tests.support import Look, Stage, looking, working

pytestmark = needs_pgbouncer
APP = "tests.acceptance.fault_app:app"


@pytest.fixture
async def pooled(database: str) -> AsyncIterator[Pooler]:
    async with pooler(database) as made:
        yield made


async def test_every_way_in_and_every_look_works_through_transaction_mode(pooled: Pooler, look: Look) -> None:
    async with Archibald(pooled.dsn) as app:
        # more often than psycopg's five, after which it would prepare the statement in some session of the pool
        many = [await app.enqueue("submit-order", user_id=f"u{n}", idempotency_key=str(n)) for n in range(20)]
        await asyncio.gather(*(app.enqueue("submit-order", user_id="alice") for _ in range(20)))
        await app.enqueue_many([NewJob("submit-order", user_id="bob", data={"n": n}) for n in range(10)])
        assert len({job.id for job in many}) == 20
        async with await psycopg.AsyncConnection.connect(pooled.dsn, prepare_threshold=None) as connection:
            for _ in range(8):
                await app.enqueue("submit-order", user_id="carl", connection=connection)
            await connection.rollback()
            await app.enqueue("submit-order", user_id="carl", connection=connection)
        engine = create_async_engine(f"postgresql+psycopg://{pooled.url}", connect_args={"prepare_threshold": None})
        async with engine.begin() as begun:
            await app.enqueue("submit-order", user_id="dora", connection=begun)
        await engine.dispose()
        sync = await asyncio.to_thread(app.sync.enqueue, "submit-order", user_id="emil")
        sync_engine = create_engine(f"postgresql+psycopg://{pooled.url}", connect_args={"prepare_threshold": None})
        with sync_engine.begin() as own:
            app.sync.enqueue("submit-order", user_id="emil", connection=own)
        sync_engine.dispose()
        async with looking(pooled.dsn) as plain:
            await plain.rows("INSERT INTO archibald.jobs (user_id, kind) VALUES ('fred', 'submit-order')")
            await plain.rows("SELECT archibald.enqueue('fred', 'submit-order', '{}', 'key')")
        for _ in range(7):
            assert (await app.job(sync.id)).state == "queued"
            assert len(await app.jobs(limit=500)) == 56
            await app.stats()
            await app.workers()
            await app.agents()
            await app.review()
            await app.explain(sync.id)
        await app.pause_agent("alice", reason="a test")
        assert await app.resume_agent("alice")
        assert await app.cancel(sync.id) == "cancelled"
        again = await app.retry(sync.id)
        assert (await app.job(again.id)).retried_from == sync.id


async def test_every_command_works_through_transaction_mode(pooled: Pooler) -> None:
    (made,) = together([call("enqueue", "submit-order", "alice", database=pooled.dsn)])
    job = made.out.strip()
    looks = [["jobs"], ["agents"], ["stats"], ["workers"], ["review"], ["job", job], ["explain", job], ["migrate"]]
    acts = [["psql", "-c", "select 1"], ["cancel", job], ["retry", job]]
    for ended in together([call(*arguments, database=pooled.dsn) for arguments in looks + acts]):
        assert (ended.code, ended.err) == (0, ""), ended


async def test_migrate_makes_the_schema_through_transaction_mode(empty_database: str) -> None:
    async with pooler(empty_database) as pooled:
        first, second = together([call("migrate", database=pooled.dsn)] * 2)
        assert (first.code, second.code) == (0, 0), (first, second)
        async with looking(pooled.dsn) as look:
            assert await look.rows("SELECT FROM pg_locks WHERE locktype = 'advisory'") == []


async def test_the_window_of_one_client_is_not_another_clients(pooled: Pooler, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARCHIBALD_DEDUP_WINDOW", "77")
    async with Archibald(pooled.dsn) as app:
        await app.enqueue("submit-order", user_id="alice", idempotency_key="k")
    async with looking(pooled.dsn) as other:
        for _ in range(5):
            assert await other.value("SELECT coalesce(current_setting('archibald.dedup_window', true), '')") == ""


@pytest.mark.parametrize("mode", ["transaction", "session"])
async def test_a_worker_refuses_a_pooler_in_the_place_of_its_own_connections(database: str, mode: str) -> None:
    async with pooler(database, mode) as pooled:
        sentence = command("run", APP, database=pooled.dsn, env=_fault_environment()).err
        assert "there is a connection pooler at 127.0.0.1" in sentence
        assert "ARCHIBALD_DIRECT_URL" in sentence
        with_it = command(
            "run", APP, database=database, env={**_fault_environment(), "ARCHIBALD_DIRECT_URL": pooled.dsn}
        )
        assert (with_it.code, "connection pooler" in with_it.err) == (2, True), with_it


@pytest.mark.parametrize("mode", ["transaction", "session"])
async def test_a_pooler_that_takes_the_options_is_known_by_its_process_ids(database: str, mode: str) -> None:
    async with pooler(database, mode, extra="ignore_startup_parameters = options") as pooled:
        for _ in range(3):
            with pytest.raises(DatabaseError, match="connection pooler"):
                await connect.connect(worker_options(pooled.dsn, "worker", 6))


async def test_a_pooler_that_passes_on_process_ids_is_known_by_a_session_that_moves(pooled: Pooler) -> None:
    async with await psycopg.AsyncConnection.connect(pooled.dsn, autocommit=True) as connection:
        with pytest.raises(DatabaseError, match="connection pooler"):
            await require_direct(connection, pooled.dsn)


async def test_enqueued_through_the_pooler_a_worker_with_a_direct_url_runs_it(
    database: str, pooled: Pooler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ARCHIBALD_DIRECT_URL", database)
    stage = Stage(hold=False)
    async with Archibald(pooled.dsn) as app:
        stage.register(app, "submit-order")
        async with working(app):
            jobs = [await app.enqueue("submit-order", user_id=f"u{n % 7}", data={"n": n}) for n in range(30)]
            for job in jobs:
                await job.wait(timeout=20)
    assert (len(stage.started), stage.most_per_agent) == (30, 1)


async def test_a_direct_url_of_another_database_is_refused(pooled: Pooler, empty_database: str) -> None:
    ended = command(
        "run", APP, database=pooled.dsn, env={**_fault_environment(), "ARCHIBALD_DIRECT_URL": empty_database}
    )
    assert (ended.code, "ARCHIBALD_DIRECT_URL names another database" in ended.err) == (2, True), ended


@pytest.mark.parametrize("url", ["postgresql://127.0.0.1:9/x", "mysql://x"])
async def test_a_direct_url_that_cannot_be_used_is_one_sentence(database: str, url: str) -> None:
    ended = command("run", APP, database=database, env={**_fault_environment(), "ARCHIBALD_DIRECT_URL": url})
    assert (ended.code, "Traceback" in ended.err, len(ended.err.splitlines())) == (2, False, 1), ended


def _fault_environment() -> dict[str, Any]:
    return {"FAULT_FOLDER": "/tmp", "FAULT_WORKER": "refused"}
