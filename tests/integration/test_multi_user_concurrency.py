"""Different users in parallel, one job at a time per user, requeued with a backoff while somebody else holds the user's lock.

The names and promises of the plan this implements (docs/plan-03-02.md); `pytest -k multi_user_concurrency` selects them.
"""

from __future__ import annotations

import logging
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from archibald_pgq import Archibald, JobContext
from archibald_pgq.domain.backoff import requeue_delay
from archibald_pgq.runtime.context import JobContext as RuntimeContext
from tests.hand import COMPLETE
from tests.support import Look, Stage, looking, working


async def test_different_users_process_in_parallel_without_blocking(app: Archibald) -> None:
    stage = Stage()
    stage.register(app, "submit-order")
    users = [f"user-{n}" for n in range(10)]
    for user in users:
        await app.enqueue("submit-order", user_id=user)
    async with working(app):
        await stage.until_started(10)  # all ten at once: none was let go yet
        assert sorted(stage.users()) == users
        assert stage.most_at_once == 10
        await stage.let_go()


async def test_ten_consumers_and_no_more_whatever_waits(app: Archibald, look: Look) -> None:
    stage = Stage()
    stage.register(app, "submit-order")
    jobs = [await app.enqueue("submit-order", user_id=f"user-{n}") for n in range(25)]
    async with working(app):
        await stage.until_started(10)
        assert await look.value("SELECT count(*) FROM archibald.jobs WHERE state = 'running'") == 10
        await stage.let_go()
        for job in jobs:
            await job.wait(timeout=20)
    assert stage.most_at_once == 10


