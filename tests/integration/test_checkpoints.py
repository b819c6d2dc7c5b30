"""`ctx.once`: an effect outside Postgres happens once, whatever becomes of the run that has it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from uuid import uuid4

import pytest

from archibald_pgq import Archibald, InvalidJobError, JobContext, JobStateError
from archibald_pgq.domain.job import ClaimedJob
from archibald_pgq.domain.step import StepState
from archibald_pgq.errors import DatabaseError
from archibald_pgq.runtime.checkpoints import Checkpoints
from archibald_pgq.store import steps, workers
from archibald_pgq.store.client import Client
from archibald_pgq.store.request import Request
from tests.hand import Hand, hand
from tests.support import PATIENCE, Look, looking, working

ALL = "SELECT user_id, kind, step, key, state, result FROM archibald.checkpoints ORDER BY id"
NEXT_OWNER = "UPDATE archibald.agents SET epoch = epoch + 1"

Act = Callable[[], Awaitable[Any]]


@pytest.fixture
async def worker(database: str) -> AsyncIterator[Hand]:
    async with hand(database) as made:
        yield made


@pytest.fixture
async def client(database: str) -> AsyncIterator[Client]:
    made = Client(database)
    yield made
    await made.close()


class World:
    """What lies outside Postgres: the orders that were placed, and handlers that place them in a step."""

    def __init__(self, app: Archibald, **policy: Any) -> None:
        self.app, self.orders, self.asked, self.runs = app, 0, 0, 0
        self.errors: list[Exception] = []
        """What `act` raises after it has had its effect, one run after the other."""
        self.lost: list[Exception] = []
        """What it raises before."""
        app.operation("order", job_class="write", idempotent=True, **policy)(self.handle)

    async def place(self) -> dict[str, int]:
        if self.lost:
            raise self.lost.pop()
        self.orders += 1
        if self.errors:
            raise self.errors.pop()
        return {"order": self.orders}

    async def look(self) -> dict[str, int] | None:
        self.asked += 1
        return {"order": self.orders} if self.orders else None

    async def handle(self, ctx: JobContext, data: dict[str, Any]) -> Any:
        self.runs += 1
        result = await ctx.once(
            "place", self.place, key=data.get("key"), verify=self.look if data.get("verify") else None
        )
        if data.get("then") == "fail" and self.runs == 1:
            raise LookupError("after the step")
        if data.get("then") == "forget":
            await ctx.forget(data["key"])
        return result


# -- a later run


async def test_a_step_that_is_done_is_not_done_again_by_the_next_run_which_gets_its_result(app: Archibald) -> None:
    world = World(app, max_attempts=2)
    async with working(app):
        job = await app.enqueue("order", user_id="alice", data={"then": "fail"})
        assert await job.wait(PATIENCE) == {"order": 1}
    assert (world.runs, world.orders) == (2, 1)


async def test_the_first_run_gets_the_result_as_a_later_one_would(app: Archibald) -> None:
    found: list[Any] = []

    @app.operation("order", max_attempts=2)
    async def handle(ctx: JobContext, data: dict[str, Any]) -> None:
        async def act() -> Any:
            return {1: ("a", "b")}

        found.append(await ctx.once("place", act))
        if ctx.attempt == 1:
            raise LookupError

    async with working(app):
        await (await app.enqueue("order", user_id="alice")).wait(PATIENCE)
    assert found == [{"1": ["a", "b"]}] * 2


@pytest.mark.parametrize("happened", [True, False])
async def test_a_step_whose_end_is_unknown_is_looked_up_before_anything_is_done_again(
    app: Archibald, happened: bool
) -> None:
    world = World(app, max_attempts=2)
    (world.errors if happened else world.lost).append(TimeoutError("no answer"))
    async with working(app):
        job = await app.enqueue("order", user_id="alice", data={"verify": True})
        assert await job.wait(PATIENCE) == {"order": 1}
    assert (world.runs, world.asked, world.orders) == (2, 1, 1)


async def test_a_step_whose_end_is_unknown_and_that_nobody_can_look_up_is_for_a_person(
    app: Archibald, look: Look
) -> None:
    world = World(app, max_attempts=2)
    world.errors.append(TimeoutError("no answer"))
    async with working(app):
        job = await app.enqueue("order", user_id="alice")
        await look.until_state(job.id, "needs_review")
        assert (world.runs, world.orders) == (2, 1)
        assert "the step 'place' was begun" in (await look.job(job.id, "error"))[0]
        # the person says that it did not happen
        assert (await app.retry(job.id)).id == job.id
        assert await job.wait(PATIENCE) == {"order": 2}
    assert world.runs == 3


async def test_an_error_of_the_look_leaves_the_step_unknown(app: Archibald) -> None:
    world = World(app, max_attempts=3)
    world.errors.append(TimeoutError("no answer"))
    found = world.look

    async def broken() -> Any:
        world.look = found  # type: ignore[method-assign]
        raise ConnectionError("nor now")

    world.look = broken  # type: ignore[method-assign]
    async with working(app):
        job = await app.enqueue("order", user_id="alice", data={"verify": True})
        assert await job.wait(PATIENCE) == {"order": 1}
    assert (world.runs, world.orders) == (3, 1)


async def test_nobody_looks_before_the_effect_must_have_arrived(app: Archibald, look: Look) -> None:
    runs = 0

    @app.operation("order", max_attempts=2)
    async def handle(ctx: JobContext, data: dict[str, Any]) -> Any:
        nonlocal runs
        runs += 1

        async def act() -> None:
            raise TimeoutError

        async def verify() -> Any:
            return await look.value(
                "SELECT extract(epoch FROM clock_timestamp() - began_at)::float8 FROM archibald.checkpoints"
            )

        return await ctx.once("place", act, verify=verify, settle=1.0)

    async with working(app):
        job = await app.enqueue("order", user_id="alice")
        assert await job.wait(PATIENCE) >= 1.0
    assert runs == 2


# -- for all jobs of an entity


async def test_another_job_for_the_same_key_finds_the_step_done_and_other_keys_kinds_and_users_do_not(
    app: Archibald, look: Look
) -> None:
    world = World(app)
    app.operation("other", job_class="write")(world.handle)
    async with working(app):

        async def order(user: str, kind: str, key: str | None) -> int:
            job = await app.enqueue(kind, user_id=user, data={"key": key})
            return int((await job.wait(PATIENCE))["order"])

        assert [await order("alice", "order", "o-7") for _ in range(2)] == [1, 1]
        assert await order("alice", "order", "o-8") == 2
        assert await order("bob", "order", "o-7") == 3
        assert await order("alice", "other", "o-7") == 4
        assert [await order("alice", "order", None) for _ in range(2)] == [5, 6]
    assert await look.value("SELECT count(*) FROM archibald.checkpoints WHERE key IS NOT NULL") == 4


async def test_what_is_forgotten_is_done_anew(app: Archibald, look: Look) -> None:
    world = World(app)
    async with working(app):
        for number in (1, 2):
            job = await app.enqueue("order", user_id="alice", data={"key": "o-7", "then": "forget"})
            assert await job.wait(PATIENCE) == {"order": number}
    assert world.orders == 2
    assert await look.rows(ALL) == []


# -- a person's retry, which is another job


async def test_who_retries_a_failed_job_finds_its_steps_done(app: Archibald) -> None:
    world = World(app)
    async with working(app):
        job = await app.enqueue("order", user_id="alice", data={"then": "fail"})
        with pytest.raises(Exception, match="after the step"):
            await job.wait(PATIENCE)
        again = await app.retry(job.id)
        assert again.id != job.id
        assert await again.wait(PATIENCE) == {"order": 1}
    assert (world.runs, world.orders) == (2, 1)


@pytest.mark.parametrize(("verify", "key"), [(True, None), (True, "o-7"), (False, None), (False, "o-7")])
async def test_who_retries_a_job_that_failed_in_a_step_has_it_looked_up_where_that_can_be_done(
    app: Archibald, verify: bool, key: str | None
) -> None:
    world = World(app)
    world.errors.append(TimeoutError("no answer"))
    async with working(app):
        job = await app.enqueue("order", user_id="alice", data={"verify": verify, "key": key})
        with pytest.raises(Exception, match="no answer"):
            await job.wait(PATIENCE)
        again = await app.retry(job.id)
        # else it is the person who says that it did not happen
        assert await again.wait(PATIENCE) == ({"order": 1} if verify else {"order": 2})
    assert world.asked == int(verify)


# -- who may write


async def claimed(app: Archibald, worker: Hand) -> ClaimedJob:
    await app.enqueue("submit-order", user_id="alice")
    return await worker.claim_one()


async def test_who_lost_the_job_can_neither_begin_nor_finish_nor_forget_a_step(
    app: Archibald, worker: Hand, client: Client, look: Look
) -> None:
    job = await claimed(app, worker)
    begun = await client.ask(
        steps.begin(job, worker.worker_id, "place", "o-7", uuid4(), verifiable=False, absent=False)
    )
    assert begun.state is StepState.BEGUN
    before = await look.rows(ALL)
    await look.rows(NEXT_OWNER)
    late: list[Request[Any]] = [
        steps.begin(job, worker.worker_id, "other", None, uuid4(), verifiable=False, absent=False),
        steps.begin(job, worker.worker_id, "place", "o-7", uuid4(), verifiable=False, absent=True),
        steps.finish(job, worker.worker_id, "place", "o-7", "1"),
        steps.forget(job, worker.worker_id, "o-7"),
    ]
    for request in late:
        with pytest.raises(JobStateError, match="no longer this worker's"):
            await client.ask(request)
    assert await look.rows(ALL) == before


async def test_no_owner_changes_between_the_look_and_the_write_of_a_step(
    app: Archibald, worker: Hand, client: Client, look: Look, database: str
) -> None:
    job = await claimed(app, worker)
    async with looking(database) as other:
        await other.rows("BEGIN")
        await other.rows(NEXT_OWNER)
        await _write_waits(job, worker, client, look, other)
    assert await look.rows(ALL) == []


async def _write_waits(job: ClaimedJob, worker: Hand, client: Client, look: Look, other: Look) -> None:
    writing = asyncio.create_task(
        client.ask(steps.begin(job, worker.worker_id, "place", None, uuid4(), verifiable=False, absent=False))
    )
    await look.until(
        "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query ~ 'begin_step')"
    )
    await other.rows("COMMIT")
    with pytest.raises(JobStateError):
        await writing


# -- answers that are lost


@pytest.mark.parametrize("lost", [1, 2])
async def test_a_lost_answer_of_the_database_makes_no_step_unknown(
    app: Archibald, worker: Hand, client: Client, look: Look, lost: int
) -> None:
    job = await claimed(app, worker)
    acted = asked = 0

    async def ask(request: Request[Any]) -> Any:
        nonlocal asked
        asked += 1
        answer = await client.ask(request)
        if asked == lost:
            raise DatabaseError("the connection was lost")
        return answer

    async def act() -> int:
        nonlocal acted
        acted += 1
        return 7

    assert await Checkpoints(job, worker.worker_id, ask).once("place", act, None, None, 0) == 7
    assert (acted, asked) == (1, 3)
    assert await look.rows(ALL) == [("alice", "submit-order", "place", None, "done", 7)]


async def test_a_job_waits_with_its_step_until_the_database_is_back(app: Archibald, look: Look) -> None:
    orders = 0

    @app.operation("order")
    async def handle(ctx: JobContext, data: dict[str, Any]) -> Any:
        async def act() -> int:
            nonlocal orders
            orders += 1
            await look.rows(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            return orders

        return await ctx.once("place", act)

    async with working(app):
        job = await app.enqueue("order", user_id="alice")
        await look.until_state(job.id, "completed")
    assert orders == 1
    assert await look.rows(ALL) == [("alice", "order", "place", None, "done", 1)]


# -- what a handler may do wrong


async def test_a_step_whose_result_is_no_json_counts_as_done_and_the_job_says_why_it_failed(
    app: Archibald, look: Look
) -> None:
    acted = 0

    @app.operation("order")
    async def handle(ctx: JobContext, data: dict[str, Any]) -> Any:
        async def act() -> Any:
            nonlocal acted
            acted += 1
            return {1, 2}

        return await ctx.once("place", act)

    async with working(app):
        job = await app.enqueue("order", user_id="alice")
        with pytest.raises(Exception, match="the result of the step 'place' cannot be stored as JSON"):
            await job.wait(PATIENCE)
        assert await (await app.retry(job.id)).wait(PATIENCE) is None
    assert acted == 1
    assert {row[4:] for row in await look.rows(ALL)} == {("done", None)}


async def test_a_step_that_is_under_way_is_not_begun_again_by_the_same_run(app: Archibald) -> None:
    acted = 0

    @app.operation("order")
    async def handle(ctx: JobContext, data: dict[str, Any]) -> Any:
        async def act() -> Any:
            nonlocal acted
            acted += 1
            with pytest.raises(InvalidJobError, match="is under way in this job"):
                await ctx.once("place", act)
            return "placed"

        return await ctx.once("place", act)

    async with working(app):
        assert await (await app.enqueue("order", user_id="alice")).wait(PATIENCE) == "placed"
    assert acted == 1


@pytest.mark.parametrize("name", ["", "x" * 201, "a\x00b", None, 7])
async def test_a_step_needs_a_name(worker: Hand, app: Archibald, client: Client, name: Any) -> None:
    job = await claimed(app, worker)
    checkpoints = Checkpoints(job, worker.worker_id, client.ask)

    async def act() -> None:
        raise AssertionError

    with pytest.raises(InvalidJobError, match="a step is a text of 1 to 200 characters"):
        await checkpoints.once(name, act, None, None, 0)
    if name is not None:
        with pytest.raises(InvalidJobError, match="a key is a text of 1 to 200 characters"):
            await checkpoints.once("place", act, name, None, 0)
    with pytest.raises(InvalidJobError, match="a key is"):
        await checkpoints.forget(name)


# -- retention


async def test_steps_are_dropped_after_the_retention_but_not_those_of_a_live_job(
    app: Archibald, worker: Hand, client: Client, look: Look
) -> None:
    job = await claimed(app, worker)
    await client.ask(steps.begin(job, worker.worker_id, "place", "live", uuid4(), verifiable=True, absent=False))
    await look.rows(
        "INSERT INTO archibald.checkpoints (user_id, kind, job_id, step, key, verifiable, epoch, token, began_at) "
        "SELECT 'alice', 'submit-order', -n, 'place', CASE n WHEN 1 THEN 'over' END, true, 1, gen_random_uuid(), "
        "now() - make_interval(days => CASE WHEN n < 602 THEN 31 ELSE 29 END) FROM generate_series(1, 602) AS n"
    )
    await look.rows("UPDATE archibald.checkpoints SET began_at = now() - interval '31 days' WHERE key = 'live'")
    assert [await workers.drop_checkpoints(worker.connection, 30) for _ in range(3)] == [500, 101, 0]
    assert await look.rows("SELECT job_id FROM archibald.checkpoints ORDER BY job_id") == [(-602,), (job.job_id,)]
