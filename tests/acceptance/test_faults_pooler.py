"""PgBouncer is restarted, notifications are switched off, and the schema is migrated, while workers run."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import psycopg
import pytest

from archibald_pgq import Archibald, DatabaseError
from archibald_pgq.store import migrations
from tests.acceptance.conftest import Measured
from tests.acceptance.faults import Scene, scene
from tests.acceptance.history import Event, append, now
from tests.commands import command
from tests.pooler import needs_pgbouncer, pooler

LEASE = 2.0

# What a migration after this code's does to its books; `serves` is the oldest code that it still serves.
LATER = """
BEGIN;
SET LOCAL lock_timeout = '500ms';
ALTER TABLE archibald.jobs ADD COLUMN of_later_code text;
ALTER TABLE archibald.workers ADD COLUMN of_later_code text;
INSERT INTO archibald.schema_revisions (revision, oldest_code) VALUES ('9999', '{serves}');
UPDATE archibald.alembic_version SET version_num = '9999';
COMMIT;
"""


async def _enqueue_until(stop: asyncio.Event, there: Scene, app: Archibald, stalls: list[float]) -> int:
    """Enqueue jobs until told to stop; return how often that was refused with one clear error."""
    refused = number = 0
    sentences: list[str] = []
    while not stop.is_set():
        number += 1
        began = time.monotonic()
        try:
            job = await app.enqueue(
                "fault-idempotent",
                user_id=f"u{number % 10}",
                data={"do": "short", "seconds": 0.01},
                idempotency_key=str(number),
            )
        except DatabaseError as error:
            sentences.append(str(error))
            refused += 1
            number -= 1  # the same key: what the lost reply said is one job
            await asyncio.sleep(0.01)
            continue
        stalls.append(time.monotonic() - began)
        append(there.history, Event(now(), "enqueued", job_id=job.id, user_id=f"u{number % 10}"))
    assert not [sentence for sentence in sentences if "\n" in sentence]
    return refused


@needs_pgbouncer
@pytest.mark.slow
async def test_over_a_restart_of_the_pooler_no_job_is_lost_or_doubled(database: str, measured: Measured) -> None:
    async with pooler(database) as pooled, scene(database) as there, Archibald(pooled.dsn) as app:
        await there.start("direct", database=pooled.dsn, ARCHIBALD_DIRECT_URL=database, ARCHIBALD_LEASE=LEASE)
        stop, stalls = asyncio.Event(), list[float]()
        caller = asyncio.create_task(_enqueue_until(stop, there, app, stalls))
        await there.look.until("SELECT count(*) > 30 FROM archibald.job_history")
        pooled.stop()
        began = time.monotonic()
        await pooled.start()
        done = len(stalls)
        async with asyncio.timeout(20):
            while len(stalls) == done:  # noqa: ASYNC110  # of another task
                await asyncio.sleep(0.01)
        measured("PgBouncer is restarted: from its start to the next enqueue", time.monotonic() - began)
        stop.set()
        await caller
        await there.until_ended()
        await there.stop_all()
        await there.check()


async def test_without_a_listener_jobs_start_and_are_cancelled_and_syncs_make_room_by_polling(
    database: str, measured: Measured
) -> None:
    async with scene(database) as there:
        worker = await there.start("deaf", ARCHIBALD_LISTEN="0", ARCHIBALD_PREEMPT_GRACE="0.2")
        began = time.monotonic()
        job = await there.enqueue("fault-read", "alice")
        await there.until_started(job)
        measured("ARCHIBALD_LISTEN=0: from the enqueue to the start", time.monotonic() - began)
        assert (
            await there.look.value(
                "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'LISTEN%' AND datname = current_database()"
            )
            == 0
        )
        began = time.monotonic()
        await there.app.cancel(job)
        await there.look.until_state(job, "cancelled")
        measured("ARCHIBALD_LISTEN=0: from the cancel to its end", time.monotonic() - began)
        sync = await there.enqueue("fault-sync", "bob")
        await there.until_started(sync)
        write = await there.enqueue("fault-write", "bob", do="short", seconds=0.01)
        await there.look.until_state(write, "completed")
        await there.look.value("SELECT archibald.try_lock_agent('carl')")
        locked = await there.enqueue("fault-read", "carl", do="short", seconds=0.01)
        await there.look.until("SELECT requeue_count > 0 FROM archibald.jobs WHERE id = %s", locked)
        await there.look.value("SELECT archibald.unlock_agent('carl')")
        await there.look.until_state(locked, "completed")
        there.open()
        await there.until_ended()
        assert worker.process.poll() is None
        await there.stop_all()
        await there.check()


@pytest.mark.slow
@pytest.mark.parametrize("serves", ["0001", "9999"])
async def test_a_migration_under_load_leaves_workers_that_it_serves_and_drains_the_others(
    database: str, measured: Measured, serves: str
) -> None:
    async with scene(database) as there:
        workers = [await there.start(name, ARCHIBALD_LEASE=LEASE) for name in ("one", "two")]
        held = await there.enqueue("fault-write", "alice")
        await there.until_started(held)
        stop, stalls = asyncio.Event(), list[float]()
        caller = asyncio.create_task(_enqueue_until(stop, there, there.app, stalls))
        await there.look.until("SELECT count(*) > 30 FROM archibald.job_history")
        began = time.monotonic()
        while True:
            try:
                await there.look.rows(LATER.format(serves=serves))
                break
            except psycopg.errors.LockNotAvailable:
                await there.look.rows("ROLLBACK")
        if serves == "0001":
            finished = await there.look.value("SELECT count(*) FROM archibald.job_history")
            await there.look.until("SELECT count(*) > %s FROM archibald.job_history", finished + 30)
            there.open()
        else:
            for worker in workers:
                await worker.until_logged("no longer serves this code")
            measured("migration under load: until both workers that it left behind drain", time.monotonic() - began)
            there.open()
            assert [await worker.exit_code() for worker in workers] == [3, 3]
            assert [worker.log.read_text().count("no longer serves this code") for worker in workers] == [1, 1]
            assert (await there.look.job(held, "state"))[0] == "completed"
            # the newer code is there: as far as the books say, this one
            await there.look.rows("UPDATE archibald.schema_revisions SET oldest_code = '0001' WHERE revision = '9999'")
            await there.start("newer", ARCHIBALD_LEASE=LEASE)
        stop.set()
        assert await caller == 0
        measured("migration under load: longest stall of an enqueue", max(stalls))
        await there.until_ended()
        await there.stop_all()
        await there.check()


async def test_a_worker_refuses_a_schema_of_the_future_that_does_not_serve_it(database: str) -> None:
    async with scene(database) as there:
        await there.look.rows(LATER.format(serves="9999"))
    surroundings: dict[str, Any] = {"env": {"FAULT_FOLDER": "/tmp", "FAULT_WORKER": "refused"}}
    ended = command("run", "tests.acceptance.fault_app:app", database=database, **surroundings)
    assert (ended.code, f"no longer serves this code (revision {migrations.CODE_REVISION})" in ended.err) == (2, True)
