"""For whom a caller's open transaction is in the way: other callers with the same key or the same sync, and nobody else.

What docs/sql.md says of it ("What an open transaction holds up").
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from archibald_pgq import Archibald, NewJob
from tests.support import Look, Stage, looking, working

ENQUEUE = "SELECT archibald.enqueue(%s, %s, '{}', %s)"

WAITS = "SELECT cardinality(pg_blocking_pids(%s)) > 0"

LOCKS = (
    "SELECT (SELECT count(*) FROM pg_locks)::float / (current_setting('max_locks_per_transaction')::int "
    "* (current_setting('max_connections')::int + current_setting('max_prepared_transactions')::int))"
)


@pytest.mark.parametrize("end", ["COMMIT", "ROLLBACK"])
@pytest.mark.parametrize(
    ("what", "first", "second"),
    [
        ("the same key", ("alice", "submit-order", "k"), ("alice", "submit-order", "k")),
        ("the same sync", ("alice", "sync-orders", None), ("alice", "sync-orders", None)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_a_second_enqueue_of_the_same_thing_waits_for_the_first_ones_commit_and_is_then_one_job_with_it(  # noqa: PLR0917  # pytest calls it by keyword
    look: Look, database: str, what: str, first: tuple[Any, ...], second: tuple[Any, ...], end: str
) -> None:
    async with looking(database) as one, looking(database) as other:
        await one.rows("BEGIN")
        job = await one.value(ENQUEUE, *first)
        waiting = asyncio.create_task(other.value(ENQUEUE, *second))
        await look.until(WAITS, other.connection.info.backend_pid)
        assert not waiting.done()
        await one.rows(end)
        answer = await waiting
    assert (answer == job) == (end == "COMMIT")
    assert await look.rows("SELECT id FROM archibald.all_jobs") == [(answer,)]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (("new", "submit-order", None), ("new", "submit-order", None)),
        (("new", "submit-order", "a"), ("new", "submit-order", "b")),
        (("new", "sync-orders", None), ("new", "sync-customers", None)),
        (("new", "sync-orders", None), ("new", "submit-order", None)),
    ],
    ids=["no key", "another key", "another sync", "a sync and a write"],
)
@pytest.mark.parametrize("known", [False, True], ids=["unknown agent", "known agent"])
async def test_beside_an_enqueue_that_is_left_open_other_jobs_of_its_agent_are_enqueued_and_run(  # noqa: PLR0917  # pytest calls it by keyword
    app: Archibald, look: Look, database: str, first: tuple[Any, ...], second: tuple[Any, ...], known: bool
) -> None:
    """Also where the agent has never had a job: the enqueue creates no agent row, a worker does."""
    stage = Stage(hold=False)
    stage.register(app, "submit-order", "sync-orders", "sync-customers", "edit-order")
    async with working(app), looking(database) as caller:
        if known:
            await look.until_state((await app.enqueue("edit-order", user_id="new")).id, "completed")
        await caller.rows("BEGIN")
        open_job = await caller.value(ENQUEUE, *first)
        job = await look.value(ENQUEUE, *second)
        await look.until_state(job, "completed")
        (again,) = await app.enqueue_many([NewJob("edit-order", user_id="new")])
        await look.until_state(again.id, "completed")
        await caller.rows("COMMIT")
        await look.until_state(open_job, "completed")


async def test_of_two_callers_that_take_the_same_new_keys_in_opposite_order_one_is_told_in_a_sentence(
    app: Archibald, look: Look, database: str
) -> None:
    """The database ends one of them; the other goes on."""

    async def enqueue(*keys: str, met: asyncio.Barrier) -> None:
        async with looking(database) as caller, caller.connection.transaction():
            await caller.value(ENQUEUE, "alice", "submit-order", keys[0])
            await met.wait()
            await caller.value(ENQUEUE, "alice", "submit-order", keys[1])

    met = asyncio.Barrier(2)
    ended = await asyncio.gather(enqueue("a", "b", met=met), enqueue("b", "a", met=met), return_exceptions=True)
    (error,) = [result for result in ended if result is not None]
    assert str(error).splitlines()[0] == "deadlock detected"
    assert await look.value("SELECT count(*) FROM archibald.all_jobs") == 2


async def test_two_calls_of_enqueue_many_with_the_same_keys_in_opposite_order_do_not_deadlock(
    app: Archibald, look: Look
) -> None:
    jobs = [NewJob("submit-order", user_id="alice", idempotency_key=f"k-{n}") for n in range(200)]
    one, other = await asyncio.gather(app.enqueue_many(jobs), app.enqueue_many(jobs[::-1]))
    assert {job.id for job in one} == {job.id for job in other}
    assert await look.value("SELECT count(*) FROM archibald.all_jobs") == 200


@pytest.mark.parametrize("agents", [5000, pytest.param(100_000, marks=pytest.mark.long)])
async def test_one_transaction_for_very_many_agents_leaves_the_lock_table_more_than_half_free(
    look: Look, database: str, agents: int
) -> None:
    """Enqueue, cancel and pause: row locks lie in the rows, and of the buckets there are 256."""
    async with looking(database) as caller:
        await caller.rows(
            "INSERT INTO archibald.jobs (user_id, kind) SELECT 'known ' || n, 'submit-order' FROM generate_series(1, %s) n",
            agents // 20,
        )
        await caller.rows("BEGIN")
        for statement in (
            "INSERT INTO archibald.jobs (user_id, kind, idempotency_key) "
            "SELECT 'u' || n, CASE WHEN n % 2 = 0 THEN 'submit-order' ELSE 'sync-orders' END, CASE WHEN n % 4 = 0 THEN 'k' END "
            f"FROM generate_series(1, {agents}) n",
            "SELECT archibald.pause_agent(user_id) FROM archibald.jobs WHERE user_id LIKE 'known %'",
            "SELECT archibald.cancel_job(id) FROM archibald.jobs WHERE user_id LIKE 'known %'",
        ):
            await caller.rows(statement)
            assert await look.value(LOCKS) < 0.5
        await caller.rows("ROLLBACK")


# -- our advisory locks in a caller's hands

NAMESPACE = 1095910216


@pytest.mark.parametrize(
    "locks",
    [
        f"SELECT pg_advisory_lock({NAMESPACE}, n) FROM generate_series(0, 255) n",
        f"SELECT pg_advisory_lock_shared({NAMESPACE}, n) FROM generate_series(0, 255) n",
        f"SELECT pg_advisory_lock({NAMESPACE}, 1001)",
        f"SELECT pg_advisory_lock_shared({NAMESPACE}, 1001)",
    ],
    ids=["buckets", "buckets shared", "adoption", "adoption shared"],
)
async def test_a_caller_who_holds_advisory_locks_of_ours_stops_no_worker_and_loses_no_job(
    app: Archibald, look: Look, database: str, locks: str
) -> None:
    """A new agent, though, is taken in only when nobody else holds the lock of adoption."""
    stage = Stage(hold=False)
    stage.register(app, "submit-order")
    async with looking(database) as caller, working(app):
        for job in await app.enqueue_many([NewJob("submit-order", user_id=f"known-{n}") for n in range(20)]):
            await look.until_state(job.id, "completed")
        before = await app.enqueue_many([NewJob("submit-order", user_id=f"known-{n}") for n in range(20)])
        await caller.rows(locks)
        for job in before:
            await look.until_state(job.id, "completed")
        fresh = asyncio.create_task(app.enqueue("submit-order", user_id="fresh"))
        await caller.rows("SELECT pg_advisory_unlock_all()")
        await look.until_state((await fresh).id, "completed")


@pytest.mark.parametrize("kind", ["submit-order", "sync-orders"])
async def test_beside_a_pause_of_a_new_agent_that_is_left_open_other_agents_jobs_run(
    app: Archibald, look: Look, database: str, kind: str
) -> None:
    """A worker that made that lane too would wait for the caller, in each of its turns."""
    stage = Stage(hold=False)
    stage.register(app, "submit-order", "sync-orders")
    async with looking(database) as caller:
        paused = await app.enqueue(kind, user_id="new")
        async with caller.connection.transaction():
            assert await caller.value("SELECT archibald.pause_agent('new')")
            async with working(app):
                for job in [await app.enqueue(kind, user_id=f"other-{n}") for n in range(3)]:
                    await look.until_state(job.id, "completed")
                await app.enqueue_many([NewJob("submit-order", user_id="new") for _ in range(2)])
        async with working(app):
            assert await look.job(paused.id, "state") == ("queued",)
            assert await app.resume_agent("new")
            await look.until_state(paused.id, "completed")
