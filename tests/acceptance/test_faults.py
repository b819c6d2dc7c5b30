"""What holds when processes are told to end, killed, stopped, cut off, or lose their database: each test is named after its promise.

Real workers, real signals, a real server. After each fault the handlers' own history is checked: never two handlers of one user at once,
every job ended exactly once.
"""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from typing import Any

import pytest

from archibald_pgq.store import migrations
from tests.acceptance.conftest import Measured
from tests.acceptance.faults import HELD, HOLD, OwnServer, Scene, Wire, backends, own_server, scene, until
from tests.acceptance.history import now
from tests.servers import Server
from tests.support import looking

LEASE = 2.0
SHORT: dict[str, Any] = {"ARCHIBALD_LEASE": LEASE}
INTERRUPTED = "interrupted by shutdown"

takes_long = pytest.mark.slow


# -- told to end


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_told_to_end_a_worker_claims_nothing_more_and_lets_its_handlers_finish(
    faults: Scene, number: signal.Signals
) -> None:
    worker = await faults.start("a", WORKER_CONCURRENCY=2)
    running = [await faults.enqueue("fault-write", user) for user in ("alice", "bob")]
    await faults.until_started(*running)
    waiting = await faults.enqueue("fault-write", "carol")
    worker.signal(number)
    await worker.until_logged("stopping:")
    faults.open()
    assert await worker.exit_code() == 0
    for job in running:
        assert await faults.look.job(job, "state", "attempt", "losses") == ("completed", 1, 0)
        assert len(faults.events("start", job)) == 1
    assert await faults.look.job(waiting, "state", "started_at") == ("queued", None)
    assert await faults.look.value("SELECT count(*) FROM archibald.workers WHERE stopped_at IS NULL") == 0
    assert await faults.look.value("SELECT count(*) FROM archibald.agents WHERE state = 'running'") == 0


@pytest.mark.parametrize(
    ("grace", "numbers"),
    [(0.5, [signal.SIGTERM]), (30, [signal.SIGTERM, signal.SIGTERM]), (30, [signal.SIGINT, signal.SIGINT])],
    ids=["grace over", "second SIGTERM", "second SIGINT"],
)
async def test_past_the_grace_a_started_write_needs_review_and_the_rest_goes_back_to_its_place(
    faults: Scene, measured: Measured, grace: float, numbers: list[signal.Signals]
) -> None:
    worker = await faults.start("a", ARCHIBALD_SHUTDOWN_GRACE=grace)
    write = await faults.enqueue("fault-write", "alice")
    idempotent = await faults.enqueue("fault-idempotent", "bob")
    sync = await faults.enqueue("fault-sync", "carol")
    reads = [await faults.enqueue("fault-read", "dave") for _ in range(2)]
    await faults.until_started(write, idempotent, sync, reads[0])
    before = {
        job: await faults.look.job(job, "priority", "run_after", "created_at") for job in (idempotent, sync, *reads)
    }
    for number in numbers:
        worker.signal(number)
        await worker.until_logged("stopping:")
    told = now()
    assert await worker.exit_code() == 0
    measured(f"{len(numbers)} signals, a grace of {grace:g} s: from the last one to the exit", now() - told)
    assert await faults.look.job(write, "state", "error", "attempt", "losses") == ("needs_review", INTERRUPTED, 0, 0)
    for job, place in before.items():
        assert await faults.look.job(job, "state", "attempt", "losses") == ("queued", 0, 0)
        assert await faults.look.job(job, "priority", "run_after", "created_at") == place
    faults.open()
    await faults.start("b")
    await faults.until_ended()
    await faults.stop_all()
    assert len(faults.events("start", write)) == 1  # never run again by itself
    assert faults.events("start", reads[0])[1].at < faults.events("start", reads[1])[0].at
    await faults.check()


async def test_a_claim_whose_reply_comes_after_the_worker_was_told_to_end_goes_back(faults: Scene) -> None:
    """The claim is committed, the worker does not know of it yet, and says goodbye: the lane must not stay with it."""
    async with Wire(faults.database) as wire:
        worker = await faults.start("a", database=wire.dsn)
        wire.delay_reply_with(b"the marker")
        job = await faults.enqueue("fault-write", "alice", note="the marker")
        await wire.caught.wait()
        worker.signal(signal.SIGTERM)
        await worker.until_logged("stopping:")
        wire.let_through()
        assert await worker.exit_code() == 0
    assert await faults.look.job(job, "state", "attempt", "losses") == ("queued", 0, 0)
    assert await faults.look.value("SELECT state FROM archibald.agents") == "ready"
    assert faults.events("start", job) == []


