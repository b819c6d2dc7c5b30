"""New agents: their first jobs begin in order, without having been adopted, and every promise about a job holds for these too."""

from __future__ import annotations

import asyncio
import time

import psycopg
import pytest

from archibald_pgq.domain.job import ClaimedJob
from archibald_pgq.domain.outcome import Outcome
from archibald_pgq.store import workers
from archibald_pgq.store.turn import Mark, Owner, Report, Settlement, Turn, Want
from tests.counts import until_counted
from tests.hand import Hand, hand
from tests.support import Look, looking

ENQUEUE = "SELECT archibald.enqueue(%s, %s)"
READ, WRITE, SYNC = "download-ddt-pdf", "submit-order", "sync-orders"
SHORT = {READ: 5}
OF_JOB = "SELECT state, agent_id IS NULL, wake FROM archibald.jobs"
OF_LANE = "SELECT state, epoch, turn_job_ids FROM archibald.agents"
BEAT_IS_OLD = "UPDATE archibald.workers SET beat = clock_timestamp() - interval '7 s' WHERE id = %s"


async def claim(worker: Hand, jobs: int = 10, ahead: int = 0) -> list[ClaimedJob]:
    # a look that was slow, because the machine was, is followed by a rest
    await worker.connection.execute("SELECT set_config('archibald.wake_rest', '', false)")
    return (await worker.report(want=Want(jobs, jobs, ahead=ahead, short=SHORT))).claimed


async def settle(worker: Hand, job: ClaimedJob, outcome: Outcome | None = None, *, began: bool = True) -> Turn:
    at = time.monotonic() if began else None
    item = Settlement(job.job_id, outcome or Outcome.completed("1"), at, at)
    return await worker.report(Report(Owner(job.lane, job.epoch), [item]))


async def one_claimed(worker: Hand, look: Look, kind: str = READ) -> ClaimedJob:
    await look.value(ENQUEUE, "alice", kind)
    (job,) = await claim(worker)
    return job


