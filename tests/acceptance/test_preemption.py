"""A write stops the running sync of its agent, in whichever process it runs: each test is named after its promise.

Real workers, and syncs that stop when asked, only wait, or ignore everything. The handlers' own history is checked after each: never two
handlers of one agent at once, every job ended exactly once. How soon it all happens is measured by `python -m tests.bench.preemption`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.acceptance.faults import Scene, scene, until

TWO: dict[str, Any] = {"WORKER_CONCURRENCY": 2, "ARCHIBALD_RESERVED_CONSUMERS": 0}
AT_ONCE: dict[str, Any] = {"ARCHIBALD_PREEMPT_GRACE": 0.1}
NEVER: dict[str, Any] = {"ARCHIBALD_PREEMPT_GRACE": 3600}
"""Only a sync that checks in makes room."""
LEASE = 2.0
AGENTS = ("alice", "bob", "carol", "dave")


@pytest.fixture
async def stage(database: str) -> AsyncIterator[Scene]:
    async with scene(database) as made:
        yield made


async def asked(stage: Scene, sync: int) -> None:
    """Wait until a sync is asked to make room."""
    await stage.look.until("SELECT preempt_requested_at IS NOT NULL FROM archibald.jobs WHERE id = %s", sync)


async def end(stage: Scene) -> None:
    """Let everything end, and look at what happened."""
    stage.open()
    await stage.until_ended()
    await stage.stop_all()
    await stage.check()


@pytest.mark.parametrize("deaf", [False, True], ids=["notified", "listeners just terminated"])
@pytest.mark.parametrize(("do", "grace"), [("check in", NEVER), ("wait", AT_ONCE)])
async def test_a_write_starts_though_every_consumer_of_two_processes_runs_a_sync_and_the_sync_goes_on_behind_it(
    stage: Scene, do: str, grace: dict[str, Any], deaf: bool
) -> None:
    for name in ("a", "b"):
        await stage.start(name, **TWO, **grace)
    syncs = {user: await stage.enqueue("fault-sync", user, do) for user in AGENTS}
    await stage.until_started(*syncs.values())
    if do == "check in":
        await until(lambda: all(stage.events("saved", sync) for sync in syncs.values()))
    assert len({stage.events("start", sync)[0].worker for sync in syncs.values()}) == 2
    others = {user: await stage.enqueue("fault-other-sync", user, do) for user in AGENTS}
    for user in AGENTS:  # of both processes
        if deaf:
            await stage.end_listeners()
        write = await stage.enqueue("fault-write", user, "short", seconds=0.0)
        await stage.until_started(write)
        await stage.until_started(syncs[user], times=2)
        assert stage.events("start", others[user]) == []
        assert await stage.look.job(syncs[user], "state", "attempt", "preemptions", "preempted_by") == (
            "running",
            0,
            1,
            write,
        )
    await end(stage)
    for sync in syncs.values():
        assert await stage.look.job(sync, "state", "attempt", "losses") == ("completed", 1, 0)
        assert [event.how for event in stage.events("found", sync)] == (["seven"] if do == "check in" else [])


@pytest.mark.parametrize("deaf", [False, True], ids=["notified", "listeners just terminated"])
async def test_a_write_of_an_idle_agent_starts_on_a_reserved_consumer_though_syncs_wait(
    stage: Scene, deaf: bool
) -> None:
    await stage.start("a", WORKER_CONCURRENCY=5, **NEVER)  # a fifth is kept
    syncs = [await stage.enqueue("fault-sync", f"sync-{n}") for n in range(8)]
    await until(lambda: sum(bool(stage.events("start", sync)) for sync in syncs) == 4)
    if deaf:
        await stage.end_listeners()
    write = await stage.enqueue("fault-write", "alice")
    await stage.until_started(write)
    assert sum(bool(stage.events("start", sync)) for sync in syncs) == 4
    assert not any(stage.events("end", sync) for sync in syncs)
    await end(stage)


async def test_while_a_sync_ignores_its_cancellation_the_write_is_requeued_and_never_runs_beside_it(
    stage: Scene,
) -> None:
    await stage.start("a", WORKER_CONCURRENCY=1, **AT_ONCE)
    sync = await stage.enqueue("fault-sync", "alice", "ignore")
    await stage.until_started(sync)
    await stage.start("b", **AT_ONCE)
    write = await stage.enqueue("fault-write", "alice", "short", seconds=0.0)
    await asked(stage, sync)
    other = await stage.enqueue("fault-write", "bob", "short", seconds=0.0)
    await until(lambda: stage.events("end", other))
    for count in range(1, 5):
        await stage.look.rows(
            "UPDATE archibald.agents SET preempt_at = now() WHERE user_id = 'alice'"
        )  # the time comes
        await stage.look.until("SELECT requeue_count = %s FROM archibald.jobs WHERE id = %s", count, write)
        assert await stage.look.job(write, "state", "wait_reason", "attempt") == ("queued", "requeue", 0)
        assert stage.events("start", write) == []
    await end(stage)
    assert stage.events("start", write)[0].at > stage.events("end", sync)[0].at
    assert await stage.look.job(write, "state", "attempt", "requeue_count") == ("completed", 1, 4)
    assert await stage.look.job(sync, "state", "attempt", "preemptions") == ("completed", 1, 0)


@pytest.mark.parametrize("requeued", [False, True])
async def test_when_the_worker_that_was_asked_to_make_room_is_killed_the_write_runs_elsewhere_and_then_the_sync(
    stage: Scene, requeued: bool
) -> None:
    lost = await stage.start("a", ARCHIBALD_LEASE=LEASE, **NEVER)
    sync = await stage.enqueue("fault-sync", "alice")
    await stage.until_started(sync)
    await stage.start("b", ARCHIBALD_LEASE=LEASE, **NEVER)
    write = await stage.enqueue("fault-write", "alice", "short", seconds=0.0)
    await asked(stage, sync)
    if requeued:
        await stage.look.rows("UPDATE archibald.agents SET preempt_at = now()")
        await stage.look.until("SELECT requeue_count = 1 FROM archibald.jobs WHERE id = %s", write)
    await stage.kill(lost)
    await stage.until_started(write)
    await stage.until_started(sync, times=2)
    await end(stage)
    assert len(stage.events("start", write)) == 1
    assert len(stage.events("start", sync)) == 2
    assert await stage.look.job(write, "state", "attempt", "losses") == ("completed", 1, 0)
    assert await stage.look.job(sync, "state", "attempt", "losses") == ("completed", 1, 1)


async def test_waves_of_writes_over_running_syncs_lose_nothing_though_listeners_end_and_a_worker_is_killed(
    stage: Scene,
) -> None:
    settings: dict[str, Any] = {
        "WORKER_CONCURRENCY": 3,
        "ARCHIBALD_RESERVED_CONSUMERS": 1,
        "ARCHIBALD_LEASE": LEASE,
        **NEVER,
    }
    lost = await stage.start("a", **settings)
    await stage.start("b", **settings)
    syncs = {user: await stage.enqueue("fault-sync", user, "check in") for user in AGENTS}
    await stage.until_started(*syncs.values())
    writes = []
    for wave in range(4):
        if wave == 1:
            await stage.end_listeners()
        wave_of = [
            await stage.enqueue("fault-idempotent", user, "short", seconds=0.02) for user in AGENTS for _ in range(3)
        ]
        if wave == 2:
            await stage.kill(lost)
        writes += wave_of
        await stage.look.until("SELECT NOT EXISTS (SELECT FROM archibald.jobs WHERE id = ANY (%s))", wave_of)
    await end(stage)
    for job in (*syncs.values(), *writes):
        assert await stage.look.job(job, "state", "attempt") == ("completed", 1)
    for write in writes:  # run again only where the killed worker had begun it
        assert sum(event.pid != lost.pid for event in stage.events("start", write)) <= 1