@takes_long
async def test_a_worker_that_never_hears_of_its_claim_does_not_keep_the_lane(faults: Scene) -> None:
    """As above, but the reply never comes: the connection is given up after a lease, and on a new one the claim goes back."""
    async with Wire(faults.database) as wire:
        worker = await faults.start("a", database=wire.dsn, **SHORT)
        wire.delay_reply_with(b"the marker")
        job = await faults.enqueue("fault-read", "alice", "short", seconds=0.0, note="the marker")
        await wire.caught.wait()
        await faults.start("b", **SHORT)
        worker.signal(signal.SIGTERM)
        assert await worker.exit_code() == 0
    await faults.until_ended()
    assert await faults.look.job(job, "state", "losses") == ("completed", 0)
    await faults.stop_all()
    await faults.check()


@takes_long
async def test_a_handler_that_ignores_the_end_of_the_grace_ends_with_its_process_and_is_taken_over(
    faults: Scene, measured: Measured
) -> None:
    stubborn = await faults.start("a", ARCHIBALD_SHUTDOWN_GRACE=0, **SHORT)
    read_job = await faults.enqueue("fault-read", "alice", "ignore")
    await faults.until_started(read_job)
    await faults.start("b", **SHORT)
    told = now()
    stubborn.signal(signal.SIGTERM)
    assert await faults.died(stubborn) == 70
    measured("SIGTERM to the exit of a worker whose handler ignores everything", now() - told)
    faults.open()
    await faults.until_ended()
    assert await faults.look.job(read_job, "state", "losses") == ("completed", 1)
    await faults.stop_all()
    await faults.check()


# -- killed


@takes_long
async def test_killed_its_agents_are_taken_over_after_the_lease(faults: Scene, measured: Measured) -> None:
    """A read runs again, a write needs a review, an idempotent write runs again; a loss is counted and no attempt spent."""
    doomed = await faults.start("a", **SHORT)
    write = await faults.enqueue("fault-write", "alice")
    idempotent = await faults.enqueue("fault-idempotent", "bob")
    reads = [await faults.enqueue("fault-read", "carol") for _ in range(2)]
    await faults.until_started(write, idempotent, reads[0])
    heir = await faults.start("b", **SHORT)
    await faults.until_trusted(heir, LEASE)
    await faults.lose_witness(doomed)
    await faults.kill(doomed)
    await faults.until_started(idempotent, reads[0], times=2)
    beat, fenced = (
        await faults.look.rows("SELECT beat, fenced_at FROM archibald.workers WHERE id = %s", doomed.worker_id)
    )[0]
    again = await faults.look.value("SELECT since FROM archibald.agents WHERE user_id = 'carol'")
    assert (fenced - beat).total_seconds() >= LEASE
    measured(f"SIGKILL, lease {LEASE:g} s: last beat to fence", (fenced - beat).total_seconds())
    measured(f"SIGKILL, lease {LEASE:g} s: last beat to the next claim", (again - beat).total_seconds())
    assert await faults.look.job(write, "state", "error", "attempt", "losses") == (
        "needs_review",
        "its worker died while it ran",
        0,
        1,
    )
    for job in (idempotent, reads[0]):
        assert await faults.look.job(job, "state", "attempt", "losses") == ("running", 0, 1)
    assert await faults.look.job(reads[1], "state", "losses") == ("queued", 0)
    faults.open()
    await faults.until_ended()
    assert await faults.look.job(reads[0], "state", "attempt", "losses") == ("completed", 1, 1)
    await faults.stop_all()
    assert len(faults.events("start", write)) == 1
    await faults.check()


@takes_long
async def test_a_job_that_kills_its_worker_three_times_fails(faults: Scene) -> None:
    for name in "abc":
        await faults.start(name, **SHORT)
    await faults.start("d", of="bystander", **SHORT)
    deadly = await faults.enqueue("fault-read", "alice", "die")
    for times in (1, 2, 3):
        await faults.until_started(deadly, times=times)
        pid = faults.events("start", deadly)[-1].pid
        (victim,) = [daemon for daemon in faults.daemons if daemon.pid == pid]
        assert await faults.died(victim) == 9
    await faults.until_ended()
    assert await faults.look.job(deadly, "state", "error", "attempt", "losses") == (
        "failed",
        "its worker died 3 times",
        0,
        3,
    )
    await faults.stop_all()
    await faults.check()


