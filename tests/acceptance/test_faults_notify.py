"""What callers, operators and workers do goes on while the server's queue of notifications is full, and `doctor` says who keeps it so."""

from __future__ import annotations

import asyncio
import json

import psycopg
import pytest

from archibald_pgq.store import migrations
from tests.acceptance.conftest import Measured
from tests.acceptance.faults import Scene, own_server, scene
from tests.acceptance.history import now
from tests.commands import command
from tests.support import Look, looking

USAGE = "SELECT pg_notification_queue_usage()"


async def fill_notifications(look: Look) -> None:
    """Until the server takes no more."""
    text = "x" * 7000
    with pytest.raises(psycopg.errors.ProgramLimitExceeded):  # noqa: PT012
        while True:
            await look.rows("SELECT pg_notify('something', %s || g) FROM generate_series(1, 20) g", text)


@pytest.mark.long
async def test_with_a_full_queue_of_notifications_jobs_are_enqueued_and_run(measured: Measured) -> None:
    with own_server(max_notify_queue_pages="64") as server:
        await server.start()
        migrations.upgrade(server.dsn)
        async with scene(server.dsn) as faults, looking(server.dsn) as sleeper:
            await faults.start("a")
            await sleeper.rows("LISTEN something")
            await sleeper.rows("BEGIN")
            await sleeper.rows("SELECT 1")
            await fill_notifications(faults.look)
            jobs = [await faults.enqueue("fault-read", f"user-{n}", "short", seconds=0.0) for n in range(5)]
            began = now()
            await faults.until_ended()
            measured("NOTIFY queue full: 5 enqueued to all ended", now() - began)
            doctor = command("doctor", "--json", database=server.dsn)
            (queue,) = [finding for finding in json.loads(doctor.out) if finding["name"] == "notify_queue"]
            assert queue["severity"] == "serious"
            await sleeper.rows("COMMIT")
            jobs.append(await faults.enqueue("fault-read", "after", "short", seconds=0.0))
            await faults.until_ended()
            for job in jobs:
                assert await faults.look.job(job, "state") == ("completed",)
            await faults.stop_all()
            await faults.check()


async def in_review(faults: Scene, user_id: str) -> int:
    """A job that a person has to decide about, changed by hand while nobody can run it."""
    await faults.look.value("SELECT archibald.try_lock_agent(%s)", user_id)
    job = await faults.enqueue("fault-write", user_id)
    await faults.look.until("SELECT requeue_count > 0 FROM archibald.jobs WHERE id = %s", job)
    await faults.look.rows("UPDATE archibald.jobs SET state = 'needs_review' WHERE id = %s", job)
    await faults.look.value("SELECT archibald.unlock_agent(%s)", user_id)
    return job


@pytest.mark.slow
async def test_with_a_full_queue_of_notifications_jobs_are_cancelled_make_room_and_go_on(
    measured: Measured,
) -> None:
    """Each of these gives the workers a hint; one that failed would fail the whole command, or the worker's turn."""
    with own_server(max_notify_queue_pages="64") as server:
        await server.start()
        migrations.upgrade(server.dsn)
        async with scene(server.dsn) as faults, looking(server.dsn, application_name="sleeper") as sleeper:
            await faults.start("a", ARCHIBALD_PREEMPT_GRACE="0.2")
            running = await faults.enqueue("fault-read", "running")
            sync = await faults.enqueue("fault-sync", "syncing")
            await faults.until_started(running, sync)
            first = await faults.enqueue("fault-read", "paused", "short", seconds=0.0)
            await faults.look.until_state(first, "completed")
            assert await faults.look.value("SELECT archibald.pause_agent('paused')")
            paused = await faults.enqueue("fault-read", "paused", "short", seconds=0.0)
            await sleeper.value("SELECT archibald.try_lock_agent('locked')")
            locked = await faults.enqueue("fault-read", "locked", "short", seconds=0.0)
            await faults.look.until("SELECT requeue_count > 0 FROM archibald.jobs WHERE id = %s", locked)
            review = await in_review(faults, "reviewed")

            await sleeper.rows("LISTEN something")
            await sleeper.rows("BEGIN")
            await sleeper.rows("SELECT 1")
            await fill_notifications(faults.look)

            began = now()
            assert await faults.look.value("SELECT archibald.cancel_job(%s)", running) == "requested"
            await faults.look.until_state(running, "cancelled")
            measured("NOTIFY queue full: from the cancel of a running job to its end", now() - began)

            began = now()
            write = await faults.enqueue("fault-write", "syncing", "short", seconds=0.0)
            await faults.look.until_state(write, "completed")
            measured("NOTIFY queue full: from a write to its end, behind a sync that makes room", now() - began)

            assert await faults.look.value("SELECT archibald.resume_agent('paused')")
            await faults.look.until_state(paused, "completed")
            assert await faults.look.rows("SELECT answer FROM archibald.retry_job(%s)", review) == [("queued",)]
            faults.open()
            await faults.look.until_state(review, "completed")
            await sleeper.value("SELECT archibald.unlock_agent('locked')")
            await faults.look.until_state(locked, "completed")
            assert await faults.look.value(USAGE) > 0.9

            await _doctor_names(sleeper, server.dsn)
            await sleeper.rows("COMMIT")
            await faults.until_ended()
            await faults.stop_all()


async def _doctor_names(sleeper: Look, database: str) -> None:
    pid = await sleeper.value("SELECT pg_backend_pid()")
    async with asyncio.timeout(20):
        while True:  # the server names it every 5 seconds
            ended = await asyncio.to_thread(command, "doctor", "--json", database=database)
            (queue,) = [finding for finding in json.loads(ended.out) if finding["name"] == "notify_queue"]
            assert queue["severity"] == "serious"
            assert f"backend {pid} (application sleeper" in queue["found"], queue
            if "the server says" in queue["found"]:
                break
            assert "most likely" in queue["found"]
    assert f"pg_terminate_backend({pid})" in queue["remedy"]
