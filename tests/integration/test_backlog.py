"""An agent's backlog has a limit: every way in refuses what would exceed it, and nothing else is refused."""

from __future__ import annotations

import asyncio
import contextlib

import psycopg
import pytest
from psycopg import errors

from archibald_pgq import AgentBacklogError, Archibald, NewJob
from tests.commands import command
from tests.support import Look, Stage, working

SENTENCE = "the agent 'alice' has 3 queued jobs, and may have no more; enqueue again when some of them have run"
LIMIT = "UPDATE archibald.limits SET agent_backlog = %s"
QUEUED = "SELECT count(*) FROM archibald.jobs WHERE user_id = 'alice' AND state = 'queued'"
INSERT = "INSERT INTO archibald.jobs (user_id, kind) VALUES ('alice', 'submit-order')"


@pytest.fixture
def limited(monkeypatch: pytest.MonkeyPatch) -> None:
    """The setting of the processes of this test."""
    monkeypatch.setenv("ARCHIBALD_AGENT_BACKLOG", "3")


async def fill(look: Look, count: int = 3) -> None:
    await look.rows("SELECT archibald.enqueue('alice', 'submit-order') FROM generate_series(1, %s)", count)


async def test_the_setting_is_obeyed_by_every_enqueue_of_the_client(limited: None, database: str, look: Look) -> None:
    async with Archibald(database) as app, await psycopg.AsyncConnection.connect(database) as own:
        await app.enqueue_many([NewJob("submit-order", user_id="alice")] * 3)
        for refused in (
            app.enqueue("submit-order", user_id="alice"),
            app.enqueue("submit-order", user_id="alice", delay=60, idempotency_key="new"),
            app.enqueue_many([NewJob("submit-order", user_id="bob"), NewJob("submit-order", user_id="alice")]),
            app.enqueue("submit-order", user_id="alice", connection=own),
        ):
            with pytest.raises(AgentBacklogError) as caught:
                await refused
            assert str(caught.value) == SENTENCE
        await own.rollback()
        with pytest.raises(AgentBacklogError):
            await asyncio.to_thread(app.sync.enqueue, "submit-order", user_id="alice")
        await app.enqueue("submit-order", user_id="carl")
    assert command("enqueue", "submit-order", "alice", database=database).refused() == SENTENCE
    assert await look.value(QUEUED) == 3
    assert await look.value("SELECT count(*) FROM archibald.jobs") == 4
    assert await look.value("SELECT count(*) FROM archibald.idempotency_keys") == 0
    await look.rows(INSERT)  # who is told of no limit has none


async def test_the_limit_of_the_database_is_obeyed_by_sql_too_and_no_client_gets_around_it(
    database: str, look: Look, monkeypatch: pytest.MonkeyPatch
) -> None:
    await look.rows(LIMIT, 3)
    monkeypatch.setenv("ARCHIBALD_AGENT_BACKLOG", "100")
    await look.rows("SET archibald.agent_backlog = '100'")
    await fill(look)
    for statement in (
        INSERT,
        "SELECT archibald.enqueue('alice', 'submit-order')",
        "SELECT archibald.enqueue('alice', 'submit-order', retried_from => 1)",
        "SELECT archibald.enqueue_many('{alice}', '{submit-order}', ARRAY['{}']::jsonb[], ARRAY[NULL], ARRAY[NULL]::timestamptz[])",
        "COPY archibald.jobs (user_id, kind) FROM PROGRAM 'echo alice,submit-order' (FORMAT csv)",
        "INSERT INTO archibald.jobs (user_id, kind) SELECT u, 'submit-order' FROM unnest('{bob,bob,bob,bob}'::text[]) AS u",
    ):
        with pytest.raises(errors.Error) as caught:
            await look.rows(statement)
        assert caught.value.sqlstate == "AQ003", statement
    async with Archibald(database) as app:
        with pytest.raises(AgentBacklogError):
            await app.enqueue("submit-order", user_id="alice")
    await look.rows("SET archibald.agent_backlog = '4'")
    await look.rows(LIMIT, None)
    await look.rows(INSERT)
    with pytest.raises(errors.Error):
        await look.rows(INSERT)
    await look.rows("RESET archibald.agent_backlog")
    await look.rows(INSERT)


async def test_a_duplicate_a_retry_a_requeue_and_a_job_that_goes_back_are_never_refused(
    app: Archibald, look: Look
) -> None:
    stage = Stage()
    stage.register(app, "submit-order", "sync-orders")
    sync = await app.enqueue("sync-orders", user_id="alice", idempotency_key="s")
    cancelled = [await app.enqueue("submit-order", user_id="alice") for _ in range(2)]
    for job in cancelled:
        await app.cancel(job.id)
    async with working(app):
        await stage.until_started(1)
        assert await look.value("SELECT archibald.try_lock_agent('alice')") is False
        await look.rows("SELECT archibald.pause_agent('alice')")
        await fill(look, 2)
        await look.rows(LIMIT, 2)
        assert (await app.enqueue("sync-orders", user_id="alice", idempotency_key="s")).id == sync.id
        again = await app.retry(cancelled[0].id)
        assert (await app.retry(cancelled[0].id)).id == again.id  # and once more it is the same, not one more
        await app.retry(cancelled[1].id)
        assert await look.value(QUEUED) == 4
        with pytest.raises(AgentBacklogError):
            await app.enqueue("submit-order", user_id="alice")
        await look.rows("SELECT archibald.resume_agent('alice')")  # the writes now preempt the sync, which goes back
        await stage.let_go()
        await look.until("SELECT NOT EXISTS (SELECT FROM archibald.jobs)")
        await app.enqueue("submit-order", user_id="alice")
    assert (
        await look.value(
            "SELECT count(*) FROM archibald.job_history WHERE state = 'completed' AND kind = 'sync-orders'"
        )
        == 1
    )


async def test_concurrent_enqueues_exceed_the_limit_by_those_under_way_at_most(look: Look, database: str) -> None:
    await look.rows(LIMIT, 20)

    async def enqueuer() -> None:
        async with await psycopg.AsyncConnection.connect(database, autocommit=True) as connection:
            for _ in range(10):
                with contextlib.suppress(errors.Error):
                    await connection.execute(INSERT)

    await asyncio.gather(*(enqueuer() for _ in range(8)))
    assert 20 <= await look.value(QUEUED) <= 20 + 7
    with pytest.raises(errors.Error):
        await look.rows(INSERT)


async def test_the_count_reads_no_more_than_the_limit(look: Look) -> None:
    """Of an agent with many jobs; also where the planner, by its statistics, would rather sort or read them all."""
    await look.rows(
        "INSERT INTO archibald.jobs (user_id, kind) SELECT 'alice', 'submit-order' FROM generate_series(1, 5000)"
    )
    await look.rows("ANALYZE archibald.jobs")
    await look.rows(LIMIT, 10)

    read = """
        SELECT pg_stat_get_xact_tuples_fetched(oid) + pg_stat_get_xact_tuples_returned(oid)
             + (SELECT sum(pg_stat_get_xact_tuples_returned(indexrelid)) FROM pg_index WHERE indrelid = c.oid)
          FROM pg_class c WHERE oid = 'archibald.jobs'::regclass
    """
    async with look.connection.transaction():
        with pytest.raises(errors.Error) as caught:
            async with look.connection.transaction():
                await look.rows(INSERT)
        assert caught.value.sqlstate == "AQ003"
        assert 0 < await look.value(read) < 100