async def test_an_operator_who_holds_a_dead_workers_agent_keeps_it_and_the_job_is_requeued(
    faults: Scene, database: str, measured: Measured
) -> None:
    doomed = await faults.start("a", **SHORT)
    job = await faults.enqueue("fault-read", "alice")
    await faults.until_started(job)
    await faults.start("b", **SHORT)
    async with looking(database) as operator:
        await faults.kill(doomed)
        died = now()
        await operator.until("SELECT pg_try_advisory_lock(archibald.lock_key('alice'))")
        await faults.look.until("SELECT requeue_count > 0 FROM archibald.jobs WHERE id = %s", job)
        measured("operator's lock on a dead worker's agent: from the death to the requeue", now() - died)
        assert await faults.look.job(job, "state", "wait_reason", "losses", "attempt") == ("queued", "requeue", 1, 0)
        faults.open()
        assert await operator.value("SELECT archibald.unlock_agent('alice')")  # its session was left alone
        freed = now()
        await faults.until_ended()
        measured("operator's lock on a dead worker's agent: from the unlock to the job's end", now() - freed)
    await faults.stop_all()
    await faults.check()


async def test_a_foreign_holder_of_an_agents_lock_stops_that_agent_only_and_its_end_is_noticed(
    faults: Scene, database: str, measured: Measured
) -> None:
    await faults.start("a")
    async with looking(database) as operator:
        assert await operator.value("SELECT archibald.try_lock_agent('alice')")
        kept, other = [await faults.enqueue("fault-write", user, "short", seconds=0.0) for user in ("alice", "bob")]
        await faults.look.until("SELECT state = 'completed' FROM archibald.all_jobs WHERE id = %s", other)
        await faults.look.until("SELECT requeue_count = 2 FROM archibald.jobs WHERE id = %s", kept)
        assert await faults.look.job(kept, "state", "wait_reason", "attempt") == ("queued", "requeue", 0)
        assert faults.events("start", kept) == []
    ended = now()  # and with the session its lock
    await faults.until_ended()
    measured("foreign holder of an agent's lock: from the end of its session to the end of the job", now() - ended)
    await faults.stop_all()
    await faults.check()


@takes_long
async def test_two_workers_that_take_over_at_once_release_each_lane_once(faults: Scene) -> None:
    doomed = await faults.start("a", WORKER_CONCURRENCY=30, **SHORT)
    users = [f"user-{n:02}" for n in range(30)]
    jobs = [await faults.enqueue("fault-read", user) for user in users]
    await faults.until_started(*jobs)
    for name in ("b", "c"):
        await faults.start(name, **SHORT)
    epochs = dict(await faults.look.rows("SELECT user_id, epoch FROM archibald.agents"))
    await faults.kill(doomed)
    faults.open()
    await faults.until_ended()
    # one for the release, one for the claim
    after = dict(await faults.look.rows("SELECT user_id, epoch FROM archibald.agents"))
    assert {user: after[user] - epochs[user] for user in users} == dict.fromkeys(users, 2)
    assert dict(await faults.look.rows("SELECT user_id, losses FROM archibald.all_jobs")) == dict.fromkeys(users, 1)
    await faults.stop_all()
    await faults.check()


@takes_long
async def test_a_storm_of_jobs_survives_a_killed_and_a_restarted_worker(faults: Scene, measured: Measured) -> None:
    """3 workers, 30 agents, 600 short jobs."""
    kinds = ["fault-write", "fault-idempotent", "fault-read", "fault-read"]
    jobs = [await faults.enqueue(kinds[n % 4], f"user-{n % 30:02}", "short", seconds=(n % 7) / 200) for n in range(600)]
    began = now()
    first, second, _ = [await faults.start(name, **SHORT) for name in "abc"]
    finished = "SELECT count(*) >= %s FROM archibald.job_history"
    await faults.look.until(finished, 150)
    await faults.kill(first)
    await faults.look.until(finished, 250)
    second.signal(signal.SIGTERM)
    await faults.start("d", **SHORT)
    assert await second.exit_code() == 0
    await faults.until_ended()
    measured("600 jobs through a kill and a restart", now() - began)
    states = dict(await faults.look.rows("SELECT state, count(*) FROM archibald.all_jobs GROUP BY state"))
    assert sum(states.values()) == len(jobs)
    assert set(states) <= {"completed", "needs_review"}
    # The writes that ran in the worker that was killed, and those that had ended there and were not settled yet: of an agent one at most.
    reviewed = await faults.look.rows(
        "SELECT kind, losses, user_id FROM archibald.all_jobs WHERE state = 'needs_review'"
    )
    assert {row[:2] for row in reviewed} <= {("fault-write", 1)}
    assert len({user for _, _, user in reviewed}) == len(reviewed)
    await faults.stop_all()
    await faults.check()


# -- stopped and continued


