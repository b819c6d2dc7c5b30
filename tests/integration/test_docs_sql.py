"""Every query of docs/sql.md runs as it stands, on a database in which each of its questions has an answer."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable

import psycopg
import pytest

from archibald_pgq import Archibald, JobContext
from tests.documents import Block, blocks
from tests.support import Look, Stage, looking, working

QUERIES = blocks("docs/sql.md", "sql")


@pytest.fixture
async def busy(app: Archibald, look: Look, database: str) -> AsyncIterator[Look]:
    """A day in one moment: jobs that run, wait for each thing there is to wait for, failed, were retried, and need a person."""
    stage = Stage()
    stage.register(app, "submit-order", "sync-orders")

    @app.operation("edit-order")
    async def fail(ctx: JobContext, data: dict[str, object]) -> None:
        raise RuntimeError("the ERP refuses")

    @app.operation("delete-order")
    async def in_steps(ctx: JobContext, data: dict[str, object]) -> None:
        async def done() -> int:
            return 7

        async def lost() -> None:
            raise TimeoutError("no answer")

        await ctx.once("look it up", done)
        await ctx.once("delete", lost, key="o-7")

    async with looking(database) as other:
        await app.enqueue("delete-order", user_id="gina")
        assert await other.value("SELECT archibald.try_lock_agent('carol')")
        requeued = await app.enqueue("submit-order", user_id="carol")
        failed = await app.enqueue("edit-order", user_id="dan")
        first = await app.enqueue("submit-order", user_id="alice", data={"order": 1})
        async with working(app):
            await stage.until_started(1)
            await look.until_state(first.id, "running")
            await look.until_state(failed.id, "failed")
            await look.until("SELECT count(*) = 1 FROM archibald.job_history WHERE user_id = 'gina'")
            await look.until("SELECT wait_reason = 'requeue' FROM archibald.jobs WHERE id = %s", requeued.id)
            await look.until_state((await app.retry(failed.id)).id, "failed")
            await app.enqueue("sync-orders", user_id="frank", delay=3600)
            await app.pause_agent("frank", reason="on holiday")
            await app.enqueue("submit-order", user_id="frank")
            await app.enqueue("submit-order", user_id="alice", data={"order": 2})
            await app.enqueue("sync-orders", user_id="alice", delay=3600)
            doubtful = await app.enqueue("submit-order", user_id="erin", delay=3600)
            await look.rows(
                "UPDATE archibald.jobs SET state = 'needs_review', losses = 1, started_at = now(), last_error = 'its worker died' "
                "WHERE id = %s",
                doubtful.id,
            )
            await look.rows(
                "INSERT INTO archibald.workers (host, pid, version, concurrency, kinds, lease_s, beat, browsers) "
                """VALUES ('driving', 1, '1', 10, '{}', 6, now() + interval '1 h', '{"in_use": 4}')"""
            )
            yield look
            await stage.let_go()


async def _run(look: Look, block: Block) -> list[tuple[object, ...]]:
    """Run a block's statements, one after the other as psql does, and return the rows of the last one."""
    rows: list[tuple[object, ...]] = []
    for statement in filter(None, map(str.strip, block.code.split(";\n"))):
        rows = await look.rows(statement.removesuffix(";"))
    return rows


@pytest.mark.parametrize("block", QUERIES, ids=lambda block: block.name)
async def test_a_query_of_the_cookbook_runs_and_has_an_answer(busy: Look, block: Block) -> None:
    rows = await _run(busy, block)
    if "HAVING count(*) FILTER (WHERE state = 'running') > 1" in block.code:
        assert rows == []
    elif "SELECT" in block.code:
        assert rows
    assert busy.connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE


