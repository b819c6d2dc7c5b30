"""The lane of an agent: no wake-up is lost, and nobody waits for a caller.

A locked agent costs the others nothing, and the lanes of a lost worker come back once.
"""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg
import pytest

from archibald_pgq.domain.job import ClaimedJob
from archibald_pgq.domain.outcome import Outcome
from archibald_pgq.store import turn as store
from archibald_pgq.store import workers
from archibald_pgq.store.connect import connect, worker_options
from tests.hand import COMPLETE, Hand, hand
from tests.support import PATIENCE, Look, looking

ENQUEUE = "SELECT archibald.enqueue(%s, %s)"
BEAT_IS_OLD = "UPDATE archibald.workers SET beat = clock_timestamp() - interval '7 s' WHERE id = %s"


async def drain(worker: Hand, look: Look) -> int:
    """Run everything that is queued to its end, and see that the lanes are left as they should be; return how many ran."""
    ran = 0
    async with asyncio.timeout(PATIENCE):
        while await look.value("SELECT count(*) > 0 FROM archibald.jobs WHERE state <> 'needs_review'"):
            jobs = await worker.claim()
            ran += len(jobs)
            await worker.turn(*((job, Outcome.completed("1")) for job in jobs))
        while await look.value("SELECT count(*) > 0 FROM archibald.agents WHERE doubt_at IS NOT NULL"):
            await worker.claim()
    assert await look.rows("SELECT user_id, state FROM archibald.agents WHERE state <> 'idle'") == []
    assert await look.value("SELECT count(*) FROM archibald.jobs WHERE wake") == 0
    assert await agent_locks(look) == 0
    return ran