@takes_long
async def test_stopped_for_longer_than_the_lease_it_is_taken_over_and_cannot_end_the_job_a_second_time(
    faults: Scene, measured: Measured
) -> None:
    frozen = await faults.start("a", **SHORT)
    await faults.start("b", of="bystander", **SHORT)
    held = await faults.enqueue("fault-read", "alice")
    late = await faults.enqueue("fault-read", "bob", gate="late")
    await faults.until_started(held, late)
    # Before the lease can end: the bystander would fail a job that no live worker handles, and a start may take longer than a lease.
    other = await faults.start("c", **SHORT)
    await faults.freeze(frozen)
    faults.open("late")  # its handler may go on the very moment it is continued
    await faults.until_started(held, late, times=2)
    await faults.look.until_state(late, "completed")
    (beat, fenced), *_ = await faults.look.rows(
        "SELECT beat, fenced_at FROM archibald.workers WHERE id = %s", frozen.worker_id
    )
    assert (fenced - beat).total_seconds() >= LEASE
    measured(f"SIGSTOP, lease {LEASE:g} s: last beat to fence", (fenced - beat).total_seconds())
    finished = await faults.look.job(late, "finished_at", "result", "worker_id")
    faults.thaw(frozen)
    continued = now()
    assert await faults.died(frozen) == 70
    measured("SIGCONT after the lease to the exit with 70", now() - continued)
    assert await faults.look.job(late, "finished_at", "result", "worker_id") == finished
    assert await faults.look.job(held, "state", "worker_id", "losses") == ("running", other.worker_id, 1)
    faults.open()
    await faults.until_ended()
    await faults.stop_all()
    await faults.check()


async def test_stopped_for_longer_than_the_lease_without_a_job_it_registers_anew(faults: Scene) -> None:
    frozen = await faults.start("a", **SHORT)
    await faults.start("b", of="bystander", **SHORT)
    await faults.freeze(frozen)
    await faults.look.until("SELECT fenced_at IS NOT NULL FROM archibald.workers WHERE id = %s", frozen.worker_id)
    faults.thaw(frozen)
    await faults.until_anew(frozen)
    job = await faults.enqueue("fault-read", "alice", "short", seconds=0.0)
    await faults.until_ended()
    assert await faults.look.job(job, "state") == ("completed",)
    await faults.stop_all()
    await faults.check()


async def test_a_claim_whose_reply_is_read_after_the_lease_starts_no_handler(faults: Scene) -> None:
    """The process is stopped between the claim's commit and its reply."""
    async with Wire(faults.database) as wire:
        frozen = await faults.start("a", database=wire.dsn, **SHORT)
        await faults.start("b", of="bystander", **SHORT)
        wire.delay_reply_with(b"the marker")
        job = await faults.enqueue("fault-write", "alice", note="the marker")
        await wire.caught.wait()
        await faults.freeze(frozen)
        wire.let_through()
        await faults.look.until_state(job, "needs_review")  # by the takeover, which cannot know that it never began
        faults.thaw(frozen)
        await faults.until_anew(frozen)
        assert faults.events("start", job) == []
        await faults.stop_all()


@takes_long
async def test_stopped_before_it_read_a_large_reply_its_turn_does_not_hold_up_the_takeover(faults: Scene) -> None:
    """The server cannot send the reply, so the turn never ends by itself, and keeps what a fence needs."""
    await faults.look.rows("CREATE TABLE gate ()")
    await faults.look.rows(HOLD)
    await faults.look.rows(
        "CREATE TRIGGER hold BEFORE INSERT OR UPDATE ON archibald.agents FOR EACH ROW WHEN (NEW.state = 'running') EXECUTE FUNCTION hold()"
    )
    frozen = await faults.start("a", **SHORT)
    job = await faults.enqueue("fault-read", "alice", filler="x" * 1_000_000)
    await faults.look.until(HELD)
    await faults.freeze(frozen)
    await faults.start("b", **SHORT)
    await faults.look.rows("INSERT INTO gate DEFAULT VALUES")
    faults.open()
    await faults.look.until_state(job, "completed")
    # its claim was never committed; or it was, where something between took the reply (a container's port), and then it counts as a loss
    assert await faults.look.job(job, "losses", "attempt") in {(0, 1), (1, 1)}
    await faults.look.until("SELECT fenced_at IS NOT NULL FROM archibald.workers WHERE id = %s", frozen.worker_id)
    faults.thaw(frozen)
    await faults.until_anew(frozen)
    await faults.stop_all()
    await faults.check()