async def test_worker_concurrency_sets_the_number_of_consumers(app: Archibald, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKER_CONCURRENCY", "3")
    stage = Stage()
    stage.register(app, "submit-order")
    jobs = [await app.enqueue("submit-order", user_id=f"user-{n}") for n in range(8)]
    async with working(app):
        await stage.until_started(3)
        await stage.let_go()
        for job in jobs:
            await job.wait(timeout=20)
    assert stage.most_at_once == 3


async def test_same_user_waits_in_its_lane(app: Archibald, look: Look) -> None:
    """The second job stays queued and untouched while the first runs: no requeue, no count, no consumer taken."""
    stage = Stage()
    stage.register(app, "submit-order", "edit-order")
    first = await app.enqueue("submit-order", user_id="alice", data={"n": 1})
    async with working(app):
        await stage.until_started(1)
        second = await app.enqueue("edit-order", user_id="alice", data={"n": 2})
        other = await app.enqueue("submit-order", user_id="bob", data={"n": 3})
        await stage.until_started(2)  # bob overtakes: alice's second job is not even tried
        assert stage.users() == ["alice", "bob"]
        assert await look.job(first.id, "state") == ("running",)
        assert await look.job(second.id, "state", "requeue_count", "wait_reason", "attempt") == ("queued", 0, None, 0)
        await stage.let_go()
        await second.wait(timeout=20)
        await other.wait(timeout=20)
    assert stage.most_per_agent == 1


async def test_same_user_is_re_enqueued_when_the_lock_is_not_acquired(
    app: Archibald, look: Look, caplog: pytest.LogCaptureFixture
) -> None:
    """And is not preemptable: the head is a write, held by another session."""
    caplog.set_level(logging.INFO)
    stage = Stage(hold=False)
    stage.register(app, "submit-order")
    assert await look.value("SELECT archibald.try_lock_agent('alice')")
    job = await app.enqueue("submit-order", user_id="alice", data={"order": 7}, idempotency_key="o-7")
    before = await look.job(job.id, "id", "idempotency_key", "priority", "created_at", "payload")
    async with working(app):
        for count, seconds in ((1, 2), (2, 4)):
            await look.until("SELECT requeue_count >= %s FROM archibald.all_jobs WHERE id = %s", count, job.id)
            state, reason, attempt, found, ahead = await look.job(
                job.id,
                "state",
                "wait_reason",
                "attempt",
                "requeue_count",
                "extract(epoch FROM run_after - clock_timestamp())",
            )
            assert (state, reason, attempt, found) == ("queued", "requeue", 0, count)
            assert ahead <= seconds
            assert await look.job(job.id, "id", "idempotency_key", "priority", "created_at", "payload") == before
            # time passes: the backoff is over
            await look.rows("UPDATE archibald.jobs SET run_after = clock_timestamp() WHERE id = %s", job.id)
            await look.rows("UPDATE archibald.agents SET ready_at = now(), retry_at = now() WHERE user_id = 'alice'")
        bob = await app.enqueue("submit-order", user_id="bob")
        await bob.wait(timeout=20)  # the others are not delayed
        assert stage.users() == ["bob"]
        assert await look.value("SELECT archibald.unlock_agent('alice')")
        assert await job.wait(timeout=20) == {"ran": {"order": 7}}
    lines = [record.getMessage() for record in caplog.records if "Re-enqueueing" in record.getMessage()]
    assert lines[0] == "Re-enqueueing submit-order for alice (attempt 1, delay 2000ms)"
    assert lines[1] == "Re-enqueueing submit-order for alice (attempt 2, delay 4000ms)"
    assert all(record.levelno == logging.INFO for record in caplog.records if "Re-enqueueing" in record.getMessage())


async def test_requeue_counts_go_up_by_one_and_the_pauses_are_2_4_8_16_30_30(app: Archibald, look: Look) -> None:
    """Read in database time from the row itself: run_after is set from the transaction's now()."""
    stage = Stage(hold=False)
    stage.register(app, "submit-order")
    assert await look.value("SELECT archibald.try_lock_agent('alice')")
    await look.rows("CREATE TABLE seen (requeue_count int, pause interval)")
    await look.rows(
        "CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql SET search_path = public AS $$ BEGIN "
        "INSERT INTO seen VALUES (NEW.requeue_count, NEW.run_after - now()); RETURN NEW; END $$"
    )
    await look.rows(
        "CREATE TRIGGER note AFTER UPDATE ON archibald.jobs FOR EACH ROW "
        "WHEN (NEW.requeue_count > OLD.requeue_count) EXECUTE FUNCTION note()"
    )
    job = await app.enqueue("submit-order", user_id="alice")
    async with working(app):
        for count in range(1, 7):
            await look.until("SELECT requeue_count >= %s FROM archibald.all_jobs WHERE id = %s", count, job.id)
            await look.rows("UPDATE archibald.agents SET ready_at = now(), retry_at = now() WHERE user_id = 'alice'")
        await look.rows("SELECT archibald.unlock_agent('alice')")
        await job.wait(timeout=20)
    pauses = await look.rows("SELECT requeue_count, extract(epoch FROM pause)::int FROM seen ORDER BY 1 LIMIT 6")
    assert pauses == [(1, 2), (2, 4), (3, 8), (4, 16), (5, 30), (6, 30)]
    assert (await look.job(job.id, "requeue_count"))[0] >= 6  # never reset
    assert await look.job(job.id, "attempt") == (1,)


@pytest.mark.parametrize(
    ("count", "milliseconds"),
    [
        (0, 2000),
        (1, 4000),
        (2, 8000),
        (3, 16000),
        (4, 30000),
        (5, 30000),
        (10, 30000),
        (100, 30000),
        (2**31 - 2, 30000),
    ],
)
async def test_exponential_backoff_delay_increases_with_requeue_count(
    look: Look, count: int, milliseconds: int
) -> None:
    assert round(requeue_delay(count) * 1000) == milliseconds
    assert (
        await look.value("SELECT (extract(epoch FROM archibald.requeue_delay(%s)) * 1000)::int", count) == milliseconds
    )


@given(st.integers(0, 2**31 - 2))
def test_exponential_backoff_delay_never_shrinks_and_is_never_over_30_s(count: int) -> None:
    assert 2 <= requeue_delay(count) <= requeue_delay(count + 1) <= 30


async def test_requeue_count_at_its_limit_stays_there(app: Archibald, look: Look) -> None:
    stage = Stage(hold=False)
    stage.register(app, "submit-order")
    assert await look.value("SELECT archibald.try_lock_agent('alice')")
    job = await app.enqueue("submit-order", user_id="alice")
    await look.rows("UPDATE archibald.jobs SET requeue_count = 2147483647")
    async with working(app):
        await look.until("SELECT wait_reason = 'requeue' FROM archibald.jobs WHERE id = %s", job.id)
        assert await look.job(job.id, "requeue_count") == (2147483647,)
        await look.rows("SELECT archibald.unlock_agent('alice')")
        await job.wait(timeout=20)


async def test_handler_receives_data_without_requeue_count(app: Archibald, look: Look) -> None:
    seen: list[tuple[dict[str, object], JobContext]] = []

    @app.operation("submit-order")
    async def handle(ctx: JobContext, data: dict[str, object]) -> None:
        seen.append((data, ctx))

    data = {"order": 7, "attempt": "own", "requeueCount": "the caller's own key"}
    job = await app.enqueue("submit-order", user_id="alice", data=data)
    await look.rows("UPDATE archibald.jobs SET requeue_count = 5 WHERE id = %s", job.id)
    async with working(app):
        await job.wait(timeout=20)
    received, context = seen[0]
    assert received == data
    assert await look.job(job.id, "requeue_count") == (5,)
    assert not [name for name in dir(context) if re.search("requeue", name, re.IGNORECASE)]
    assert not [value for value in vars(context).values() if value == 5]
    assert isinstance(context, RuntimeContext)


async def test_an_unlock_from_outside_lets_the_agent_go_on_at_once(app: Archibald, look: Look) -> None:
    """Not at the end of its backoff: at the 5th requeue that would be 30 s away."""
    stage = Stage(hold=False)
    stage.register(app, "submit-order")
    assert await look.value("SELECT archibald.try_lock_agent('alice')")
    job = await app.enqueue("submit-order", user_id="alice")
    await look.rows("UPDATE archibald.jobs SET requeue_count = 20")
    async with working(app):
        await look.until("SELECT requeue_count = 21 FROM archibald.jobs WHERE id = %s", job.id)
        delayed = await app.enqueue("submit-order", user_id="alice", delay=3600)
        assert await look.value("SELECT run_after > now() + interval '25 s' FROM archibald.jobs WHERE id = %s", job.id)
        await look.rows("SELECT archibald.unlock_agent('alice')")
        await job.wait(timeout=20)
        # only rows that wait because of a requeue
        assert await look.job(delayed.id, "state", "wait_reason", "run_after > now() + interval '3500 s'") == (
            "queued",
            "delay",
            True,
        )
    lasted = await look.value(
        "SELECT extract(epoch FROM finished_at - created_at) FROM archibald.all_jobs WHERE id = %s", job.id
    )
    assert lasted < 20


@pytest.mark.parametrize("how", ["raw unlock", "session ended"])
async def test_a_lock_that_goes_away_in_any_other_way_is_noticed(
    app: Archibald, look: Look, database: str, how: str
) -> None:
    stage = Stage(hold=False)
    stage.register(app, "submit-order")
    async with looking(database) as other:
        assert await other.value("SELECT pg_try_advisory_lock(archibald.lock_key('alice'))")
        job = await app.enqueue("submit-order", user_id="alice")
        await look.rows("UPDATE archibald.jobs SET requeue_count = 20")
        async with working(app):
            await look.until("SELECT requeue_count = 21 FROM archibald.jobs WHERE id = %s", job.id)
            if how == "raw unlock":
                await other.rows("SELECT pg_advisory_unlock(archibald.lock_key('alice'))")
            else:
                await other.connection.close()
            await job.wait(timeout=20)
    assert await look.job(job.id, "requeue_count", "attempt") == (21, 1)


async def test_the_lock_is_held_while_a_job_runs_and_free_after_it(app: Archibald, look: Look) -> None:
    stage = Stage()
    stage.register(app, "submit-order")
    job = await app.enqueue("submit-order", user_id="alice")
    async with working(app):
        await stage.until_started(1)
        assert await look.value("SELECT archibald.try_lock_agent('alice')") is False
        assert await look.value("SELECT pg_try_advisory_lock(archibald.lock_key('alice'))") is False
        await stage.let_go()
        await job.wait(timeout=20)
        assert await look.value("SELECT archibald.try_lock_agent('alice')") is True
        assert await look.value("SELECT archibald.unlock_agent('alice')") is True


async def test_locking_works_for_an_agent_not_known_yet_and_unlocking_names_its_owner(
    look: Look, database: str
) -> None:
    async with looking(database) as other:
        assert await look.value("SELECT archibald.try_lock_agent('nobody yet')") is True
        assert await other.value("SELECT archibald.try_lock_agent('nobody yet')") is False
        assert await other.value("SELECT archibald.unlock_agent('nobody yet')") is False  # not its owner
        assert await other.value("SELECT archibald.try_lock_agent('nobody yet')") is False
        assert await look.value("SELECT archibald.unlock_agent('nobody yet')") is True
        assert await look.value("SELECT archibald.unlock_agent('nobody yet')") is False
        assert await look.value("SELECT count(*) FROM archibald.agents") == 0


async def test_a_release_by_anyone_but_the_owner_does_nothing(app: Archibald, look: Look) -> None:
    """The fence: worker, lane, epoch and job must all be right."""
    stage = Stage()
    stage.register(app, "submit-order")
    job = await app.enqueue("submit-order", user_id="alice")
    async with working(app):
        await stage.until_started(1)
        ((lane, epoch, worker),) = await look.rows("SELECT id, epoch, worker_id FROM archibald.agents")
        for who, fates in (
            ((worker + 1, lane, epoch, lane, job.id), [("lost",)]),
            ((worker, lane, epoch - 1, lane, job.id), [("lost",)]),
            ((worker, lane, epoch, lane, job.id + 1), []),  # the lane is its own, the job is not of its turn
        ):
            assert await look.rows(COMPLETE, *who) == fates
        assert await look.job(job.id, "state") == ("running",)
        assert await look.value("SELECT state FROM archibald.agents") == "running"
        assert await look.value("SELECT archibald.unlock_agent('alice')") is False
        await stage.let_go()
        assert await job.wait(timeout=20) == {"ran": {}}
