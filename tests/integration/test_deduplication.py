"""What counts as a duplicate, and that nothing else does: idempotency keys, and the coalescing of syncs."""

from __future__ import annotations

import asyncio

import psycopg
import pytest

from archibald_pgq import Archibald
from archibald_pgq.domain.job import ClaimedJob
from archibald_pgq.domain.outcome import Outcome
from tests.hand import hand
from tests.support import Look, looking

ENQUEUE = "SELECT archibald.enqueue(%s, %s, '{}', %s)"
CONNECTIONS = 50
EACH = 20


@pytest.mark.parametrize("mode", ["autocommit", "transactions", "some rolled back"])
async def test_a_thousand_concurrent_enqueues_with_one_key_are_one_job(look: Look, database: str, mode: str) -> None:
    async def enqueue(caller: int) -> list[int]:
        ids = []
        async with looking(database) as own:
            for n in range(EACH):
                if mode == "autocommit":
                    ids.append(await own.value(ENQUEUE, "alice", "submit-order", "o-7"))
                    continue
                roll_back = mode == "some rolled back" and (caller + n) % 3 == 0
                async with own.connection.transaction(force_rollback=roll_back):
                    job_id = await own.value(ENQUEUE, "alice", "submit-order", "o-7")
                if not roll_back:  # else it may be the id of a job that never was
                    ids.append(job_id)
        return ids

    batches = await asyncio.gather(*(enqueue(caller) for caller in range(CONNECTIONS)))
    ids = {job_id for ids in batches for job_id in ids}
    assert len(ids) == 1
    assert await look.rows("SELECT id FROM archibald.all_jobs") == [(ids.pop(),)]


@pytest.mark.parametrize(
    ("outcome", "taken"),
    [
        (Outcome.completed("1"), True),
        (Outcome.failed("no"), False),
        (Outcome.cancelled("no"), False),
        (Outcome.needs_review("perhaps"), True),
        (Outcome.retry("again", 60), True),
    ],
    ids=["completed", "failed", "cancelled", "needs review", "retry"],
)
async def test_a_key_is_taken_by_a_live_or_completed_job_but_not_by_a_failed_or_cancelled_one(
    look: Look, database: str, outcome: Outcome, taken: bool
) -> None:
    first = await look.value(ENQUEUE, "alice", "submit-order", "o-7")
    async with hand(database) as worker:
        await worker.settle(await worker.claim_one(), outcome)
    again = await look.value(ENQUEUE, "alice", "submit-order", "o-7")
    assert (again == first) is taken
    assert await look.value("SELECT count(*) FROM archibald.all_jobs") == (1 if taken else 2)


@pytest.mark.parametrize(("event", "taken"), [("complete", False), ("review", True), ("waits", True)])
async def test_after_its_window_a_key_is_free_unless_its_job_is_live(
    look: Look, database: str, event: str, taken: bool
) -> None:
    first = await look.value(ENQUEUE, "alice", "submit-order", "o-7")
    async with hand(database) as worker:
        if event != "waits":
            outcome = Outcome.completed("1") if event == "complete" else Outcome.needs_review("perhaps")
            await worker.settle(await worker.claim_one(), outcome)
        # time passes
        await look.rows("UPDATE archibald.idempotency_keys SET expires_at = now()")
        assert (await look.value(ENQUEUE, "alice", "submit-order", "o-7") == first) is taken