@pytest.mark.parametrize("reconnecting", [False, True])
async def test_fenced_while_new_connections_are_refused_it_stops_its_handlers_and_registers_when_it_can(
    faults: Scene, server: Server, reconnecting: bool
) -> None:
    worker = await faults.start("a", **SHORT)
    job = await faults.enqueue("fault-read", "alice")
    await faults.until_started(job)
    name = await faults.look.value("SELECT current_database()")
    async with looking(server.admin_dsn) as admin:
        await admin.rows(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        if reconnecting:
            await faults.look.rows("SELECT pg_terminate_backend(backend_pid) FROM archibald.workers")
            await worker.until_logged("the dispatcher lost its connection")
        await faults.look.rows("UPDATE archibald.workers SET fenced_at = clock_timestamp()")
        await worker.until_logged("cannot register anew yet")
        assert [event.how for event in faults.events("end", job)] == ["CancelledError"]
        await admin.rows(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
    await faults.until_anew(worker)
    faults.open()
    await faults.until_ended()  # it takes over what it lost
    assert await faults.look.job(job, "state", "losses", "attempt") == ("completed", 1, 1)
    await faults.stop_all()
    await faults.check()


async def test_stopped_for_less_than_half_the_lease_it_goes_on_and_nothing_is_taken_over(faults: Scene) -> None:
    frozen = await faults.start("a", ARCHIBALD_LEASE=30)
    heir = await faults.start("b", of="bystander", **SHORT)
    job = await faults.enqueue("fault-write", "alice")
    await faults.until_started(job)
    await faults.freeze(frozen)
    beat = await faults.look.value("SELECT beat FROM archibald.workers WHERE id = %s", frozen.worker_id)
    # another worker has become able to judge, and looks
    await faults.look.until(
        "SELECT beat > %s + interval '3 s' FROM archibald.workers WHERE id = %s", beat, heir.worker_id
    )
    faults.thaw(frozen)
    await faults.look.until("SELECT beat > %s FROM archibald.workers WHERE id = %s", beat, frozen.worker_id)
    faults.open()
    await faults.until_ended()
    assert await faults.look.job(job, "state", "losses", "worker_id") == ("completed", 0, frozen.worker_id)
    assert await faults.look.value("SELECT fenced_at FROM archibald.workers WHERE id = %s", frozen.worker_id) is None
    await faults.stop_all()
    await faults.check()


# -- handlers that do not do as they are told


async def test_a_handler_that_ignores_its_timeout_keeps_its_agent_until_it_ends(
    faults: Scene, measured: Measured
) -> None:
    await faults.start("a", **SHORT)
    heir = await faults.start("b", **SHORT)
    stubborn = await faults.enqueue("fault-timed", "alice", "ignore")
    await faults.until_started(stubborn)
    following = await faults.enqueue("fault-read", "alice", "short", seconds=0.0)
    started = await faults.look.value("SELECT started_at FROM archibald.jobs WHERE id = %s", stubborn)
    await faults.look.until(  # over the timeout, and over the lease
        "SELECT beat > %s + make_interval(secs => %s) FROM archibald.workers WHERE id = %s",
        started,
        LEASE * 1.2,
        heir.worker_id,
    )
    assert await faults.look.job(stubborn, "state") == ("running",)
    assert await faults.look.job(following, "state", "requeue_count") == ("queued", 0)
    assert not await faults.look.value("SELECT pg_try_advisory_lock(archibald.lock_key('alice'))")
    faults.open()
    await faults.until_ended()
    assert await faults.look.job(stubborn, "state", "error", "losses") == ("failed", "timed out after 0.3 s", 0)
    (began,), (ended,) = faults.events("start", stubborn), faults.events("end", stubborn)
    measured("handler that ignores a timeout of 0.3 s, lease 2 s: kept its agent for", ended.at - began.at)
    assert await faults.look.job(following, "state") == ("completed",)
    await faults.stop_all()
    await faults.check()


@takes_long
async def test_a_handler_that_blocks_the_event_loop_keeps_its_lease(faults: Scene) -> None:
    await faults.start("a", **SHORT)
    await faults.start("b", **SHORT)  # may take over before the handler ends
    job = await faults.enqueue("fault-write", "alice", "block", seconds=2 * LEASE)
    await faults.until_ended()
    assert await faults.look.job(job, "state", "losses", "attempt") == ("completed", 0, 1)
    assert await faults.look.value("SELECT count(*) FROM archibald.workers WHERE fenced_at IS NOT NULL") == 0
    await faults.stop_all()
    await faults.check()


# -- connections that are lost

BACKENDS = {
    "dispatcher": r"archibald\.(turn|retake|drop_stray)",
    "heartbeat": r"SET beat",
    "listener": r"^LISTEN",
    "maintenance": r"fence_stale|release_fenced|end_lost|idempotency_keys|"
    r"DELETE FROM archibald.workers|^SELECT pg_backend_pid",  # the last one: not trusted yet, nothing to sweep
    "progress": r"SET progress",
}


@pytest.mark.parametrize(
    "whose", [pytest.param(whose, marks=pytest.mark.long if whose == "maintenance" else ()) for whose in BACKENDS]
)
async def test_when_one_of_its_backends_is_terminated_the_jobs_go_on(faults: Scene, database: str, whose: str) -> None:
    worker = await faults.start("a")
    held = [await faults.enqueue("fault-write", f"held-{n}", "report") for n in range(3)]
    await faults.until_started(*held)
    many = [
        await faults.enqueue(("fault-write", "fault-read")[n % 2], f"user-{n % 9}", "short", seconds=0.02)
        for n in range(120)
    ]
    for times in range(1, 3):
        victim = (await until(lambda: backends(database, BACKENDS[whose])))[0]
        await faults.look.until("SELECT count(*) >= %s FROM archibald.job_history", 20 * times)
        await faults.look.rows("SELECT pg_terminate_backend(%s, 5000)", victim)
    another = (await until(lambda: [pid for pid in backends(database, BACKENDS[whose]) if pid != victim]))[0]
    if whose == "dispatcher":
        await faults.look.until(
            "SELECT backend_pid = %s FROM archibald.workers WHERE id = %s", another, worker.worker_id
        )
        await faults.look.until(  # the locks are taken again, a moment after the session is written down
            "SELECT count(*) = 3 FROM archibald.agents a JOIN pg_locks l ON l.locktype = 'advisory' AND l.granted "
            "AND (l.classid::bigint << 32) | l.objid::bigint = a.lock_key WHERE a.user_id LIKE 'held-%%' AND l.pid = %s",
            another,
        )
    faults.open()
    await faults.until_ended()
    for job in (*held, *many):
        assert await faults.look.job(job, "state", "attempt", "losses", "worker_id") == (
            "completed",
            1,
            0,
            worker.worker_id,
        )
        assert len(faults.events("start", job)) == 1
    await faults.stop_all()
    await faults.check()


@pytest.mark.parametrize("what", ["claim", "outcome"])
async def test_a_reply_that_is_lost_after_the_commit_repeats_nothing(faults: Scene, what: str) -> None:
    """Of a claim: no handler had started, so the job goes back and runs once. Of an outcome: it is written once."""
    async with Wire(faults.database) as wire:
        worker = await faults.start("a", database=wire.dsn)
        if what == "claim":
            wire.lose_reply_with(b"the marker")
        job = await faults.enqueue("fault-write", "alice", note="the marker")
        if what == "claim":
            await wire.lost.wait()
            await faults.until_started(job)
        else:
            await faults.until_started(job)
            wire.lose_reply_with(b"the next marker")  # the turn that writes the outcome claims the agent's next job
        following = await faults.enqueue("fault-write", "alice", "short", seconds=0.0, note="the next marker")
        faults.open()
        await wire.lost.wait()
        await faults.until_ended()
        for each in (job, following):
            assert await faults.look.job(each, "state", "attempt", "losses") == ("completed", 1, 0)
            assert len(faults.events("start", each)) == 1
        assert worker.process.poll() is None
        await faults.stop_all()
        await faults.check()


@takes_long
async def test_cut_off_for_longer_than_the_lease_it_stops_its_handlers_before_others_start_them(
    faults: Scene, measured: Measured
) -> None:
    """A network black hole: nobody is told anything. Continued, it registers anew and works."""
    async with Wire(faults.database) as wire:
        cut_off = await faults.start("a", database=wire.dsn, **SHORT)
        jobs = [await faults.enqueue("fault-read", "alice", "report"), await faults.enqueue("fault-write", "bob")]
        await faults.until_started(*jobs)
        heir = await faults.start("b", **SHORT)
        await faults.until_trusted(heir, LEASE)
        wire.hold()
        held = now()
        await faults.until_started(jobs[0], times=2)
        first_end, second_start = faults.events("end", jobs[0])[0], faults.events("start", jobs[0])[1]
        assert first_end.pid == cut_off.pid
        assert first_end.at < second_start.at
        measured("black hole to the end of the handlers that were cut off", first_end.at - held)
        measured("black hole to the start in another worker", second_start.at - held)
        assert await faults.look.job(jobs[1], "state") == ("needs_review",)
        wire.release()
        await faults.until_anew(cut_off)
        faults.open()
        await faults.until_ended()
        await faults.stop_all()
        await faults.check()


async def test_a_turn_that_takes_long_does_not_cost_the_lease(faults: Scene) -> None:
    """The heartbeat waits for no turn: a turn held in the server for longer than the lease leaves running handlers alone."""
    await faults.look.rows("CREATE TABLE gate ()")
    await faults.look.rows(HOLD)
    await faults.look.rows(
        "CREATE TRIGGER hold BEFORE INSERT OR UPDATE ON archibald.agents FOR EACH ROW "
        "WHEN (NEW.state = 'running' AND NEW.user_id = 'slow') EXECUTE FUNCTION hold()"
    )
    worker = await faults.start("a", **SHORT)
    job = await faults.enqueue("fault-write", "alice")
    await faults.until_started(job)
    await faults.enqueue("fault-read", "slow")
    await faults.look.until(HELD)
    beat = await faults.look.value("SELECT beat FROM archibald.workers WHERE id = %s", worker.worker_id)
    await faults.look.until(
        "SELECT beat > %s + make_interval(secs => %s) FROM archibald.workers WHERE id = %s",
        beat,
        LEASE,
        worker.worker_id,
    )
    await faults.look.rows("INSERT INTO gate DEFAULT VALUES")
    faults.open()
    await faults.until_ended()
    assert await faults.look.job(job, "state") == ("completed",)
    await faults.stop_all()
    await faults.check()


async def test_a_caller_who_holds_a_running_lane_does_not_stop_the_worker_from_reconnecting(
    faults: Scene, database: str
) -> None:
    """No statement of a worker waits for a caller, also not while it takes its locks again."""
    worker = await faults.start("a")
    held = await faults.enqueue("fault-write", "alice")
    await faults.until_started(held)
    async with looking(database) as caller:
        await caller.rows("BEGIN")
        await caller.rows("SELECT FROM archibald.agents WHERE user_id = 'alice' FOR UPDATE")
        (victim,) = backends(database, BACKENDS["dispatcher"])
        await faults.look.rows("SELECT pg_terminate_backend(%s, 5000)", victim)
        other = await faults.enqueue("fault-write", "bob", "short", seconds=0.0)
        await faults.look.until_state(other, "completed")
        assert not await faults.look.value("SELECT pg_try_advisory_lock(archibald.lock_key('alice'))")
        await caller.rows("COMMIT")
    faults.open()
    await faults.until_ended()
    assert await faults.look.job(held, "state", "worker_id") == ("completed", worker.worker_id)
    await faults.stop_all()
    await faults.check()


# -- the server


@pytest.fixture
async def server_of_its_own() -> AsyncIterator[OwnServer]:
    with own_server() as server:
        await server.start()
        migrations.upgrade(server.dsn)
        yield server


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT], ids=["fast", "immediate"])
async def test_when_the_server_restarts_handlers_go_on_and_each_job_completes_once(
    server_of_its_own: OwnServer, measured: Measured, number: signal.Signals
) -> None:
    server = server_of_its_own
    async with scene(server.dsn) as faults:
        worker = await faults.start("a")
        held = [await faults.enqueue("fault-write", f"held-{n}") for n in range(4)]
        await faults.until_started(*held)
        meanwhile = await faults.enqueue("fault-write", "ends meanwhile", "report", gate="meanwhile")
        await faults.until_started(meanwhile)
        await server.stop(number)
        faults.open("meanwhile")
        await until(lambda: faults.events("end", meanwhile))
        await server.start()
        back = now()
        async with looking(server.dsn) as look:
            faults.look = look
            await look.until_state(meanwhile, "completed")
            await look.until(
                "SELECT count(*) = 4 FROM archibald.agents a JOIN pg_locks l "
                "ON (l.classid::bigint << 32) | l.objid::bigint = a.lock_key AND l.objsubid = 1 AND l.granted "
                "JOIN archibald.workers w ON w.backend_pid = l.pid AND w.id = a.worker_id WHERE a.state = 'running'"
            )
            measured(f"server restart ({signal.Signals(number).name}): up again to all locks taken again", now() - back)
            after = await faults.enqueue("fault-write", "after", "short", seconds=0.0)
            faults.open()
            await faults.until_ended()
            for job in (*held, meanwhile, after):
                assert await look.job(job, "state", "attempt", "losses", "worker_id") == (
                    "completed",
                    1,
                    0,
                    worker.worker_id,
                )
                assert len(faults.events("start", job)) == 1
            assert worker.process.poll() is None
            await faults.stop_all()
            await faults.check()