async def agent_locks(look: Look) -> int:
    """Count the advisory locks of this database that any session holds."""
    count = await look.value(
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' "
        "AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    )
    return int(count)


# -- no wake-up is lost


@pytest.mark.parametrize("level", [None, psycopg.IsolationLevel.REPEATABLE_READ, psycopg.IsolationLevel.SERIALIZABLE])
@pytest.mark.parametrize("before", ["idle", "running"])
async def test_a_job_committed_long_after_its_agent_became_idle_is_found(
    look: Look, database: str, level: psycopg.IsolationLevel | None, before: str
) -> None:
    async with hand(database) as worker, looking(database) as caller:
        await look.value(ENQUEUE, "alice", "submit-order")
        job = await worker.claim_one()
        if before == "idle":
            await worker.settle(job)
        await caller.connection.set_isolation_level(level)
        async with caller.connection.transaction():
            await caller.value(ENQUEUE, "alice", "edit-order")
            if before == "running":
                await worker.settle(job)
            assert await worker.claim() == []
            assert await look.value("SELECT state FROM archibald.agents") == "idle"
        assert await drain(worker, look) == 1


async def test_a_transaction_that_is_rolled_back_leaves_nothing_behind(look: Look, database: str) -> None:
    async with hand(database) as worker, looking(database) as caller:
        await look.value(ENQUEUE, "alice", "submit-order")
        job = await worker.claim_one()
        async with caller.connection.transaction(force_rollback=True):
            await caller.value(ENQUEUE, "alice", "edit-order")
            await caller.value(ENQUEUE, "not known yet", "edit-order")
            await worker.settle(job)
        assert await drain(worker, look) == 0
    assert await look.rows("SELECT user_id FROM archibald.agents") == [("alice",)]


@pytest.mark.parametrize("behind", [[], ["sync-orders"]], ids=["nothing", "a sync"])
async def test_a_cancel_that_sees_an_old_state_strands_no_job(look: Look, database: str, behind: list[str]) -> None:
    """In REPEATABLE READ the head's canceller does not see the job behind it, which was enqueued later."""
    async with hand(database) as worker, looking(database) as caller:
        first = await look.value(ENQUEUE, "alice", "submit-order")
        for kind in behind:
            await look.value(ENQUEUE, "alice", kind)
        await worker.turn(look=True)
        await caller.connection.set_isolation_level(psycopg.IsolationLevel.REPEATABLE_READ)
        async with caller.connection.transaction():
            await caller.rows("SELECT FROM archibald.jobs")
            await look.rows("INSERT INTO archibald.jobs (user_id, kind) VALUES ('alice', 'edit-order')")
            assert (
                await look.value("SELECT count(*) FROM archibald.jobs WHERE wake") == 0
            )  # it counts on the one before it
            assert await caller.value("SELECT archibald.cancel_job(%s)", first) == "cancelled"
        async with asyncio.timeout(PATIENCE):
            while await look.value("SELECT head_kind FROM archibald.agents") != "edit-order":
                await worker.turn(look=True)
        assert await drain(worker, look) == 1 + len(behind)


async def test_an_enqueue_for_a_busy_agent_hardly_ever_notifies(look: Look, database: str) -> None:
    """Also through a driver that sends parameters. A notification per enqueue serializes all commits."""
    async with hand(database) as worker:
        await look.value(ENQUEUE, "alice", "submit-order")
        await worker.claim_one()
        for _ in range(100):
            await look.value(ENQUEUE, "alice", "edit-order")
        # one that was slow between two messages of its own passes for a transaction: that costs a notification and nothing else
        assert await look.value("SELECT count(*) FROM archibald.jobs WHERE wake") < 50
        async with look.connection.transaction():
            await look.value(ENQUEUE, "alice", "delete-order")
        assert await look.value("SELECT wake FROM archibald.jobs WHERE kind = 'delete-order'")


async def test_every_job_runs_while_many_enqueue_and_several_workers_run_at_full_speed(
    look: Look, database: str
) -> None:
    """Autocommit, long and rolled back transactions, delays, cancels, and an outside session that takes and holds things."""
    ended = asyncio.Event()

    async def enqueue(caller: int) -> None:
        async with looking(database) as own:
            for n in range(120):
                user, kind = f"user-{(n * 7 + caller) % 9}", ("submit-order", "sync-orders", "edit-order")[n % 3]
                match (n + caller) % 5:
                    case 0 | 1:
                        await own.value(ENQUEUE, user, kind)
                    case 2:
                        job = await own.value(ENQUEUE, user, kind)
                        await own.value("SELECT archibald.cancel_job(%s)", job)
                    case 3:
                        sql = "SELECT archibald.enqueue(%s, %s, run_after => clock_timestamp() + interval '50 ms')"
                        await own.value(sql, user, kind)
                    case 4:
                        async with own.connection.transaction(force_rollback=n % 2 == 0):
                            await own.value(ENQUEUE, f"new-{caller}-{n}", kind)
                            await own.rows("SELECT FROM archibald.agents WHERE user_id = %s FOR UPDATE", user)

    async def lock() -> None:
        async with looking(database) as own:
            n = 0
            while not ended.is_set():
                n += 1
                async with own.connection.transaction():
                    await own.rows(
                        "SELECT FROM archibald.jobs WHERE user_id = %s FOR UPDATE SKIP LOCKED", f"user-{n % 9}"
                    )
                    if await own.value("SELECT archibald.try_lock_agent(%s)", f"user-{n % 5}"):
                        await own.value("SELECT archibald.unlock_agent(%s)", f"user-{n % 5}")

    async def work() -> None:
        async with hand(database) as worker:
            todo: list[Any] = []
            while not ended.is_set() or todo:
                turn = await worker.turn(*todo, want=10 - len(todo), look=True)
                todo = [item for item in todo if store.Owner(item[0].lane, item[0].epoch) in turn.locked]
                for job in turn.claimed:
                    again = job.epoch % 4 == 0 and job.attempt < job.max_attempts
                    todo.append((job, Outcome.retry("again", 0.02) if again else Outcome.completed("1")))

    helpers = [asyncio.create_task(work()), asyncio.create_task(work()), asyncio.create_task(lock())]
    await asyncio.gather(*(enqueue(caller) for caller in range(5)))
    await look.until("SELECT count(*) = 0 FROM archibald.jobs")
    ended.set()
    await asyncio.gather(*helpers)
    async with hand(database) as worker:
        assert await drain(worker, look) == 0
    assert await look.value("SELECT count(*) - count(DISTINCT id) FROM archibald.job_history") == 0
    assert await look.value("SELECT count(*) FROM archibald.job_history WHERE attempt > max_attempts") == 0


# -- nobody waits for a caller


@pytest.mark.parametrize("table", ["jobs", "agents"])
async def test_a_row_that_a_caller_holds_delays_only_itself(look: Look, database: str, table: str) -> None:
    async with hand(database) as worker, looking(database) as caller:
        for user in ("alice", "bob"):
            await look.value(ENQUEUE, user, "submit-order")
        alice, bob = await worker.claim()
        for user in ("alice", "bob"):
            await look.value(ENQUEUE, user, "edit-order")
        async with caller.connection.transaction():
            await caller.rows(f"SELECT FROM archibald.{table} WHERE user_id = 'alice' FOR UPDATE")
            turn = await worker.turn((alice, Outcome.completed("1")), (bob, Outcome.completed("1")), want=10, look=True)
            assert [owner.lane for owner in turn.locked] == [alice.lane]
            assert turn.lost == []
            assert [job.user_id for job in turn.claimed] == ["bob"]
            await worker.settle(turn.claimed[0])
        await worker.settle(alice)
        assert await drain(worker, look) == 1


async def test_a_caller_who_holds_the_rows_of_many_new_jobs_stops_no_wake_up(look: Look, database: str) -> None:
    """More than are looked at in one turn, be they held one by one or through their agent's lane."""
    many = "INSERT INTO archibald.jobs (user_id, kind) SELECT %s || n %% %s, 'submit-order' FROM generate_series(1, 600) AS n"
    async with hand(database) as worker, looking(database) as caller:
        await look.value(ENQUEUE, "hot-0", "submit-order")
        await worker.turn(look=True)
        async with look.connection.transaction():
            await look.rows("SELECT pg_sleep(0.006)")  # it counts as an explicit transaction: every job wakes
            await look.rows(many, "hot-", 1)
            await look.rows(many, "user-", 600)
        assert await look.value("SELECT count(*) FROM archibald.jobs WHERE wake") == 1200
        async with caller.connection.transaction():
            await caller.rows("SELECT FROM archibald.agents WHERE user_id = 'hot-0' FOR UPDATE")
            await caller.rows("SELECT FROM archibald.jobs WHERE user_id <> 'hot-0' FOR UPDATE")
            await look.value(ENQUEUE, "bob", "submit-order")
            claimed: list[ClaimedJob] = []
            async with asyncio.timeout(PATIENCE):
                while not claimed:  # a turn begins anywhere among those that are to be looked at
                    claimed = await worker.claim()
            assert [job.user_id for job in claimed] == ["bob"]


async def test_a_cancel_in_an_open_transaction_stops_no_enqueue_and_no_worker(look: Look, database: str) -> None:
    async with hand(database) as worker, looking(database) as caller:
        first = await look.value(ENQUEUE, "alice", "submit-order")
        await worker.turn(look=True)
        async with caller.connection.transaction():
            assert await caller.value("SELECT archibald.cancel_job(%s)", first) == "cancelled"
            await look.rows("SET lock_timeout = '1s'")
            await look.value(ENQUEUE, "alice", "edit-order")
            await look.value(ENQUEUE, "bob", "edit-order")
            job = await worker.claim_one()
            assert job.user_id == "bob"
            await worker.settle(job)
        assert await drain(worker, look) == 1


async def test_what_is_owned_is_told_and_locked_again_while_a_caller_holds_the_lane(look: Look, database: str) -> None:
    async with hand(database) as worker, looking(database) as caller:
        await look.value(ENQUEUE, "alice", "submit-order")
        job = await worker.claim_one()
        await worker.connection.execute("SELECT pg_advisory_unlock_all()")
        async with caller.connection.transaction():
            await caller.rows("SELECT FROM archibald.agents FOR UPDATE")
            (owned,) = await store.owned_lanes(worker.connection, worker.worker_id)
        assert (owned.owner.lane, owned.job_ids, owned.locked) == (job.lane, [job.job_id], True)
        assert await look.value("SELECT archibald.try_lock_agent('alice')") is False


async def test_what_is_overdue_and_held_by_somebody_makes_no_tight_loop(look: Look, database: str) -> None:
    async with hand(database, ["submit-order"]) as worker, hand(database, ["edit-order"]), looking(database) as caller:
        await look.value(ENQUEUE, "of the other worker", "edit-order")
        await look.value("SELECT archibald.enqueue('alice', 'submit-order', run_after => now() + interval '1 h')")
        await look.value(ENQUEUE, "in doubt", "submit-order")
        await worker.settle(await worker.claim_one())
        await look.rows("UPDATE archibald.jobs SET run_after = now() WHERE user_id = 'alice'")
        await look.rows("UPDATE archibald.agents SET retry_at = now() WHERE user_id = 'of the other worker'")
        await look.rows("UPDATE archibald.agents SET doubt_at = now() WHERE user_id = 'in doubt'")
        async with caller.connection.transaction():
            await caller.rows("SELECT FROM archibald.jobs WHERE user_id = 'alice' FOR UPDATE")
            await caller.rows("SELECT FROM archibald.agents WHERE user_id = 'in doubt' FOR UPDATE")
            turn = await worker.turn(want=1, look=True)
            assert turn.claimed == []
            assert turn.next_in is not None
            assert 0.1 < turn.next_in <= 0.2
        assert (await worker.claim_one()).user_id == "alice"


async def test_what_becomes_overdue_during_a_turn_is_looked_at_at_once(look: Look, database: str) -> None:
    async with hand(database) as worker:
        await look.value(ENQUEUE, "alice", "submit-order")
        await worker.settle(await worker.claim_one())
        async with worker.connection.transaction():
            await worker.connection.execute("SELECT")  # now() is the time of this
            await look.rows("UPDATE archibald.agents SET doubt_at = clock_timestamp()")
            turn = await worker.turn(want=1, look=True)
        assert turn.next_in is not None
        assert turn.next_in <= 0


@pytest.mark.parametrize("when", ["infinity", "-infinity", "10000-01-01"])
async def test_a_time_that_nobody_can_calculate_with_is_refused(look: Look, database: str, when: str) -> None:
    with pytest.raises(psycopg.DatabaseError, match="run_after must be a time in the years 1 to 9999") as refused:
        await look.value("SELECT archibald.enqueue('alice', 'submit-order', run_after => %s)", when)
    assert refused.value.sqlstate == "AQ002"
    # it would have broken every turn of every worker
    async with hand(database) as worker:
        assert await worker.claim() == []


async def test_a_plain_insert_cannot_set_what_is_the_queues_to_count(look: Look, database: str) -> None:
    await look.rows(
        "INSERT INTO archibald.jobs (user_id, kind, state, attempt, losses, progress, worker_id, created_at, started_at) "
        "VALUES ('alice', 'submit-order', 'running', 9, 9, 9, 9, '2001-01-01', '2001-01-01')"
    )
    row = "state, attempt, losses, progress, worker_id, started_at, created_at > now() - interval '1 min'"
    assert await look.rows(f"SELECT {row} FROM archibald.jobs") == [("queued", 0, 0, None, None, None, True)]


# -- agents that somebody else has locked


async def test_agents_that_are_locked_cost_the_others_no_place_in_the_turn(look: Look, database: str) -> None:
    async with hand(database) as worker:
        for n in range(5):
            assert await look.value("SELECT archibald.try_lock_agent(%s)", f"locked-{n}")
            await look.value(ENQUEUE, f"locked-{n}", "submit-order")
        await look.value(ENQUEUE, "bob", "edit-order")  # not as urgent
        turn = await worker.turn(want=1, look=True)
        assert [job.user_id for job in turn.claimed] == ["bob"]
        assert {requeued.user_id for requeued in turn.requeued} == {f"locked-{n}" for n in range(5)}
        turn = await worker.turn(want=1, look=True)
        assert turn.claimed == []
        assert turn.next_in is not None
        assert 1 < turn.next_in <= 2  # the end of the backoffs


async def test_a_better_job_does_not_shorten_a_backoff_and_its_end_lets_all_go_on(look: Look, database: str) -> None:
    async with hand(database) as worker:
        assert await look.value("SELECT archibald.try_lock_agent('alice')")
        await look.value(ENQUEUE, "alice", "edit-order")
        await worker.claim()
        before = await look.rows("SELECT ready_at, retry_at FROM archibald.agents")
        await look.value(ENQUEUE, "alice", "submit-order")
        turn = await worker.turn(want=10, look=True)
        assert (turn.claimed, turn.requeued) == ([], [])
        assert await look.rows("SELECT ready_at, retry_at FROM archibald.agents") == before
        # the session that held it lets go by itself, and the better job runs first
        await look.value("SELECT pg_advisory_unlock(archibald.lock_key('alice'))")
        job = await worker.claim_one()
        assert job.kind == "submit-order"
        await worker.settle(job)
        assert await drain(worker, look) == 1


async def test_a_release_by_a_worker_ends_the_waiting_of_what_was_refused_before(look: Look, database: str) -> None:
    """Also when another job of the agent ran in between and took the lane's backoff with it."""
    async with hand(database) as worker:
        assert await look.value("SELECT archibald.try_lock_agent('alice')")
        await look.value(ENQUEUE, "alice", "edit-order")
        await worker.claim()
        await look.value(ENQUEUE, "alice", "submit-order")
        await look.value("SELECT pg_advisory_unlock(archibald.lock_key('alice'))")
        await look.rows("UPDATE archibald.agents SET retry_at = now(), ready_at = now()")
        await worker.settle(await worker.claim_one())
        waiting = "SELECT kind, requeue_count, wait_reason, run_after <= now() FROM archibald.jobs"
        assert await look.rows(waiting) == [("edit-order", 1, None, True)]


async def test_a_lock_that_a_second_session_takes_over_goes_on_to_hold_the_agent(look: Look, database: str) -> None:
    async with hand(database) as worker, looking(database) as other:
        assert await look.value("SELECT archibald.try_lock_agent('alice')")
        job = await look.value(ENQUEUE, "alice", "submit-order")
        await worker.claim()
        assert await look.value("SELECT archibald.unlock_agent('alice')")
        assert await other.value("SELECT archibald.try_lock_agent('alice')")
        assert await worker.claim() == []
        assert await look.job(job, "requeue_count") == (1,)  # still in its backoff: it is not even tried
        assert await other.value("SELECT archibald.unlock_agent('alice')")
        assert (await worker.claim_one()).job_id == job


async def test_cancelling_a_refused_head_leaves_its_agent_to_the_next_job(look: Look, database: str) -> None:
    async with hand(database) as worker:
        assert await look.value("SELECT archibald.try_lock_agent('alice')")
        first = await look.value(ENQUEUE, "alice", "submit-order")
        second = await look.value(ENQUEUE, "alice", "edit-order")
        await worker.claim()
        assert await look.value("SELECT archibald.cancel_job(%s)", first) == "cancelled"
        assert await worker.claim() == []
        await look.value("SELECT archibald.unlock_agent('alice')")
        assert (await worker.claim_one()).job_id == second


async def test_locks_of_this_session_that_belong_to_no_lane_are_dropped_however_often_it_holds_them(
    look: Look, database: str
) -> None:
    async with hand(database) as worker:
        users = [f"user-{n}" for n in range(20)]
        keys = await look.rows("SELECT archibald.lock_key(u) FROM unnest(%s::text[]) AS u", users)
        assert {key > 0 for (key,) in keys} == {True, False}
        await look.value(ENQUEUE, "alice", "submit-order")
        await worker.claim_one()
        for _ in range(3):
            await worker.connection.execute(
                "SELECT pg_try_advisory_lock(archibald.lock_key(u)) FROM unnest(%s::text[]) AS u", [users]
            )
        assert await store.drop_stray_locks(worker.connection, worker.worker_id) == 20
        assert await agent_locks(look) == 1  # alice's
        assert await look.value("SELECT archibald.try_lock_agent('alice')") is False


# -- kinds that other workers handle


async def test_a_kind_that_only_another_live_worker_handles_is_left_to_it(look: Look, database: str) -> None:
    async with hand(database, ["submit-order"]) as worker:
        async with hand(database, ["edit-order"]) as other:
            edit = await look.value(ENQUEUE, "alice", "edit-order")
            nobodys = await look.value(ENQUEUE, "bob", "delete-order")
            assert [job.job_id for job in await worker.claim()] == [nobodys]
            # a hint that has become stale: the head of the lane is another's now
            submit = await look.value(ENQUEUE, "alice", "submit-order")
            assert (await worker.claim_one()).job_id == submit
            assert await other.claim() == []  # alice is busy
            await look.rows("UPDATE archibald.jobs SET priority = 0 WHERE id = %s", edit)
        await look.rows(BEAT_IS_OLD, other.worker_id)
        (lane,) = await look.rows("SELECT id, epoch FROM archibald.agents WHERE user_id = 'alice'")
        await look.rows(COMPLETE, worker.worker_id, lane[0], lane[1], lane[0], submit)
        assert (await worker.claim_one()).job_id == edit  # nobody alive handles it: it shall fail


# -- cancel


@pytest.mark.parametrize("outcome", [Outcome.retry("again", 0), Outcome.retry("again", 60), Outcome.gone_back()])
async def test_a_job_that_was_asked_to_stop_does_not_go_back_into_the_queue(
    look: Look, database: str, outcome: Outcome
) -> None:
    async with hand(database) as worker:
        job_id = await look.value(ENQUEUE, "alice", "sync-orders")
        job = await worker.claim_one()
        assert await look.value("SELECT archibald.cancel_job(%s)", job_id) == "requested"
        turn = await worker.settle(job, outcome)
        assert (turn.lost, turn.locked) == ([], [])
        assert await look.job(job_id, "state") == ("cancelled",)
        assert await drain(worker, look) == 0


async def test_cancelling_works_in_every_state(look: Look, database: str) -> None:
    cancel = "SELECT archibald.cancel_job(%s)"
    async with hand(database) as worker:
        new = await look.value(ENQUEUE, "not adopted yet", "submit-order")
        assert await look.value(cancel, new) == "cancelled"
        review = await look.value(ENQUEUE, "alice", "submit-order")
        await worker.settle(await worker.claim_one(), Outcome.needs_review("perhaps"))
        assert await look.value(cancel, review) == "cancelled"
        done = await look.value(ENQUEUE, "alice", "submit-order")
        await worker.settle(await worker.claim_one())
        assert await look.value(cancel, done) == "already completed"
        assert await look.value(cancel, 10**15) is None
        delayed = await look.value(
            "SELECT archibald.enqueue('alice', 'edit-order', run_after => now() + interval '1 h')"
        )
        assert await look.value(cancel, delayed) == "cancelled"
        assert await drain(worker, look) == 0


# -- workers that went silent


async def lost(look: Look, worker: Hand, by: Hand, max_losses: int = 3) -> list[workers.Released]:
    """Let a worker's lease run out and another take over."""
    await look.rows(BEAT_IS_OLD, worker.worker_id)
    assert [fenced.worker_id for fenced in await workers.fence_stale(by.connection, by.worker_id)] == [worker.worker_id]
    await workers.end_lost_backends(by.connection)
    return await workers.release_fenced(by.connection, 100, max_losses)


async def test_only_the_backend_of_the_fenced_worker_is_ended(look: Look, database: str) -> None:
    async with hand(database) as silent, hand(database) as other, looking(database) as bystander:
        await look.rows(BEAT_IS_OLD, silent.worker_id)
        before = await look.value("SELECT count(*) FROM pg_stat_activity")
        await workers.fence_stale(other.connection, other.worker_id)
        await workers.end_lost_backends(other.connection)
        pid = silent.connection.info.backend_pid
        await look.until("SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = %s)", pid)
        assert await bystander.value("SELECT 1") == 1
        assert (await other.turn(want=1)).fenced is False
        assert await look.value("SELECT count(*) FROM pg_stat_activity") >= before - 1
        with pytest.raises(psycopg.OperationalError):
            await silent.turn(want=1)


async def test_the_heartbeat_does_not_wait_for_its_workers_own_turn(look: Look, database: str) -> None:
    conninfo = worker_options(database, "heartbeat", 6)
    async with hand(database) as worker, await connect(conninfo) as heart, worker.connection.transaction():
        await worker.turn(want=1)
        cursor = await heart.execute(workers.BEAT, {"worker": worker.worker_id, "browsers": None})
        assert await cursor.fetchone() == (1, [], False, [])


async def test_a_worker_in_a_turn_is_fenced_after_it_or_when_it_is_frozen_and_others_at_once(
    look: Look, database: str
) -> None:
    await look.rows("SET lock_timeout = '5s'")
    async with hand(database) as frozen, hand(database) as silent, hand(database) as other:
        job = await look.value(ENQUEUE, "alice", "submit-order")
        async with frozen.connection.transaction():
            assert (await frozen.claim_one()).job_id == job
            assert [item.worker_id for item in await self_and(look, frozen, silent, other)] == [silent.worker_id]
            await look.rows(
                "UPDATE archibald.workers SET beat = now() - interval '13 s' WHERE id = %s", frozen.worker_id
            )
            assert await workers.fence_stale(other.connection, other.worker_id) == []  # never into its turn
            await workers.end_lost_backends(other.connection)
            await look.until(
                "SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = %s)", frozen.connection.info.backend_pid
            )
            fenced = await workers.fence_stale(other.connection, other.worker_id)
            assert [item.worker_id for item in fenced] == [frozen.worker_id]
            # its claim never happened
            assert (await other.claim_one()).job_id == job
            await frozen.connection.close()


async def self_and(look: Look, *hands: Hand) -> list[workers.Fenced]:
    """Age the beats of all but the last, which fences."""
    *old, me = hands
    for worker in old:
        await look.rows(BEAT_IS_OLD, worker.worker_id)
    return await workers.fence_stale(me.connection, me.worker_id)


async def test_a_turn_that_begins_while_it_is_fenced_sees_the_fence(look: Look, database: str) -> None:
    async with hand(database) as silent, hand(database) as other:
        await look.rows(BEAT_IS_OLD, silent.worker_id)
        await look.value(ENQUEUE, "alice", "submit-order")
        async with other.connection.transaction():
            await workers.fence_stale(other.connection, other.worker_id)
            with pytest.raises(psycopg.errors.LockNotAvailable):
                await silent.turn(want=1)
        assert (await silent.turn(want=1)).fenced


async def test_a_fenced_worker_fences_nobody(look: Look, database: str) -> None:
    async with hand(database) as silent, hand(database) as fenced:
        await look.rows("UPDATE archibald.workers SET fenced_at = now() WHERE id = %s", fenced.worker_id)
        assert await self_and(look, silent, fenced) == []


async def test_a_worker_that_said_goodbye_and_still_owns_a_lane_loses_it(look: Look, database: str) -> None:
    """The reply of its last claim was lost; it believed that it owned nothing."""
    async with hand(database) as leaving, hand(database) as other:
        job = await look.value(ENQUEUE, "alice", "sync-orders")
        await leaving.claim_one()
        await workers.stop(leaving.connection, leaving.worker_id)
        assert await look.value("SELECT stopped_at FROM archibald.workers WHERE id = %s", leaving.worker_id) is None
        await look.rows("UPDATE archibald.workers SET stopped_at = now() WHERE id = %s", leaving.worker_id)
        assert [released.fate for released in await lost(look, leaving, other)] == ["queued"]
        assert (await other.claim_one()).job_id == job
        # one that owned nothing is left in peace
        await look.rows("UPDATE archibald.workers SET fenced_at = NULL")
        assert await self_and(look, leaving, other) == []


@pytest.mark.parametrize(
    ("kind", "losses", "cancelled", "fate", "error"),
    [
        ("submit-order", 0, False, "needs_review", "its worker died while it ran"),
        ("submit-order", 0, True, "needs_review", "its worker died while it ran"),
        ("sync-orders", 0, False, "queued", None),
        ("sync-orders", 1, False, "queued", None),
        ("sync-orders", 2, False, "failed", "its worker died 3 times"),
        ("sync-orders", 0, True, "cancelled", "cancelled on request"),
    ],
)
async def test_what_becomes_of_the_job_of_a_lost_worker(
    look: Look, database: str, *, kind: str, losses: int, cancelled: bool, fate: str, error: str | None
) -> None:
    async with hand(database) as silent, hand(database) as other:
        job_id = await look.value(ENQUEUE, "alice", kind)
        await look.rows("UPDATE archibald.jobs SET losses = %s", losses)
        await silent.turn(look=True)
        job = await silent.claim_one()
        if cancelled:
            assert await look.value("SELECT archibald.cancel_job(%s)", job_id) == "requested"
        assert await lost(look, silent, other) == [workers.Released("alice", job_id, fate)]
        assert await look.job(job_id, "state", "losses", "attempt", "error") == (fate, losses + 1, 0, error)
        # what the lost worker still has to say about it changes nothing, whoever says it
        row = "SELECT * FROM archibald.all_jobs"
        before = await look.rows(row)
        assert await look.value(COMPLETE, silent.worker_id, job.lane, job.epoch, job.lane, job_id) == "lost"
        assert await look.rows(row) == before


async def test_one_lane_in_error_does_not_keep_the_others_from_being_taken_over(look: Look, database: str) -> None:
    async with hand(database) as silent, hand(database) as other, looking(database) as caller:
        jobs = {user: await look.value(ENQUEUE, user, "sync-orders") for user in ("alice", "bob", "carol")}
        await silent.claim()
        async with caller.connection.transaction():
            await caller.rows("SELECT FROM archibald.jobs WHERE user_id = 'alice' FOR UPDATE")
            fates = {item.user_id: (item.job_id, item.fate[:5]) for item in await lost(look, silent, other)}
            assert fates == {
                "alice": (None, "error"),
                "bob": (jobs["bob"], "queue"),
                "carol": (jobs["carol"], "queue"),
            }
        (released,) = await workers.release_fenced(other.connection, 100, 3)
        assert released == workers.Released("alice", jobs["alice"], "queued")
        assert await drain(other, look) == 3


async def test_a_takeover_in_small_batches_frees_every_lane(look: Look, database: str) -> None:
    async with hand(database) as silent, hand(database) as other:
        for n in range(25):
            await look.value(ENQUEUE, f"user-{n}", "sync-orders")
        assert len(await silent.claim(want=25)) == 25
        await look.rows(BEAT_IS_OLD, silent.worker_id)
        await workers.fence_stale(other.connection, other.worker_id)
        await workers.end_lost_backends(other.connection)
        sizes = [len(await workers.release_fenced(other.connection, 10, 3)) for _ in range(4)]
        assert sizes == [10, 10, 5, 0]
        assert await drain(other, look) == 25


# -- the rest of the upkeep


async def test_partitions_are_made_though_jobs_of_their_days_have_ended_already(look: Look) -> None:
    """No worker ran for longer than partitions are made ahead, while people cancelled jobs."""
    for days in (8, 9):
        await look.rows(
            "INSERT INTO archibald.job_history SELECT %s, 1, 'alice', 'submit-order', 'write', 'cancelled', 1, now(), 0, 0, 0, 1, NULL, "
            "'{}', NULL, NULL, NULL, NULL, NULL, NULL, now() + %s * interval '1 day', now()",
            days,
            days,
        )
    assert await look.value("SELECT count(*) FROM archibald.job_history_default") == 2
    made = await look.rows("SELECT archibald.make_history_partitions(10)")
    assert len(made) == 3
    assert await look.value("SELECT count(*) FROM archibald.job_history_default") == 0
    assert await look.value("SELECT count(*) FROM archibald.job_history") == 2


async def test_an_open_reader_of_the_history_delays_partitions_and_nothing_else(look: Look, database: str) -> None:
    async with hand(database) as worker, looking(database) as reader:
        async with reader.connection.transaction():
            await reader.rows("SELECT FROM archibald.all_jobs")
            assert await look.rows("SELECT archibald.make_history_partitions(8)") == []
            await look.value(ENQUEUE, "alice", "submit-order")
            assert await drain(worker, look) == 1
        assert len(await look.rows("SELECT archibald.make_history_partitions(8)")) == 1


async def test_a_worker_reads_committed_whatever_the_database_or_the_dsn_say(look: Look, database: str) -> None:
    await look.rows(
        "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET default_transaction_isolation = serializable', current_database()); END $$"
    )
    separator = "&" if "?" in database else "?"
    async with hand(f"{database}{separator}options=-c%20work_mem%3D8MB") as worker:
        shown = [
            await (await worker.connection.execute(f"SHOW {name}")).fetchone()
            for name in ("transaction_isolation", "lock_timeout", "work_mem")
        ]
        assert shown == [("read committed",), ("200ms",), ("8MB",)]
        await look.value(ENQUEUE, "alice", "submit-order")
        assert await drain(worker, look) == 1
        async with looking(database) as other:
            with pytest.raises(psycopg.errors.RaiseException, match="needs READ COMMITTED"):
                await other.rows(
                    "SELECT archibald.turn(%s, '{}', '{}', '{}', '{}', '{}', '{}', '{}', 1, 1, 0, false)",
                    worker.worker_id,
                )
