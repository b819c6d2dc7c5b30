"""What holds when workers die, jobs kill them, handlers block the loop, or a connection is there and does not answer.

As in `test_faults`: real processes, a real server, and after each fault the handlers' own history is checked.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.conftest import Measured
from tests.acceptance.faults import Scene, scene, until
from tests.acceptance.history import now

LEASE = 2.0
SHORT: dict[str, Any] = {"ARCHIBALD_LEASE": LEASE}
ALONE = "a job waits that must run alone"
DISPATCHER = r"archibald\.(turn|retake|drop_stray)"


@pytest.fixture
async def faults(database: str) -> AsyncIterator[Scene]:
    async with scene(database) as made:
        yield made


# -- proof of death


async def test_killed_beside_a_worker_of_the_same_machine_its_agents_go_on_at_once(
    faults: Scene, measured: Measured
) -> None:
    """No lease is waited for, not even the judge's own: the heir has just started, and the lease is a minute."""
    doomed = await faults.start("a", ARCHIBALD_LEASE=60)
    job = await faults.enqueue("fault-read", "alice")
    await faults.until_started(job)
    heir = await faults.start("b", ARCHIBALD_LEASE=60)
    path = await faults.look.value("SELECT witness_path FROM archibald.workers WHERE id = %s", doomed.worker_id)
    beat = "SELECT beat FROM archibald.workers WHERE id = %s"
    first = await faults.look.value(beat, heir.worker_id)
    await faults.look.until(f"SELECT ({beat}) > %s", heir.worker_id, first)  # it knows of its neighbour
    killed = now()
    await faults.kill(doomed)
    await faults.until_started(job, times=2)
    measured(
        "SIGKILL beside a worker of the same machine: to the next start", faults.events("start", job)[1].at - killed
    )
    await heir.until_logged("has died: its agents are taken over at once")
    assert not Path(path).exists()
    faults.open()
    await faults.until_ended()
    assert await faults.look.job(job, "state", "losses", "attempt") == ("completed", 1, 1)
    mine = await faults.look.value("SELECT witness_path FROM archibald.workers WHERE id = %s", heir.worker_id)
    assert Path(mine).exists()
    await faults.stop_all()
    assert not Path(mine).exists()
    await faults.check()


async def test_a_stopped_worker_is_not_proven_dead(faults: Scene) -> None:
    frozen = await faults.start("a", ARCHIBALD_LEASE=60)
    job = await faults.enqueue("fault-read", "alice")
    await faults.until_started(job)
    heir = await faults.start("b", of="bystander", ARCHIBALD_LEASE=60)
    await faults.freeze(frozen)
    beat = await faults.look.value("SELECT beat FROM archibald.workers WHERE id = %s", heir.worker_id)
    await faults.look.until(
        "SELECT beat > %s + interval '2 s' FROM archibald.workers WHERE id = %s", beat, heir.worker_id
    )
    assert await faults.look.value("SELECT fenced_at FROM archibald.workers WHERE id = %s", frozen.worker_id) is None
    faults.thaw(frozen)
    faults.open()
    await faults.until_ended()
    assert await faults.look.job(job, "state", "losses") == ("completed", 0)
    await faults.stop_all()
    await faults.check()


# -- jobs that run alone


@pytest.mark.slow
async def test_a_job_that_kills_its_workers_fails_at_the_third_and_costs_no_other_job_its_life(faults: Scene) -> None:
    """The innocent ran beside it twice; a third loss would fail them. So each of them runs alone."""
    names = iter("abcdefgh")
    settings = {"ARCHIBALD_LEASE": 20, "WORKER_CONCURRENCY": 4}
    await faults.start("watch", of="bystander", **settings)
    innocent = [await faults.enqueue("fault-read", user) for user in ("bob", "carol", "dave")]
    worker = await faults.start(next(names), **settings)
    for losses in (1, 2):
        await faults.until_started(*innocent, times=losses)
        if losses == 1:
            deadly = await faults.enqueue("fault-read", "alice", "die")
        assert await faults.died(worker) == 9
        await faults.look.until("SELECT count(*) = 4 FROM archibald.jobs WHERE losses = %s", losses)
        if losses == 1:
            # the innocent first: the deadly one is set back a little, else it would kill its worker before they started
            await faults.look.rows(
                "UPDATE archibald.agents SET ready_at = now() + interval '1 s' WHERE user_id = 'alice'"
            )
        worker = await faults.start(next(names), **settings)
    faults.open()
    for _ in range(2):
        if await faults.look.value("SELECT EXISTS (SELECT FROM archibald.jobs WHERE id = %s)", deadly):
            await until(lambda: worker.process.poll() is not None)
            assert await faults.died(worker) == 9
            worker = await faults.start(next(names), **settings)
        break
    await faults.until_ended()
    assert await faults.look.job(deadly, "state", "losses", "error") == ("failed", 3, "its worker died 3 times")
    for job in innocent:
        assert await faults.look.job(job, "state", "losses") == ("completed", 2)
    assert len(faults.events("start", deadly)) == 3
    await faults.stop_all()
    await faults.check()


# -- a loop that stands still


async def test_a_handler_that_blocks_the_loop_is_named_with_its_stack(faults: Scene) -> None:
    worker = await faults.start("a", **SHORT)
    job = await faults.enqueue("fault-write", "alice", "block", seconds=2.0)
    await faults.until_ended()
    await worker.until_logged("the event loop goes on after")
    (line,) = [line for line in worker.log.read_text().splitlines() if "the event loop has been blocked for" in line]
    assert f"by fault-write (job {job}): " in line
    assert "fault_app.py:" in line
    assert " in _act" in line
    assert await faults.look.job(job, "state", "losses") == ("completed", 0)
    await faults.stop_all()
    await faults.check()