async def test_a_new_agents_short_job_is_not_written_before_it_ends(look: Look, database: str) -> None:
    async with hand(database) as worker:
        job = await one_claimed(worker, look)
        assert (job.marked, job.epoch) == (False, 1)
        assert await look.rows(OF_JOB) == [("queued", True, True)]
        assert await look.rows(OF_LANE) == [("running", 1, [job.job_id])]
        await settle(worker, job)
        assert await look.rows(OF_LANE) == [("idle", 1, [])]
        assert await look.rows("SELECT state, agent_id, epoch FROM archibald.job_history") == [
            ("completed", job.lane, 1)
        ]
        assert await look.value("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == 0


async def test_a_new_agents_long_job_is_marked_running_at_once(look: Look, database: str) -> None:
    async with hand(database) as worker:
        job = await one_claimed(worker, look, WRITE)
        assert job.marked
        assert await look.rows(OF_JOB) == [("running", False, False)]


async def test_new_agents_jobs_begin_in_the_order_of_priority_and_enqueue(look: Look, database: str) -> None:
    async with hand(database) as worker:
        ids = [await look.value(ENQUEUE, f"user-{n}", READ) for n in range(6)]
        await look.rows("UPDATE archibald.jobs SET priority = 1 WHERE id = %s", ids[4])
        assert [job.job_id for job in await claim(worker, jobs=2, ahead=1)] == [ids[4], ids[0], ids[1]]
        assert [job.job_id for job in await claim(worker, jobs=1)] == [ids[2]]


async def test_what_is_ready_goes_before_new_agents_of_the_same_priority(look: Look, database: str) -> None:
    async with hand(database) as worker:
        await look.value(ENQUEUE, "alice", READ)
        await worker.turn(look=True)  # alice is ready
        for user in ("bob", "carol"):
            await look.value(ENQUEUE, user, READ)
        assert [job.user_id for job in await claim(worker, jobs=1)] == ["alice"]
        assert sorted(job.user_id for job in await claim(worker)) == ["bob", "carol"]


async def test_an_agent_that_asks_with_several_jobs_gets_them_in_one_turn(look: Look, database: str) -> None:
    async with hand(database) as worker:
        ids = [await look.value(ENQUEUE, "alice", READ) for _ in range(3)]
        assert [job.job_id for job in await claim(worker)] == ids


async def test_two_workers_that_find_the_same_new_agents_run_each_job_once(look: Look, database: str) -> None:
    async with hand(database) as one, hand(database) as other:
        ids = [await look.value(ENQUEUE, f"user-{n}", READ) for n in range(60)]
        claimed: list[ClaimedJob] = []
        while len(claimed) < 60:
            turns = await asyncio.gather(claim(one, jobs=9), claim(other, jobs=9))
            claimed += [job for jobs in turns for job in jobs]
        assert sorted(job.job_id for job in claimed) == ids
        for worker in (one, other):
            assert await claim(worker) == []  # nor does a look at what has begun take it again


async def test_a_job_behind_one_that_has_begun_waits_for_it(look: Look, database: str) -> None:
    async with hand(database) as worker, hand(database) as other:
        first = await one_claimed(worker, look)
        second = await look.value(ENQUEUE, "alice", READ)
        assert await claim(other) == []
        await settle(worker, first)
        assert [job.job_id for job in await claim(other)] == [second]


async def test_a_new_agent_whose_lock_is_taken_is_requeued(look: Look, database: str) -> None:
    async with hand(database) as worker, looking(database) as operator:
        assert await operator.value("SELECT archibald.try_lock_agent('alice')")
        await look.value(ENQUEUE, "alice", READ)
        turn = await worker.report(want=Want(1, 1, short=SHORT))
        assert ([job.user_id for job in turn.requeued], turn.claimed) == (["alice"], [])
        assert await look.rows("SELECT requeue_count, wait_reason FROM archibald.jobs") == [(1, "requeue")]


@pytest.mark.parametrize("level", [None, psycopg.IsolationLevel.REPEATABLE_READ, psycopg.IsolationLevel.SERIALIZABLE])
async def test_a_job_that_has_begun_is_asked_to_stop_and_not_cancelled(
    look: Look, database: str, level: psycopg.IsolationLevel | None
) -> None:
    """Its row says nothing of that, and a transaction with an older snapshot does not see its lane."""
    async with hand(database) as worker, looking(database) as caller:
        job_id = await look.value(ENQUEUE, "alice", READ)
        await caller.connection.set_isolation_level(level)
        async with caller.connection.transaction(force_rollback=True):
            await caller.rows("SELECT FROM archibald.jobs")
            (job,) = await claim(worker)
            if level is None:
                assert await caller.value("SELECT archibald.cancel_job(%s)", job_id) == "requested"
            else:
                with pytest.raises(psycopg.errors.SerializationFailure):
                    await caller.value("SELECT archibald.cancel_job(%s)", job_id)
        assert await look.value("SELECT archibald.cancel_job(%s)", job_id) == "requested"
        await settle(worker, job, Outcome.retry("not now", 0.0))
        assert await look.rows("SELECT id, state FROM archibald.job_history") == [(job_id, "cancelled")]


async def test_a_cancelled_job_of_an_agent_without_a_lane_never_runs(look: Look, database: str) -> None:
    async with hand(database) as worker:
        job_id = await look.value(ENQUEUE, "alice", READ)
        assert await look.value("SELECT archibald.cancel_job(%s)", job_id) == "cancelled"
        assert await claim(worker) == []


async def test_a_job_that_goes_on_is_marked_running_with_its_agent(look: Look, database: str) -> None:
    async with hand(database) as worker:
        job = await one_claimed(worker, look)
        await worker.report(Report(Owner(job.lane, job.epoch), [], Mark(job.job_id, time.monotonic())))
        assert await look.rows("SELECT state, agent_id, wake FROM archibald.jobs") == [("running", job.lane, False)]


async def test_a_retry_waits_in_its_agents_lane(look: Look, database: str) -> None:
    async with hand(database) as worker:
        job = await one_claimed(worker, look)
        await settle(worker, job, Outcome.retry("no answer", 3600.0))
        assert await look.rows("SELECT agent_id, wake, due, attempt FROM archibald.jobs") == [
            (job.lane, False, False, 1)
        ]
        assert await look.value("SELECT state FROM archibald.agents") == "idle"
        assert await claim(worker) == []


@pytest.mark.parametrize("began", [True, False])
async def test_a_job_that_goes_back_runs_later(look: Look, database: str, *, began: bool) -> None:
    async with hand(database) as worker:
        job = await one_claimed(worker, look)
        await settle(worker, job, Outcome.gone_back(), began=began)
        (again,) = await claim(worker)
        assert (again.job_id, again.epoch) == (job.job_id, 2)


async def test_a_job_whose_worker_died_runs_again_and_the_late_outcome_is_refused(look: Look, database: str) -> None:
    async with hand(database) as silent, hand(database) as other:
        job = await one_claimed(silent, look)
        await look.rows(BEAT_IS_OLD, silent.worker_id)
        await workers.fence_stale(other.connection, other.worker_id)
        await workers.end_lost_backends(other.connection, silent=True)
        await workers.release_fenced(other.connection, 100, 3)
        (again,) = await claim(other)
        assert (again.job_id, again.epoch) == (job.job_id, 3)
        late = await other.report(Report(Owner(job.lane, job.epoch), [Settlement(job.job_id, Outcome.completed("1"))]))
        assert late.lost == [Owner(job.lane, job.epoch)]
        await settle(other, again)
        assert await look.rows("SELECT state, epoch FROM archibald.job_history") == [("completed", 3)]


async def test_one_new_agents_thousands_of_jobs_hide_nobodys(look: Look, database: str) -> None:
    async with hand(database) as worker:
        await look.rows(
            "INSERT INTO archibald.jobs (user_id, kind) SELECT 'hot', %s FROM generate_series(1, 2000)", READ
        )
        for n in range(5):
            await look.value(ENQUEUE, f"light-{n}", READ)
        assert sorted(job.user_id for job in await claim(worker) if job.user_id != "hot") == [
            f"light-{n}" for n in range(5)
        ]


FETCHED = """
SELECT sum(idx_tup_fetch + seq_tup_read)::bigint FROM pg_stat_user_tables WHERE schemaname = 'archibald' AND relname IN ('jobs', 'agents')
"""


async def test_a_turn_reads_no_more_new_jobs_than_it_may_begin(look: Look, database: str) -> None:
    async with hand(database) as worker:
        await look.rows(
            "INSERT INTO archibald.jobs (user_id, kind) SELECT 'user-' || n, %s FROM generate_series(1, 12000) AS n",
            READ,
        )
        sessions = (look.connection, worker.connection)
        await until_counted(look, sessions)
        before = await look.value(FETCHED)
        assert len(await claim(worker, jobs=10, ahead=20)) == 30
        await until_counted(look, sessions)
        assert await look.value(FETCHED) - before < 30 * 6


async def test_a_look_that_was_slow_does_not_keep_new_agents_from_being_seen_in_its_own_turn(
    look: Look, database: str
) -> None:
    """Such is each session's first one, for its plans."""
    async with hand(database) as worker:
        await look.rows(
            "INSERT INTO archibald.agents (user_id, lock_key) VALUES ('alice', archibald.lock_key('alice'))"
        )
        await look.value("SELECT archibald.enqueue('alice', %s, run_after => now() - interval '1 s')", SYNC)
        await look.rows("UPDATE archibald.jobs SET due = false")
        await look.rows(
            "CREATE FUNCTION public.take_long() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN PERFORM pg_sleep(0.011); RETURN NEW; END $$"
        )
        await look.rows(
            "CREATE TRIGGER slow BEFORE UPDATE OF due ON archibald.jobs FOR EACH ROW EXECUTE FUNCTION public.take_long()"
        )
        await look.value(ENQUEUE, "bob", READ)
        assert "bob" in [job.user_id for job in await claim(worker)]


async def test_behind_a_new_agents_job_that_is_held_none_of_that_agent_begins_and_others_do(
    look: Look, database: str
) -> None:
    """Also not one that alone is seen, because another worker is about to begin the one before it."""
    async with hand(database) as worker, looking(database) as caller:
        first, second = [await look.value(ENQUEUE, "alice", READ) for _ in range(2)]
        await look.value(ENQUEUE, "bob", READ)
        async with caller.connection.transaction():
            await caller.rows("SELECT FROM archibald.jobs WHERE id = %s FOR UPDATE", first)
            assert [job.user_id for job in await claim(worker, jobs=1)] == ["bob"]
            assert await claim(worker) == []
        await look.rows("UPDATE archibald.agents SET ready_at = now() WHERE state = 'ready'")
        claimed: list[ClaimedJob] = []
        while not claimed:
            claimed = await claim(worker)
        assert [job.job_id for job in claimed] == [first, second]


async def test_behind_a_job_that_waits_for_its_lane_and_is_held_none_begins(look: Look, database: str) -> None:
    """The lane was made after it, by an enqueue of several."""
    async with hand(database) as worker, looking(database) as caller:
        first = await look.value(ENQUEUE, "alice", READ)
        await look.value("SELECT archibald.expect_agents(ARRAY['alice'])")
        second = await look.value(ENQUEUE, "alice", READ)
        async with caller.connection.transaction():
            await caller.rows("SELECT FROM archibald.jobs WHERE id = %s FOR UPDATE", first)
            for _ in range(2):
                assert await claim(worker) == []
        await look.rows("UPDATE archibald.agents SET ready_at = now() WHERE state = 'ready'")
        assert [job.job_id for job in await claim(worker)] == [first, second]
