"""What holds when the server runs out of something, refuses a turn, or ends connections at the worst moment.

As in `test_faults`: real processes, a real server, and after each fault the handlers' own history is checked.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator

import psutil
import psycopg
import pytest

from archibald_pgq.store import migrations
from tests.acceptance.conftest import Measured
from tests.acceptance.faults import HELD, HOLD, OwnServer, Scene, Wire, own_server, scene
from tests.acceptance.history import now
from tests.support import looking

pytestmark = pytest.mark.long  # run by `make faults`

OURS = (
    "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
    "WHERE application_name LIKE 'archibald-pgq %' AND datname = current_database()"
)


async def hold_claims_of_slow(faults: Scene) -> None:
    """Hold in the server each turn that claims a job of the agent `slow`, until there is a row in `gate`."""
    await faults.look.rows("CREATE TABLE gate ()")
    await faults.look.rows(HOLD)
    await faults.look.rows(
        "CREATE TRIGGER hold BEFORE INSERT OR UPDATE ON archibald.agents FOR EACH ROW "
        "WHEN (NEW.state = 'running' AND NEW.user_id = 'slow') EXECUTE FUNCTION hold()"
    )


async def completed_once(faults: Scene, *jobs: int) -> None:
    """Each job ran once and completed, without a loss."""
    await faults.until_ended()
    for job in jobs:
        assert await faults.look.job(job, "state", "attempt", "losses") == ("completed", 1, 0)
        assert len(faults.events("start", job)) == 1
    await faults.stop_all()
    await faults.check()


# -- a turn that the server refuses


@pytest.mark.parametrize("code", ["40P01", "40001", "53200", "53100"])
async def test_a_turn_that_the_server_refuses_for_a_while_is_repeated_and_no_job_fails(
    faults: Scene, measured: Measured, code: str
) -> None:
    worker = await faults.start("a")
    held = [await faults.enqueue("fault-write", f"user-{n}") for n in range(3)]
    await faults.until_started(*held)
    await faults.look.rows("CREATE SEQUENCE strikes")
    await faults.look.rows(
        "CREATE FUNCTION strike() RETURNS trigger LANGUAGE plpgsql SET search_path = public AS $$ BEGIN "
        f"IF nextval('strikes') <= 3 THEN RAISE EXCEPTION 'struck' USING ERRCODE = '{code}'; END IF; RETURN NEW; END $$"
    )
    await faults.look.rows(
        "CREATE TRIGGER strike BEFORE UPDATE ON archibald.agents FOR EACH ROW EXECUTE FUNCTION strike()"
    )
    began = now()
    faults.open()
    other = await faults.enqueue("fault-write", "other", "short", seconds=0.0)
    await faults.until_ended()
    measured(f"{code} three times: to the end of all jobs", now() - began)
    assert await faults.look.value("SELECT last_value FROM strikes") > 3
    await worker.until_logged("is repeated")
    await completed_once(faults, *held, other)


@pytest.mark.parametrize("who", ["client", "server"])
async def test_of_a_turn_with_one_outcome_that_cannot_be_written_only_that_job_is_affected(
    faults: Scene, who: str
) -> None:
    """A NUL in a result is caught before it is sent; what only the server refuses fails its job alone."""
    await hold_claims_of_slow(faults)
    if who == "server":
        await faults.look.rows(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no such result'; END $$"
        )
        await faults.look.rows(
            "CREATE TRIGGER refuse BEFORE INSERT ON archibald.job_history FOR EACH ROW "
            "WHEN (NEW.state = 'completed' AND NEW.user_id = 'bad') EXECUTE FUNCTION refuse()"
        )
    await faults.start("a")
    good = [await faults.enqueue("fault-write", f"user-{n}") for n in range(3)]
    bad = await faults.enqueue("fault-write", "bad", "poison" if who == "client" else "wait", gate="open")
    await faults.until_started(bad, *good)
    slow = await faults.enqueue("fault-read", "slow", "short", seconds=0.0)
    await faults.look.until(HELD)
    faults.open()
    async with asyncio.timeout(10):
        while len([1 for job in (bad, *good) if faults.events("end", job)]) < 4:  # noqa: ASYNC110  # of another process
            await asyncio.sleep(0.01)
    await faults.look.rows("INSERT INTO gate DEFAULT VALUES")
    await faults.until_ended()
    state, error, result, losses = await faults.look.job(bad, "state", "error", "result", "losses")
    assert (result, losses) == (None, 0)
    if who == "client":
        assert state == "completed"  # its effect stands
        assert error.startswith("completed, but without its result: ")
        assert "NUL" in error
    else:
        assert state == "failed"
        assert error.startswith("its outcome could not be written: ")
        assert "no such result" in error
    assert len(faults.events("start", bad)) == 1
    await completed_once(faults, slow, *good)


# -- connections that end at the worst moment


async def test_when_all_sockets_are_reset_at_once_handlers_go_on(faults: Scene, measured: Measured) -> None:
    async with Wire(faults.database) as wire:
        worker = await faults.start("a", database=wire.dsn)
        held = [await faults.enqueue("fault-write", f"user-{n}") for n in range(3)]
        await faults.until_started(*held)
        began = now()
        wire.reset()
        await worker.until_logged("the dispatcher is connected again")
        measured("all sockets reset: to all locks taken again", now() - began)
        faults.open()
        await completed_once(faults, *held)


async def test_when_all_backends_are_terminated_at_once_handlers_go_on(faults: Scene, measured: Measured) -> None:
    worker = await faults.start("a")
    held = [await faults.enqueue("fault-write", f"user-{n}") for n in range(3)]
    await faults.until_started(*held)
    began = now()
    await faults.look.rows(OURS)
    await worker.until_logged("the dispatcher is connected again")
    measured("all backends terminated: to all locks taken again", now() - began)
    faults.open()
    await completed_once(faults, *held)


async def test_terminated_in_the_middle_of_a_turn_nothing_is_lost_or_doubled(faults: Scene, measured: Measured) -> None:
    """The turn claims one job and settles another: neither is written, and both are done again by the next one."""
    await hold_claims_of_slow(faults)
    worker = await faults.start("a")
    held = await faults.enqueue("fault-write", "alice")
    await faults.until_started(held)
    slow = await faults.enqueue("fault-write", "slow", "short", seconds=0.0)
    await faults.look.until(HELD)
    began = now()
    await faults.look.rows(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database()"
    )
    await worker.until_logged("the dispatcher is connected again")
    measured("terminated in the middle of a turn: to all locks taken again", now() - began)
    await faults.look.rows("INSERT INTO gate DEFAULT VALUES")
    faults.open()
    await completed_once(faults, held, slow)


# -- a server that runs out, or starts again


@pytest.fixture
async def small_server() -> AsyncIterator[OwnServer]:
    with own_server(max_locks_per_transaction="10", max_connections="25") as server:
        await server.start()
        migrations.upgrade(server.dsn)
        yield server


async def test_when_others_exhaust_the_lock_table_a_worker_survives_and_then_goes_on(
    small_server: OwnServer, measured: Measured
) -> None:
    async with scene(small_server.dsn) as faults:
        worker = await faults.start("a")
        held = [await faults.enqueue("fault-write", f"user-{n}") for n in range(5)]
        await faults.until_started(*held)
        async with looking(small_server.dsn) as others:
            with pytest.raises(psycopg.errors.OutOfMemory):
                await others.rows("SELECT pg_advisory_lock(n) FROM generate_series(1, 1000000) n")
            faults.open()
            await worker.until_logged("the server is in need")
            assert worker.process.poll() is None
        await faults.look.until("SELECT count(*) < 200 FROM pg_locks")  # the server notices a moment later
        gone = now()
        after = await faults.enqueue("fault-write", "after", "short", seconds=0.0)
        await faults.until_ended()
        measured("lock table exhausted by others: from their end to the end of all jobs", now() - gone)
        await completed_once(faults, *held, after)


@pytest.mark.slow
async def test_after_a_crash_recovery_stale_beats_fence_nobody(small_server: OwnServer, measured: Measured) -> None:
    """One backend is killed, so the server ends all and recovers; then one worker's beat looks stale to the other."""
    async with scene(small_server.dsn) as faults:
        judge, late = [await faults.start(name, WORKER_CONCURRENCY=2, ARCHIBALD_LEASE=20) for name in "ab"]
        held = [await faults.enqueue("fault-write", f"user-{n}") for n in range(4)]
        await faults.until_started(*held)
        victim = await faults.look.value("SELECT pg_backend_pid()")
        await faults.freeze(late)  # for less than half the lease
        psutil.Process(victim).send_signal(signal.SIGKILL)
        began = now()
        await judge.until_logged("the dispatcher is connected again")
        async with looking(small_server.dsn) as look:
            faults.look = look
            await look.rows(
                "UPDATE archibald.workers SET beat = beat - interval '1 hour' WHERE id = %s", late.worker_id
            )
            beat = "SELECT beat FROM archibald.workers WHERE id = %s"
            first = await look.value(beat, judge.worker_id)
            await look.until(f"SELECT ({beat}) > %s + interval '1.2 s'", judge.worker_id, first)
            assert await look.value("SELECT count(*) FROM archibald.workers WHERE fenced_at IS NOT NULL") == 0
            faults.thaw(late)
            await late.until_logged("the dispatcher is connected again")
            assert await look.value("SELECT count(*) FROM archibald.workers WHERE fenced_at IS NOT NULL") == 0
            measured("crash recovery, one worker 1.2 s late: to all locks of two workers taken again", now() - began)
            faults.open()
            await completed_once(faults, *held)