async def test_with_failover_a_server_that_refuses_connections_counts_as_silent(server_of_its_own: OwnServer) -> None:
    """Another server may have taken its place, which others reach."""
    server = server_of_its_own
    async with scene(server.dsn) as faults:
        worker = await faults.start("a", ARCHIBALD_FAILOVER=1, **SHORT)
        job = await faults.enqueue("fault-read", "alice")
        await faults.until_started(job)
        await server.stop(signal.SIGINT)
        await worker.until_logged("handlers are cancelled before the lease")
        await until(lambda: faults.events("end", job))
        assert [event.how for event in faults.events("end", job)] == ["CancelledError"]
        await server.start()
        async with looking(server.dsn) as look:
            faults.look = look
            faults.open()
            await faults.until_ended()
            assert await look.job(job, "state", "losses") == (
                "completed",
                0,
            )  # nobody took it over, and it was told to go back
            await faults.stop_all()
            await faults.check()


@takes_long
async def test_with_the_server_down_a_worker_that_is_told_to_end_does_end(
    server_of_its_own: OwnServer, measured: Measured
) -> None:
    server = server_of_its_own
    async with scene(server.dsn) as faults:
        worker = await faults.start("a", ARCHIBALD_SHUTDOWN_GRACE=0)
        job = await faults.enqueue("fault-write", "alice")
        await faults.until_started(job)
        await server.stop(signal.SIGINT)
        told = now()
        worker.signal(signal.SIGTERM)
        assert await worker.exit_code() == 0
        measured("SIGTERM to the exit, server down", now() - told)
        assert [event.how for event in faults.events("end", job)] == ["CancelledError"]
        await server.start()
        async with looking(server.dsn) as look:
            faults.look = look
            heir = await faults.start("b", **SHORT)
            await look.until_state(job, "needs_review")
            assert heir.process.poll() is None
            await faults.stop_all()
            await faults.check()


