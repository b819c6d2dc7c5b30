"""What holds when the server has no connection left, restarts during a takeover, or a loop stands still for long.

As in `test_faults`: real processes, a real server, and after each fault the handlers' own history is checked.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator
from typing import Any

import psycopg
import pytest

from archibald_pgq import NewJob
from archibald_pgq.store import migrations
from tests.acceptance.conftest import Measured
from tests.acceptance.faults import HELD, HOLD, OwnServer, Scene, own_server, scene
from tests.acceptance.history import Event, append, now
from tests.support import looking

pytestmark = pytest.mark.long  # run by `make faults`

NONE_OF_OURS = """
SELECT count(pg_terminate_backend(pid, 5000)) = 0 FROM pg_stat_activity WHERE application_name = 'archibald-pgq worker'
"""
"""Ends the worker's sessions, and is to be asked again until it finds none: one may come back before the crowd takes its place."""


@pytest.fixture
async def small_server() -> AsyncIterator[OwnServer]:
    with own_server(max_connections="25") as server:
        await server.start()
        migrations.upgrade(server.dsn)
        yield server


@contextlib.asynccontextmanager
async def crowd(database: str) -> AsyncIterator[None]:
    """Others take every connection that is free, as soon as it is; on entry none is left, at the end they give all back."""
    taken: list[psycopg.AsyncConnection[Any]] = []
    full = asyncio.Event()

    async def push_in() -> None:
        while True:
            try:
                taken.append(await psycopg.AsyncConnection.connect(database))
            except psycopg.OperationalError:
                full.set()
                await asyncio.sleep(0.002)

    pushing = [asyncio.create_task(push_in()) for _ in range(4)]
    try:
        await full.wait()
        yield
    finally:
        for task in pushing:
            task.cancel()
        await asyncio.gather(*pushing, return_exceptions=True)
        for connection in taken:
            await connection.close()


async def test_without_a_free_connection_handlers_go_on_and_the_locks_are_taken_again_when_there_is_one(
    small_server: OwnServer, measured: Measured
) -> None:
    async with scene(small_server.dsn) as faults:
        worker = await faults.start("a", ARCHIBALD_LEASE=30)
        held = [await faults.enqueue("fault-write", f"user-{n}") for n in range(3)]
        await faults.until_started(*held)
        async with crowd(small_server.dsn):
            await faults.look.until(NONE_OF_OURS)
            await worker.until_logged("the dispatcher cannot reconnect yet")
        gone = now()
        await worker.until_logged("the dispatcher is connected again")
        measured("no connection free: from their end to all locks taken again", now() - gone)
        faults.open()
        await faults.until_ended()
        for job in held:
            assert await faults.look.job(job, "state", "attempt", "losses", "worker_id") == (
                "completed", 1, 0, worker.worker_id
            )  # fmt: skip
            assert len(faults.events("start", job)) == 1
        await faults.stop_all()
        await faults.check()


async def test_without_a_free_connection_for_longer_than_the_lease_it_stops_its_handlers_and_registers_anew(
    small_server: OwnServer,
) -> None:
    """It cannot be known here whether the server, which refuses for want of connections, lets others take over."""
    async with scene(small_server.dsn) as faults:
        worker = await faults.start("a", ARCHIBALD_LEASE=2)
        job = await faults.enqueue("fault-read", "alice")
        await faults.until_started(job)
        async with crowd(small_server.dsn):
            await faults.look.until(NONE_OF_OURS)
            await worker.until_logged("handlers are cancelled before the lease")
        faults.open()
        await faults.until_ended()
        assert await faults.look.job(job, "state") == ("completed",)
        await faults.stop_all()
        await faults.check()


async def test_a_restart_of_the_server_during_a_takeover_loses_nothing(
    small_server: OwnServer, measured: Measured
) -> None:
    async with scene(small_server.dsn) as faults:
        doomed = await faults.start("a", WORKER_CONCURRENCY=4)
        jobs = [await faults.enqueue("fault-read", f"user-{n}") for n in range(4)]
        await faults.until_started(*jobs)
        heir = await faults.start("b", WORKER_CONCURRENCY=4)
        await faults.look.rows("CREATE TABLE public.gate ()")
        await faults.look.rows(HOLD)
        await faults.look.rows(
            "CREATE TRIGGER hold BEFORE UPDATE ON archibald.agents FOR EACH ROW "
            "WHEN (OLD.state = 'running' AND NEW.epoch > OLD.epoch) EXECUTE FUNCTION hold()"
        )
        await faults.kill(doomed)  # its death is proven by its file: the takeover begins at once
        await faults.look.until(HELD)
        await small_server.stop(signal.SIGQUIT)
        await small_server.start()
        back = now()
        async with looking(small_server.dsn) as look:
            faults.look = look
            await look.rows("INSERT INTO public.gate DEFAULT VALUES")
            await faults.until_started(*jobs, times=2)
            measured("restart during a takeover: up again to all jobs started elsewhere", now() - back)
            faults.open()
            await faults.until_ended()
            for job in jobs:
                assert await look.job(job, "state", "losses", "worker_id") == ("completed", 1, heir.worker_id)
            await faults.stop_all()
            await faults.check()


