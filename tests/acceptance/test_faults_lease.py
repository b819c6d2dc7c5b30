"""What holds when workers die, jobs kill them, handlers block the loop, or a connection is there and does not answer.

As in `test_faults`: real processes, a real server, and after each fault the handlers' own history is checked.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.acceptance.conftest import Measured
from tests.acceptance.faults import Scene, Wire
from tests.acceptance.history import now

LEASE = 2.0
SHORT: dict[str, Any] = {"ARCHIBALD_LEASE": LEASE}
ALONE = "a job waits that must run alone"


def there(path: str) -> bool:
    return Path(path).exists()


# -- what the role or the database may set


async def test_a_statement_timeout_of_a_millisecond_for_the_database_does_not_concern_a_worker(
    faults: Scene, measured: Measured
) -> None:
    name = await faults.look.value("SELECT current_database()")
    worker = await faults.start("a")
    job = await faults.enqueue("fault-write", "alice")
    await faults.until_started(job)
    await faults.look.rows(f"ALTER DATABASE {name} SET statement_timeout = '1ms'")
    cut = now()
    await faults.look.rows(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
        "WHERE application_name LIKE 'archibald-pgq %%' AND datname = current_database()"
    )
    await worker.until_logged("the dispatcher is connected again")
    measured("statement_timeout of 1 ms: from the end of the backends to connected again", now() - cut)
    faults.open()
    await faults.until_ended()
    assert await faults.look.job(job, "state", "losses", "attempt") == ("completed", 0, 1)
    await faults.look.rows(f"ALTER DATABASE {name} RESET statement_timeout")
    await faults.stop_all()
    await faults.check()


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
    assert not there(path)
    faults.open()
    await faults.until_ended()
    assert await faults.look.job(job, "state", "losses", "attempt") == ("completed", 1, 1)
    mine = await faults.look.value("SELECT witness_path FROM archibald.workers WHERE id = %s", heir.worker_id)
    assert there(mine)
    await faults.stop_all()
    assert not there(mine)
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


async def test_a_job_that_kills_its_workers_fails_at_the_third_and_costs_no_other_job_its_life(faults: Scene) -> None:
    """All of them ran beside each other when their workers died twice; a third loss would fail them. So each runs alone."""
    deadly = await faults.enqueue("fault-read", "alice", "die")
    innocent = [await faults.enqueue("fault-read", f"user-{n}", "short", seconds=0.3) for n in range(6)]
    await faults.look.rows("UPDATE archibald.jobs SET losses = 2, wake = true")
    workers = [await faults.start(name) for name in "ab"]
    await faults.until_started(deadly)
    pid = faults.events("start", deadly)[0].pid
    (victim,) = [daemon for daemon in workers if daemon.pid == pid]
    assert await faults.died(victim) == 9
    await faults.until_ended()
    assert await faults.look.job(deadly, "state", "losses", "error") == ("failed", 3, "its worker died 3 times")
    for job in innocent:
        assert await faults.look.job(job, "state", "losses") == ("completed", 2)
    await victim.until_logged(ALONE)
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


# -- a connection that is there and does not answer


async def test_the_lock_connection_alone_does_not_answer_and_is_replaced_within_the_lease(
    faults: Scene, measured: Measured
) -> None:
    """The heartbeat goes on, and the kernel of what is between acknowledges all: only the worker's own patience tells."""
    async with Wire(faults.database) as wire:
        worker = await faults.start("a", database=wire.dsn, **SHORT)
        held = await faults.enqueue("fault-write", "alice")
        await faults.until_started(held)
        backend = await faults.look.value("SELECT backend_pid FROM archibald.workers WHERE id = %s", worker.worker_id)
        wire.hold_lock_connection()
        await wire.caught.wait()
        began = now()
        await faults.look.until(
            "SELECT backend_pid <> %s FROM archibald.workers WHERE id = %s", backend, worker.worker_id
        )
        measured(f"half-open lock connection, lease {LEASE:g} s: to the next one", now() - began)
        other = await faults.enqueue("fault-read", "bob", "short", seconds=0.0)
        await faults.look.until_state(other, "completed")
        faults.open()
        await faults.until_ended()
        assert await faults.look.job(held, "state", "losses", "attempt") == ("completed", 0, 1)
        await faults.stop_all()
        await faults.check()