@takes_long
async def test_with_a_server_that_does_not_answer_a_worker_that_is_told_to_end_does_end(
    server_of_its_own: OwnServer, measured: Measured
) -> None:
    server = server_of_its_own
    async with scene(server.dsn) as faults:
        worker = await faults.start("a", ARCHIBALD_SHUTDOWN_GRACE=0)
        job = await faults.enqueue("fault-write", "alice")
        await faults.until_started(job)
        server.freeze()
        told = now()
        worker.signal(signal.SIGTERM)
        assert await worker.exit_code() in (0, 70)
        measured("SIGTERM to the exit, server frozen", now() - told)
        assert [event.how for event in faults.events("end", job)] == ["CancelledError"]
        server.thaw()


# -- cancelling


@pytest.mark.parametrize("how", ["notified", "its listener just lost", "not notified"])
async def test_a_running_job_in_another_process_is_cancelled_within_a_second(
    faults: Scene, database: str, measured: Measured, how: str
) -> None:
    """Where no notification arrives, the next heartbeat brings the request."""
    await faults.start("a")
    job = await faults.enqueue("fault-write", "alice")
    await faults.until_started(job)
    (listener,) = await until(lambda: backends(database, BACKENDS["listener"]))
    if how == "its listener just lost":
        await faults.look.rows("SELECT pg_terminate_backend(%s, 5000)", listener)
    asked = now()
    if how == "not notified":
        await faults.look.rows("UPDATE archibald.jobs SET cancel_requested_at = now() WHERE id = %s", job)
    else:
        assert await faults.app.cancel(job) == "requested"
    await faults.look.until_state(job, "cancelled")
    measured(f"cancel of a running job, {how}", now() - asked)
    assert await faults.look.job(job, "error") == ("cancelled on request",)
    await faults.stop_all()
    await faults.check()


@pytest.mark.parametrize("how", ["told to end", "killed"])
async def test_a_cancel_that_its_worker_never_heard_is_obeyed_when_the_job_comes_back(faults: Scene, how: str) -> None:
    deaf = await faults.start("a", ARCHIBALD_SHUTDOWN_GRACE=0, **SHORT)
    await faults.start("b", of="bystander", **SHORT)
    job = await faults.enqueue("fault-read", "alice")
    await faults.until_started(job)
    await faults.freeze(deaf)
    assert await faults.app.cancel(job) == "requested"
    if how == "killed":
        await faults.kill(deaf)
    else:
        deaf.signal(signal.SIGTERM)
        faults.thaw(deaf)
        assert await deaf.exit_code() == 0
    await faults.until_ended()
    assert await faults.look.job(job, "state", "error") == ("cancelled", "cancelled on request")
    assert len(faults.events("start", job)) == 1
    await faults.stop_all()
    await faults.check()