@pytest.mark.long
async def test_a_handler_that_blocks_the_event_loop_for_20_s_keeps_its_lease_and_is_named(
    database: str, measured: Measured
) -> None:
    async with scene(database) as faults:
        worker = await faults.start("a")
        job = await faults.enqueue("fault-write", "alice", "block", seconds=20.0)
        await faults.until_started(job)
        began = now()
        await faults.start("b")
        await worker.until_logged("the event loop has been blocked for")
        measured("handler that blocks the loop for 20 s: to the line that names it", now() - began)
        await worker.until_logged("the event loop goes on after")
        await faults.until_ended()
        assert await faults.look.job(job, "state", "losses", "attempt") == ("completed", 0, 1)
        assert await faults.look.value("SELECT count(*) FROM archibald.workers WHERE fenced_at IS NOT NULL") == 0
        assert "fault-write" in worker.log.read_text().split("has been blocked for")[1]
        await faults.stop_all()
        await faults.check()


# -- much at once


@pytest.mark.long
@pytest.mark.timeout(400)
async def test_ten_workers_run_20000_jobs_of_60_agents_each_once_and_never_two_of_an_agent(
    database: str, measured: Measured
) -> None:
    async with scene(database) as faults:
        for n in range(10):
            await faults.start(str(n))
        began = now()
        await enqueue_many(faults, 20_000)
        await until_empty(faults)
        measured("10 workers, 60 agents, 20,000 jobs: from the first enqueue to the last end", now() - began)
        states = dict(await faults.look.rows("SELECT state, count(*) FROM archibald.all_jobs GROUP BY state"))
        assert states == {"completed": 20_000}
        await faults.stop_all()
        await faults.check()


@pytest.mark.long
@pytest.mark.timeout(400)
async def test_beside_an_agent_with_200000_jobs_the_others_jobs_are_done(database: str, measured: Measured) -> None:
    for hot in (False, True):
        async with scene(database) as faults:
            if hot:
                await faults.look.rows(
                    "INSERT INTO archibald.jobs (user_id, kind, payload) SELECT 'hot', 'fault-read', "
                    """'{"do": "short", "seconds": 0.05}' FROM generate_series(1, 200000)"""
                )
            await faults.start("a")
            began = now()
            light = [
                await faults.enqueue("fault-read", f"light-{n}", "short", seconds=0.05)
                for _ in range(5)
                for n in range(59)
            ]
            ended = "SELECT count(*) FROM archibald.job_history WHERE user_id <> 'hot' AND id = ANY (%s)"
            while await faults.look.value(ended, light) < len(light):  # noqa: ASYNC110  # a database has no event for this
                await asyncio.sleep(0.02)
            measured(f"295 jobs of 59 agents {'beside' if hot else 'without'} an agent with 200,000", now() - began)
            if hot:
                most = await faults.look.value("SELECT count(*) FROM archibald.job_history WHERE user_id = 'hot'")
                assert most < 1000
                await faults.look.rows("DELETE FROM archibald.jobs WHERE user_id = 'hot' AND state = 'queued'")
            await faults.stop_all()


@pytest.mark.long
@pytest.mark.timeout(400)
async def test_with_an_old_snapshot_held_jobs_go_on(database: str, measured: Measured) -> None:
    """Dead rows cannot be removed while it is open: each look passes over more of them."""
    async with scene(database) as faults, looking(database) as holder:
        await faults.start("a")
        for held in (False, True):
            if held:
                await holder.rows("BEGIN ISOLATION LEVEL REPEATABLE READ")
                await holder.rows("SELECT count(*) FROM archibald.jobs")
            began = now()
            await enqueue_many(faults, 5_000)
            await until_empty(faults)
            measured(f"5,000 jobs {'with' if held else 'without'} an old snapshot held", now() - began)
        await holder.rows("COMMIT")
        await faults.stop_all()
        await faults.check()


async def enqueue_many(faults: Scene, count: int) -> None:
    """Enqueue short jobs of 60 agents, a hundred at a time."""
    for first in range(0, count, 100):
        jobs = [
            NewJob(
                ("fault-read", "fault-idempotent")[n % 2],
                user_id=f"user-{n % 60:02}",
                data={"do": "short", "seconds": 0.0},
            )
            for n in range(first, first + 100)
        ]
        for job, made in zip(jobs, await faults.app.enqueue_many(jobs), strict=True):
            append(faults.history, Event(now(), "enqueued", job_id=made.id, user_id=job.user_id))


async def until_empty(faults: Scene) -> None:
    """Wait until nothing is queued or runs, however long that takes; the test has its own bound."""
    while await faults.look.value("SELECT EXISTS (SELECT FROM archibald.jobs)"):  # noqa: ASYNC110  # a database has no event for this
        await asyncio.sleep(0.1)
