"""The experiments behind docs/adr: what would have happened otherwise, and what happens here."""

from __future__ import annotations

import asyncio

import psycopg
import pytest

from archibald_pgq import Archibald
from tests.support import Look, Stage, looking, working

WAITS_FOR_A_LOCK = (
    "SELECT count(*) = 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
)


async def test_a_unique_index_would_raise_in_a_race_and_the_key_table_does_not(look: Look, database: str) -> None:
    """ADR 4: two enqueuers of the same sync, the second begins before the first commits."""
    await look.rows("CREATE TABLE naive (user_id text, kind text)")
    await look.rows("CREATE UNIQUE INDEX ON naive (user_id, kind)")
    await look.rows(
        "CREATE FUNCTION first_look() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "IF EXISTS (SELECT FROM naive WHERE user_id = NEW.user_id AND kind = NEW.kind) THEN RETURN NULL; END IF; RETURN NEW; END $$"
    )
    await look.rows("CREATE TRIGGER first_look BEFORE INSERT ON naive FOR EACH ROW EXECUTE FUNCTION first_look()")

    async def race(table: str) -> None:
        insert = f"INSERT INTO {table} (user_id, kind) VALUES ('alice', 'sync-orders')"
        async with looking(database) as first, looking(database) as second:
            await first.rows("BEGIN")
            await first.rows(insert)
            late = asyncio.create_task(second.rows(insert))
            await look.until(WAITS_FOR_A_LOCK)
            await first.rows("COMMIT")
            await late

    with pytest.raises(psycopg.errors.UniqueViolation):
        await race("naive")
    await race("archibald.jobs")
    assert await look.value("SELECT count(*) FROM archibald.jobs") == 1


async def test_a_transaction_of_20000_syncs_holds_few_locks(look: Look, database: str) -> None:
    """ADR 4: 256 buckets and a few relations, however many agents."""
    async with looking(database) as caller:
        await caller.rows("BEGIN")
        await caller.rows(
            "INSERT INTO archibald.jobs (user_id, kind) SELECT 'u' || n, 'sync-orders' FROM generate_series(1, 20000) n"
        )
        held = await look.value("SELECT count(*) FROM pg_locks WHERE pid = %s", caller.connection.info.backend_pid)
        await caller.rows("ROLLBACK")
    assert 256 <= held < 400


async def test_a_requeue_moves_run_after_and_not_waiting_since(app: Archibald, look: Look) -> None:
    """ADR 6."""
    stage = Stage(hold=False)
    stage.register(app, "submit-order")
    times = "SELECT run_after, waiting_since FROM archibald.all_jobs WHERE id = %s"
    assert await look.value("SELECT archibald.try_lock_agent('alice')")
    job = await app.enqueue("submit-order", user_id="alice")
    ((run_after, waiting_since),) = await look.rows(times, job.id)
    async with working(app):
        await look.until("SELECT wait_reason = 'requeue' FROM archibald.jobs WHERE id = %s", job.id)
        ((later, since),) = await look.rows(times, job.id)
        assert later > run_after
        assert since == waiting_since
        await look.rows("SELECT archibald.unlock_agent('alice')")
        await job.wait(timeout=20)
    assert (await look.rows(times, job.id))[0][1] == waiting_since


async def test_unlocking_waits_for_no_row_and_writes_none(look: Look, database: str) -> None:
    """ADR 7: with the lane's row locked by somebody's open transaction, and in a transaction that may only read."""
    await look.rows("INSERT INTO archibald.agents (user_id, lock_key) VALUES ('alice', archibald.lock_key('alice'))")
    async with looking(database) as holder, looking(database, options="-c lock_timeout=1s") as caller:
        await holder.rows("BEGIN")
        await holder.rows("SELECT FROM archibald.agents WHERE user_id = 'alice' FOR UPDATE")
        await caller.rows("BEGIN READ ONLY")
        assert await caller.value("SELECT archibald.try_lock_agent('alice')")
        assert await caller.value("SELECT archibald.unlock_agent('alice')")
        await caller.rows("COMMIT")
        await holder.rows("ROLLBACK")