async def test_each_waiting_job_is_told_what_it_waits_for(busy: Look) -> None:
    (block,) = [block for block in QUERIES if "waits_for" in block.code]
    reasons = {(row[1], row[2]): str(row[3]) for row in await _run(busy, block)}
    assert reasons["alice", "submit-order"].startswith("its agent runs job ")
    assert reasons["alice", "sync-orders"].startswith("not due until ")
    assert reasons["carol", "submit-order"].startswith("its agent is locked by somebody else; tried again at ")
    assert reasons["erin", "submit-order"] == "a person must decide"
    assert reasons["frank", "submit-order"] == "its agent is paused: on holiday"


async def test_the_counts_of_the_cookbook_are_those_of_stats(busy: Look, app: Archibald) -> None:
    (block,) = [block for block in QUERIES if "ROLLUP" in block.code]
    counted = {record.job_class: dataclasses.astuple(record) for record in await app.stats()}
    assert set(await _run(busy, block)) == {
        *(counts for counts in counted.values() if any(counts[1:])),
        ("total", *(sum(column) for column in zip(*(counts[1:] for counts in counted.values()), strict=True))),
    }


async def test_duplicates_of_the_cookbook_are_one_job(look: Look) -> None:
    (block,) = [block for block in QUERIES if "the_same_job" in block.code]
    await _run(look, block)
    assert await look.value("SELECT count(*) FROM archibald.all_jobs WHERE idempotency_key = 'o-8'") == 1
    (block,) = [block for block in QUERIES if "ROLLBACK" in block.code]
    await _run(look, block)
    assert await look.value("SELECT count(*) FROM archibald.all_jobs WHERE idempotency_key = 'o-9'") == 0


async def test_the_window_of_a_session_decides_about_a_finished_job(app: Archibald, look: Look) -> None:
    """The setting `archibald.dedup_window` of docs/settings.md."""
    stage = Stage(hold=False)
    stage.register(app, "submit-order")
    enqueue = "SELECT archibald.enqueue('alice', 'submit-order', '{}', %s)"
    async with working(app):
        await look.rows("SET archibald.dedup_window = '0'")
        short = await look.value(enqueue, "short")
        await look.rows("SET archibald.dedup_window = '60'")
        long = await look.value(enqueue, "long")
        for job in (short, long):
            await look.until_state(job, "completed")
        assert await look.value(enqueue, "short") != short
        assert await look.value(enqueue, "long") == long


async def test_an_enqueue_without_a_notification_is_found(app: Archibald, look: Look, database: str) -> None:
    """The setting `archibald.notify` of docs/settings.md."""
    stage = Stage(hold=False)
    stage.register(app, "submit-order")
    async with working(app), looking(database) as ear:
        await ear.rows("LISTEN archibald")
        await look.rows("SET archibald.notify = 'off'")
        job = await look.value("SELECT archibald.enqueue('alice', 'submit-order')")
        await look.until_state(job, "completed")
        await ear.value("SELECT 1")
        assert [note.payload async for note in ear.connection.notifies(timeout=0)] == []


@pytest.mark.parametrize("put_away", [Archibald.discard, Archibald.cancel])
async def test_a_job_in_review_holds_nobody_up_and_put_away_its_key_is_free(
    app: Archibald, look: Look, put_away: Callable[[Archibald, int], Awaitable[object]]
) -> None:
    """What docs/operations.md tells a person to do with `needs_review`."""
    stage = Stage(hold=False)
    stage.register(app, "submit-order")
    job = await app.enqueue("submit-order", user_id="alice", data={"n": 1}, idempotency_key="o-1")
    await look.rows("UPDATE archibald.jobs SET state = 'needs_review', started_at = now() WHERE id = %s", job.id)
    assert (await app.enqueue("submit-order", user_id="alice", idempotency_key="o-1")).id == job.id  # it keeps its key
    async with working(app):
        other = await app.enqueue("submit-order", user_id="alice", data={"n": 2})
        await other.wait(timeout=20)  # it does not hold its agent up
        await put_away(app, job.id)
        await look.until_state(job.id, "cancelled")
        again = await app.enqueue("submit-order", user_id="alice", data={"n": 1}, idempotency_key="o-1")
        assert again.id != job.id
        assert await again.wait(timeout=20) == {"ran": {"n": 1}}