async def test_the_window_is_counted_from_the_enqueue_and_is_a_setting(
    app: Archibald, look: Look, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    window = (
        "SELECT extract(epoch FROM k.expires_at - j.created_at)::float "
        "FROM archibald.idempotency_keys k JOIN archibald.jobs j ON j.id = k.job_id"
    )
    await app.enqueue("submit-order", user_id="alice", idempotency_key="a", delay=3600)
    assert await look.value(f"{window} WHERE key = 'a'") == 30
    monkeypatch.setenv("ARCHIBALD_DEDUP_WINDOW", "7")
    async with Archibald(database) as other:
        await other.enqueue("submit-order", user_id="alice", idempotency_key="b")
    assert await look.value(f"{window} WHERE key = 'b'") == 7


async def test_a_key_counts_per_user_and_whatever_the_kind(look: Look) -> None:
    first = await look.value(ENQUEUE, "alice", "submit-order", "k")
    assert await look.value(ENQUEUE, "alice", "download-ddt-pdf", "k") == first
    assert await look.value(ENQUEUE, "bob", "submit-order", "k") != first
    assert await look.value(ENQUEUE, "alice", "submit-order", "K") != first


async def test_without_a_key_a_write_or_read_is_never_a_duplicate(look: Look) -> None:
    ids = [await look.value(ENQUEUE, "alice", kind, None) for kind in ("submit-order", "download-ddt-pdf") * 3]
    assert len(set(ids)) == 6


async def test_through_plain_sql_a_duplicate_inserts_nothing_and_raises_nothing(look: Look) -> None:
    columns = "archibald.jobs (user_id, kind, idempotency_key)"
    await look.rows(
        f"INSERT INTO {columns} VALUES ('alice', 'submit-order', 'a'), ('alice', 'edit-order', 'a'), "
        "('alice', 'sync-orders', NULL), ('alice', 'sync-orders', NULL), ('alice', 'sync-orders', 'b')"
    )
    assert await look.rows("SELECT kind FROM archibald.jobs ORDER BY id") == [("submit-order",), ("sync-orders",)]
    cursor = await look.connection.execute(f"INSERT INTO {columns} VALUES ('alice', 'submit-order', 'a')")
    assert cursor.rowcount == 0
    async with look.connection.cursor() as cursor, cursor.copy(f"COPY {columns} FROM STDIN") as copy:
        for row in (("alice", "submit-order", "a"), ("bob", "submit-order", "c"), ("bob", "submit-order", "c")):
            await copy.write_row(row)
    assert await look.value("SELECT count(*) FROM archibald.jobs") == 3
    # the key of a sync that was a duplicate leads to the sync that was there
    assert await look.value(ENQUEUE, "alice", "edit-order", "b") == await look.value(
        "SELECT id FROM archibald.jobs WHERE kind = 'sync-orders'"
    )


@pytest.mark.parametrize("level", [psycopg.IsolationLevel.REPEATABLE_READ, psycopg.IsolationLevel.SERIALIZABLE])
async def test_no_duplicate_slips_through_a_stricter_isolation(
    look: Look, database: str, level: psycopg.IsolationLevel
) -> None:
    """What was committed before is found; what was committed meanwhile is the caller's serialization failure, never a second job."""
    first = await look.value(ENQUEUE, "alice", "submit-order", "before")
    async with looking(database) as caller:
        await caller.connection.set_isolation_level(level)
        async with caller.connection.transaction():
            assert await caller.value(ENQUEUE, "alice", "submit-order", "before") == first
            await look.value(ENQUEUE, "alice", "submit-order", "meanwhile")
            with pytest.raises(psycopg.errors.SerializationFailure):
                async with caller.connection.transaction():
                    await caller.value(ENQUEUE, "alice", "submit-order", "meanwhile")
    assert await look.value("SELECT count(*) FROM archibald.jobs") == 2


async def test_a_caller_who_enqueued_a_duplicate_and_goes_on_for_long_delays_nobody(look: Look, database: str) -> None:
    first = await look.value(ENQUEUE, "alice", "submit-order", "o-7")
    async with looking(database) as caller, caller.connection.transaction():
        assert await caller.value(ENQUEUE, "alice", "submit-order", "o-7") == first
        await look.rows("SET lock_timeout = '1s'")
        assert await look.value(ENQUEUE, "alice", "submit-order", "o-7") == first


async def test_a_requeue_passes_no_deduplication(look: Look, database: str) -> None:
    job = await look.value(ENQUEUE, "alice", "submit-order", "o-7")
    keys = "SELECT xmin::text, job_id, expires_at FROM archibald.idempotency_keys"
    before = await look.rows(keys)
    assert await look.value("SELECT archibald.try_lock_agent('alice')")
    async with hand(database) as worker:
        turn = await worker.turn(want=10, look=True)
        assert [requeued.job_id for requeued in turn.requeued] == [job]
    assert await look.rows(keys) == before


# -- syncs


async def test_a_sync_is_queued_once_and_once_more_while_it_runs(look: Look, database: str) -> None:
    first = await look.value(ENQUEUE, "alice", "sync-customers", None)
    assert await look.value(ENQUEUE, "alice", "sync-customers", None) == first
    assert await look.value(ENQUEUE, "alice", "sync-orders", None) != first
    assert await look.value(ENQUEUE, "bob", "sync-customers", None) != first
    async with hand(database) as worker:
        await worker.claim()
        second = await look.value(ENQUEUE, "alice", "sync-customers", None)
        assert second != first
        assert await look.value(ENQUEUE, "alice", "sync-customers", None) == second


@pytest.mark.parametrize("outcome", [Outcome.gone_back(), Outcome.retry("again", 30)], ids=["shutdown", "retry"])
async def test_a_sync_that_goes_back_absorbs_its_follow_up(look: Look, database: str, outcome: Outcome) -> None:
    first = await look.value(ENQUEUE, "alice", "sync-orders", None)
    async with hand(database) as worker:
        job = await worker.claim_one()
        second = await look.value(ENQUEUE, "alice", "sync-orders", "with a key")
        await worker.settle(job, outcome)
    assert await look.job(first, "state") == ("queued",)
    assert await look.job(second, "state", "result") == ("cancelled", {"absorbed_by": first})
    assert await look.value(ENQUEUE, "alice", "sync-orders", "with a key") == first


async def test_a_follow_up_that_was_enqueued_while_its_sync_went_back_is_absorbed_by_the_next_run(
    look: Look, database: str
) -> None:
    """Neither could see the other: the follow-up's transaction was open while the settle committed."""
    first = await look.value(ENQUEUE, "alice", "sync-orders", None)
    async with hand(database) as worker, looking(database) as caller:
        job = await worker.claim_one()
        async with caller.connection.transaction():
            second = await caller.value(ENQUEUE, "alice", "sync-orders", None)
            await worker.settle(job, Outcome.gone_back())
        assert await look.value("SELECT count(*) FROM archibald.jobs WHERE state = 'queued'") == 2
        assert (await worker.claim_one()).job_id == first
    assert await look.job(second, "state", "result") == ("cancelled", {"absorbed_by": first})


async def test_concurrent_enqueues_of_one_sync_are_one_job(look: Look, database: str) -> None:
    async def enqueue() -> set[int]:
        async with looking(database) as own:
            return {await own.value(ENQUEUE, "alice", "sync-orders", None) for _ in range(10)}

    found = await asyncio.gather(*(enqueue() for _ in range(30)))
    assert set().union(*found) == {await look.value("SELECT id FROM archibald.jobs")}


async def test_a_key_is_not_led_to_a_sync_that_ended_before_it_could_be(look: Look, database: str) -> None:
    """The twin is seen, and has run and gone before the key is written: there is room for the new job."""
    await look.rows("ALTER FUNCTION archibald.queued_sync RENAME TO queued_sync_itself")
    await look.rows(
        "CREATE FUNCTION archibald.queued_sync(user_id text, kind text) RETURNS bigint LANGUAGE plpgsql AS $$ "
        "DECLARE found bigint := archibald.queued_sync_itself(user_id, kind); "
        "BEGIN PERFORM pg_advisory_lock_shared(42), pg_advisory_unlock_shared(42); RETURN found; END $$"
    )
    async with hand(database) as worker, looking(database) as caller:
        twin = await look.value(ENQUEUE, "alice", "sync-orders", None)
        await look.rows("SELECT pg_advisory_lock(42)")
        enqueuing = asyncio.create_task(caller.value(ENQUEUE, "alice", "sync-orders", "k"))
        await look.until("SELECT count(*) = 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND objid = 42")
        job = await worker.claim_one()
        assert job.job_id == twin
        await worker.settle(job)
        await look.rows("SELECT pg_advisory_unlock(42)")
        found = await enqueuing
        assert found != twin
        assert await look.job(found, "state", "idempotency_key") == ("queued", "k")


async def test_every_enqueue_of_a_sync_names_a_job_that_exists_while_it_runs_at_full_speed(
    look: Look, database: str
) -> None:
    """Its twin may start and end between being seen and being named, also where a key must be led to it."""
    ended = asyncio.Event()

    async def enqueue(caller: int) -> set[int]:
        async with looking(database) as own:
            return {
                await own.value(ENQUEUE, "alice", "sync-orders", f"k-{caller}-{n}" if n % 2 else None)
                for n in range(150)
            }

    async def work() -> None:
        async with hand(database) as worker:
            jobs: list[ClaimedJob] = []
            while not ended.is_set() or jobs:
                outcomes = (Outcome.completed("1"), Outcome.gone_back(), Outcome.completed("1"))
                jobs = (await worker.turn(*((job, outcomes[job.epoch % 3]) for job in jobs), want=1, look=True)).claimed
            assert await look.value("SELECT count(*) FROM archibald.jobs") == 0

    working = asyncio.create_task(work())
    found = set().union(*await asyncio.gather(*(enqueue(caller) for caller in range(6))))
    await look.until("SELECT count(*) = 0 FROM archibald.jobs")
    ended.set()
    await working
    assert found == {row[0] for row in await look.rows("SELECT id FROM archibald.all_jobs")}


async def test_two_callers_with_the_same_keys_in_opposite_order_lose_nothing_once_the_keys_are_taken(
    look: Look, database: str
) -> None:
    """Giving out keys in opposite orders deadlocks like any unique key; meeting taken ones does not even wait."""
    a, b = [await look.value(ENQUEUE, "alice", "submit-order", key) for key in "ab"]
    async with (
        looking(database) as one,
        looking(database) as other,
        one.connection.transaction(),
        other.connection.transaction(),
    ):
        assert await one.value(ENQUEUE, "alice", "submit-order", "a") == a
        assert await other.value(ENQUEUE, "alice", "submit-order", "b") == b
        assert await one.value(ENQUEUE, "alice", "submit-order", "b") == b
        assert await other.value(ENQUEUE, "alice", "submit-order", "a") == a
