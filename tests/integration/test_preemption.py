"""What a person asked for stops a running sync of the same agent, and nothing else does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from archibald_pgq import Archibald, InvalidJobError, JobContext
from archibald_pgq.domain.outcome import Outcome
from archibald_pgq.store import workers
from tests.hand import Hand, hand
from tests.support import PATIENCE, Look, Stage, looking, working

SHORT_GRACE = "0.2"


@pytest.fixture
async def worker(database: str) -> AsyncIterator[Hand]:
    async with hand(database) as made:
        yield made


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A grace that no test waits for in vain."""
    monkeypatch.setenv("ARCHIBALD_PREEMPT_GRACE", SHORT_GRACE)


async def asked(hand: Hand) -> list[int]:
    """The syncs of this worker that are asked to make room, after a look at everything."""
    await hand.turn(look=True)
    return [request.job_id for request in await workers.preempt_requests(hand.connection, hand.worker_id)]


async def made_room(look: Look, job_id: int) -> tuple[Any, ...]:
    return await look.job(job_id, "state", "attempt", "preemptions", "preempted_by", "preempt_requested_at")


# -- who is asked, and why


async def test_a_running_sync_is_asked_to_make_room_for_a_write_of_its_agent(
    app: Archibald, worker: Hand, look: Look
) -> None:
    sync = await app.enqueue("sync-orders", user_id="alice")
    running = await worker.claim_one()
    assert await asked(worker) == []
    write = await app.enqueue("submit-order", user_id="alice")
    assert await asked(worker) == [sync.id]
    await worker.settle(running, Outcome.preempted())
    assert await made_room(look, sync.id) == ("queued", 0, 1, write.id, None)
    first = await worker.claim_one()
    assert first.job_id == write.id
    await worker.settle(first)
    assert (await worker.claim_one()).job_id == sync.id


@pytest.mark.parametrize(
    ("runs", "waits"),
    [
        ("submit-order", "submit-order"),
        ("download-ddt-pdf", "submit-order"),
        ("sync-orders", "download-ddt-pdf"),
        ("sync-orders", "sync-customers"),
        ("submit-order", "download-ddt-pdf"),
    ],
)
async def test_nothing_but_a_write_preempts_and_nothing_but_a_sync_is_preempted(
    app: Archibald, worker: Hand, look: Look, runs: str, waits: str
) -> None:
    await look.rows("UPDATE archibald.operations SET priority = 50 WHERE kind = %s", runs)
    await app.enqueue(runs, user_id="alice")
    await worker.claim_one()
    await app.enqueue(waits, user_id="alice")
    assert await asked(worker) == []


async def test_a_write_that_is_enqueued_by_one_statement_asks_for_a_look_at_once(
    app: Archibald, worker: Hand, look: Look, database: str
) -> None:
    await app.enqueue("sync-orders", user_id="alice")
    await worker.claim_one()
    async with asyncio.timeout(PATIENCE):
        while await look.value("SELECT doubt_at IS NOT NULL FROM archibald.agents"):
            await worker.turn(look=True)
    async with looking(database) as listener:
        await listener.rows("LISTEN archibald")
        await look.rows("INSERT INTO archibald.jobs (user_id, kind) VALUES ('alice', 'submit-order')")
        assert await listener.heard() == "wake"
        await worker.turn(look=True)
        assert await listener.heard() == "preempt"


async def test_a_write_preempts_no_other_agents_sync(app: Archibald, worker: Hand) -> None:
    await app.enqueue("sync-orders", user_id="alice")
    await worker.claim_one()
    await app.enqueue("submit-order", user_id="bob")
    assert await asked(worker) == []


async def test_a_write_behind_a_read_of_its_agent_does_not_preempt_until_it_is_next(
    app: Archibald, worker: Hand, look: Look
) -> None:
    await look.rows("UPDATE archibald.operations SET priority = 200 WHERE kind = 'submit-order'")
    sync = await app.enqueue("sync-orders", user_id="alice")
    await worker.claim_one()
    read = await app.enqueue("download-ddt-pdf", user_id="alice")
    await app.enqueue("submit-order", user_id="alice")
    assert await asked(worker) == []
    await app.cancel(read.id)
    assert await asked(worker) == [sync.id]


@pytest.mark.parametrize("level", ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"])
async def test_only_a_committed_write_preempts(
    app: Archibald, worker: Hand, look: Look, database: str, level: str
) -> None:
    sync = await app.enqueue("sync-orders", user_id="alice")
    await worker.claim_one()
    async with looking(database) as caller:
        await caller.rows(f"BEGIN ISOLATION LEVEL {level}")
        await caller.rows("SELECT archibald.enqueue('alice', 'submit-order')")
        assert await asked(worker) == []
        await caller.rows("ROLLBACK")
        assert await asked(worker) == []
        await caller.rows(f"BEGIN ISOLATION LEVEL {level}")
        await caller.rows("SELECT archibald.enqueue('alice', 'submit-order')")
        await caller.rows("COMMIT")
    assert await asked(worker) == [sync.id]


async def test_a_write_that_was_enqueued_before_the_sync_began_and_committed_after_it_preempts(
    app: Archibald, worker: Hand, look: Look, database: str
) -> None:
    """An enqueue that saw a lane with nothing to preempt has set no wake."""
    await app.enqueue("submit-order", user_id="alice")
    running = await worker.claim_one()
    sync = await app.enqueue("sync-orders", user_id="alice")
    async with looking(database) as caller:
        await caller.rows("BEGIN")
        await caller.rows("SELECT archibald.enqueue('alice', 'submit-order')")
        await caller.rows("UPDATE archibald.jobs SET wake = false WHERE wake AND kind = 'submit-order'")
        await worker.settle(running)
        (begun,) = await worker.claim()
        assert begun.job_id == sync.id
        await look.until("SELECT doubt_at <= now() FROM archibald.agents")
        assert await asked(worker) == []
        await caller.rows("COMMIT")
    async with asyncio.timeout(PATIENCE):
        while await asked(worker) != [sync.id]:
            pass
    # and then nobody looks again and again
    assert await look.value("SELECT doubt_at FROM archibald.agents") is None


async def test_a_sync_without_a_waiting_write_is_soon_beyond_doubt(app: Archibald, worker: Hand, look: Look) -> None:
    await app.enqueue("sync-orders", user_id="alice")
    await worker.claim_one()
    async with asyncio.timeout(PATIENCE):
        while await look.value("SELECT doubt_at IS NOT NULL FROM archibald.agents"):
            await worker.turn(look=True)
    assert await look.rows("SELECT preemptable, doubts FROM archibald.agents") == [(True, 0)]


async def test_a_delayed_write_preempts_when_it_comes_due(app: Archibald, worker: Hand, look: Look) -> None:
    sync = await app.enqueue("sync-orders", user_id="alice")
    await worker.claim_one()
    await app.enqueue("submit-order", user_id="alice", delay=3600)
    assert await asked(worker) == []
    await look.rows("UPDATE archibald.jobs SET run_after = now() WHERE NOT due")  # an hour passes
    assert await asked(worker) == [sync.id]


async def test_a_paused_agents_sync_is_left_alone_until_the_agent_is_resumed(app: Archibald, worker: Hand) -> None:
    sync = await app.enqueue("sync-orders", user_id="alice")
    await worker.claim_one()
    await app.pause_agent("alice")
    await app.enqueue("submit-order", user_id="alice")
    assert await asked(worker) == []
    await app.resume_agent("alice")
    assert await asked(worker) == [sync.id]


async def test_a_write_that_is_retried_after_a_review_preempts(app: Archibald, worker: Hand) -> None:
    write = await app.enqueue("submit-order", user_id="alice")
    await worker.settle(await worker.claim_one(), Outcome.needs_review("interrupted"))
    sync = await app.enqueue("sync-orders", user_id="alice")
    await worker.claim_one()
    await app.retry(write.id)
    assert await asked(worker) == [sync.id]


@pytest.mark.parametrize("how", ["cancel", "pause"])
async def test_a_request_whose_reason_is_gone_is_taken_back(app: Archibald, worker: Hand, look: Look, how: str) -> None:
    sync = await app.enqueue("sync-orders", user_id="alice")
    await worker.claim_one()
    write = await app.enqueue("submit-order", user_id="alice")
    assert await asked(worker) == [sync.id]
    await (app.cancel(write.id) if how == "cancel" else app.pause_agent("alice"))
    assert await asked(worker) == []
    assert await made_room(look, sync.id) == ("running", 0, 0, None, None)
    if how == "cancel":
        await app.enqueue("submit-order", user_id="alice")
    else:
        await app.resume_agent("alice")
    assert await asked(worker) == [sync.id]


async def test_a_sync_that_completes_anyway_has_completed(app: Archibald, worker: Hand, look: Look) -> None:
    sync = await app.enqueue("sync-orders", user_id="alice")
    running = await worker.claim_one()
    write = await app.enqueue("submit-order", user_id="alice")
    assert await asked(worker) == [sync.id]
    await worker.settle(running)
    assert await made_room(look, sync.id) == ("completed", 1, 0, None, None)
    assert (await worker.claim_one()).job_id == write.id
    assert await look.rows("SELECT preemptable, preempt_at FROM archibald.agents") == [(False, None)]


@pytest.mark.parametrize(
    ("outcome", "preemptions"), [(Outcome.retry("no", 0), 0), (Outcome.gone_back(), 1), (Outcome.preempted(), 2)]
)
async def test_preemptions_are_counted_in_a_row_and_a_run_that_failed_by_itself_ends_the_row(
    app: Archibald, worker: Hand, look: Look, outcome: Outcome, preemptions: int
) -> None:
    sync = await app.enqueue("sync-orders", user_id="alice")
    await worker.settle(await worker.claim_one(), Outcome.preempted())
    await worker.settle(await worker.claim_one(), outcome)
    assert await look.job(sync.id, "preemptions") == (preemptions,)


async def test_a_sync_that_made_room_so_often_in_a_row_is_left_alone_in_its_next_run(
    app: Archibald, database: str, look: Look
) -> None:
    async with hand(database, max_preemptions=2) as worker:
        sync = await app.enqueue("sync-orders", user_id="alice")
        for _ in range(2):
            running = await worker.claim_one()
            write = await app.enqueue("submit-order", user_id="alice")
            assert await asked(worker) == [sync.id]
            await worker.settle(running, Outcome.preempted())
            first = await worker.claim_one()
            assert first.job_id == write.id
            await worker.settle(first)
        running = await worker.claim_one()
        await app.enqueue("submit-order", user_id="alice")
        assert await asked(worker) == []
        await worker.settle(running)
        assert await look.job(sync.id, "state", "preemptions") == ("completed", 2)


async def test_a_cancel_of_a_sync_that_makes_room_is_obeyed(app: Archibald, worker: Hand, look: Look) -> None:
    sync = await app.enqueue("sync-orders", user_id="alice")
    running = await worker.claim_one()
    await app.cancel(sync.id)
    await worker.settle(running, Outcome.preempted())
    assert await look.job(sync.id, "state") == ("cancelled",)


async def test_a_sync_that_makes_room_absorbs_the_follow_up_that_waits_behind_it(
    app: Archibald, worker: Hand, look: Look
) -> None:
    sync = await app.enqueue("sync-orders", user_id="alice")
    running = await worker.claim_one()
    follow_up = await app.enqueue("sync-orders", user_id="alice")
    await worker.settle(running, Outcome.preempted())
    assert await look.job(follow_up.id, "state", "result") == ("cancelled", {"absorbed_by": sync.id})


async def test_of_a_sync_whose_row_a_caller_holds_the_question_is_asked_later(
    app: Archibald, worker: Hand, database: str
) -> None:
    sync = await app.enqueue("sync-orders", user_id="alice")
    await worker.claim_one()
    async with looking(database) as caller, caller.connection.transaction():
        await caller.rows("SELECT FROM archibald.jobs WHERE id = %s FOR UPDATE", sync.id)
        await app.enqueue("submit-order", user_id="alice")
        assert await asked(worker) == []
    async with asyncio.timeout(PATIENCE):
        while await asked(worker) != [sync.id]:
            pass


# -- a sync that does not stop


async def test_the_write_that_waits_for_a_sync_that_does_not_stop_is_requeued_from_30_s_on(
    app: Archibald, worker: Hand, look: Look
) -> None:
    await app.enqueue("sync-orders", user_id="alice")
    running = await worker.claim_one()
    write = await app.enqueue("submit-order", user_id="alice")
    assert len(await asked(worker)) == 1
    assert await look.value(
        "SELECT a.preempt_at - j.preempt_requested_at BETWEEN interval '29.9 s' AND interval '30.1 s' "
        "FROM archibald.agents a, archibald.jobs j WHERE j.state = 'running'"
    )
    assert (await worker.turn(look=True)).requeued == []
    pauses = []
    for count in range(1, 7):
        await look.rows("UPDATE archibald.agents SET preempt_at = now()")  # the time comes
        (requeued,) = (await worker.turn(look=True)).requeued
        assert (requeued.job_id, requeued.kind, requeued.requeue_count) == (write.id, "submit-order", count)
        pauses.append(requeued.delay)
        assert await look.job(write.id, "wait_reason", "attempt") == ("requeue", 0)
        assert await look.value(
            "SELECT a.preempt_at = j.run_after FROM archibald.agents a, archibald.jobs j WHERE j.id = %s", write.id
        )
        assert (await worker.turn(look=True)).requeued == []
    assert pauses == [2, 4, 8, 16, 30, 30]
    # and it starts as soon as the sync has ended
    await worker.settle(running, Outcome.preempted())
    assert (await worker.claim_one()).job_id == write.id
    assert await look.job(write.id, "requeue_count") == (6,)


# -- how a sync stops


@pytest.mark.usefixtures("soon")
async def test_a_sync_that_checks_in_stops_where_it_likes_and_finds_what_it_had_saved(
    app: Archibald, look: Look
) -> None:
    seen: list[Any] = []
    begun = asyncio.Event()

    @app.operation("sync-orders")
    async def sync_orders(ctx: JobContext, data: dict[str, Any]) -> str:
        seen.append(ctx.state)
        if ctx.state is not None:
            return "done"
        await ctx.save({"page": 7})
        begun.set()
        while True:
            ctx.raise_if_cancelled()
            await asyncio.sleep(0)

    stage = Stage(hold=False)
    stage.register(app, "submit-order")
    async with working(app):
        sync = await app.enqueue("sync-orders", user_id="alice")
        await asyncio.wait_for(begun.wait(), PATIENCE)
        write = await app.enqueue("submit-order", user_id="alice")
        await write.wait(timeout=20)
        assert await sync.wait(timeout=20) == "done"
    assert seen == [None, {"page": 7}]
    assert await look.job(sync.id, "attempt", "preemptions", "preempted_by") == (1, 1, write.id)
    order = await look.rows("SELECT id FROM archibald.job_history ORDER BY finished_at")
    assert order == [(write.id,), (sync.id,)]


@pytest.mark.usefixtures("soon")
async def test_a_sync_that_only_awaits_is_cancelled_after_the_grace(app: Archibald, look: Look) -> None:
    runs = 0
    begun = asyncio.Event()

    @app.operation("sync-orders")
    async def sync_orders(ctx: JobContext, data: dict[str, Any]) -> None:
        nonlocal runs
        runs += 1
        if runs == 1:
            begun.set()
            await asyncio.Event().wait()

    Stage(hold=False).register(app, "submit-order")
    async with working(app):
        sync = await app.enqueue("sync-orders", user_id="alice")
        await asyncio.wait_for(begun.wait(), PATIENCE)
        asked_at = await look.value("SELECT clock_timestamp()")
        write = await app.enqueue("submit-order", user_id="alice")
        await write.wait(timeout=20)
        await sync.wait(timeout=20)
    assert await look.job(sync.id, "state", "attempt", "preemptions") == ("completed", 1, 1)
    (started,) = await look.job(write.id, "started_at")
    assert (started - asked_at).total_seconds() >= float(SHORT_GRACE)


@pytest.mark.parametrize("consumers", ["1", "10"])
@pytest.mark.usefixtures("soon")
async def test_a_write_starts_though_every_consumer_runs_a_sync(
    app: Archibald, monkeypatch: pytest.MonkeyPatch, consumers: str
) -> None:
    monkeypatch.setattr("archibald_pgq.runtime.dispatcher.POLL", 3600.0)  # the notification alone does it
    monkeypatch.setenv("WORKER_CONCURRENCY", consumers)
    monkeypatch.setenv("ARCHIBALD_RESERVED_CONSUMERS", "0")
    syncs, writes = Stage(), Stage(hold=False)
    syncs.register(app, "sync-orders")
    writes.register(app, "submit-order")
    async with working(app):
        for n in range(int(consumers)):
            await app.enqueue("sync-orders", user_id=f"user-{n}")
        await syncs.until_started(int(consumers))
        await (await app.enqueue("submit-order", user_id="user-0")).wait(timeout=20)
        assert writes.users() == ["user-0"]
        await syncs.let_go()


@pytest.mark.usefixtures("soon")
async def test_an_uninterruptible_section_is_not_cut_and_the_handler_stops_behind_it(
    app: Archibald, look: Look
) -> None:
    inside, leave = asyncio.Event(), asyncio.Event()
    notes: list[str] = []

    @app.operation("sync-orders")
    async def sync_orders(ctx: JobContext, data: dict[str, Any]) -> None:
        if notes:
            return
        notes.append("begun")
        async with ctx.uninterruptible():
            inside.set()
            await leave.wait()
            notes.append(f"saved, cancelled={ctx.cancelled}")
        await asyncio.Event().wait()

    Stage(hold=False).register(app, "submit-order")
    async with working(app):
        sync = await app.enqueue("sync-orders", user_id="alice")
        await asyncio.wait_for(inside.wait(), PATIENCE)
        write = await app.enqueue("submit-order", user_id="alice")
        # asked, and its grace is over
        await look.until(
            "SELECT coalesce(bool_or(preempt_requested_at < now() - interval '0.5 s'), false) FROM archibald.jobs"
        )
        assert (await write.record()).state == "queued"
        leave.set()
        await write.wait(timeout=20)
        await sync.wait(timeout=20)
    assert notes == ["begun", "saved, cancelled=False"]


@pytest.mark.usefixtures("soon")
async def test_an_uninterruptible_section_is_cut_when_it_lasts_too_long(
    app: Archibald, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("archibald_pgq.runtime.context.LONGEST_SECTION", 0.5)
    runs = 0

    @app.operation("sync-orders")
    async def sync_orders(ctx: JobContext, data: dict[str, Any]) -> None:
        nonlocal runs
        runs += 1
        if runs == 1:
            async with ctx.uninterruptible():
                begun.set()
                await asyncio.Event().wait()

    begun = asyncio.Event()
    Stage(hold=False).register(app, "submit-order")
    async with working(app):
        await app.enqueue("sync-orders", user_id="alice")
        await asyncio.wait_for(begun.wait(), PATIENCE)
        await (await app.enqueue("submit-order", user_id="alice")).wait(timeout=20)


@pytest.mark.usefixtures("soon")
async def test_a_sync_that_ignores_its_cancellation_keeps_its_agent_until_it_ends(app: Archibald, look: Look) -> None:
    told, end = asyncio.Event(), asyncio.Event()
    runs = 0

    @app.operation("sync-orders")
    async def sync_orders(ctx: JobContext, data: dict[str, Any]) -> None:
        nonlocal runs
        runs += 1
        if runs > 1:
            return
        while not end.is_set():
            try:
                begun.set()
                await end.wait()
            except asyncio.CancelledError:
                told.set()
        raise asyncio.CancelledError

    begun = asyncio.Event()
    stage = Stage(hold=False)
    stage.register(app, "submit-order")
    async with working(app):
        sync = await app.enqueue("sync-orders", user_id="alice")
        await asyncio.wait_for(begun.wait(), PATIENCE)
        write = await app.enqueue("submit-order", user_id="alice")
        await asyncio.wait_for(told.wait(), PATIENCE)
        await (await app.enqueue("submit-order", user_id="bob")).wait(timeout=20)
        assert (await write.record()).state == "queued"
        assert (await sync.record()).state == "running"
        end.set()
        await write.wait(timeout=20)
        await sync.wait(timeout=20)
    assert await look.job(sync.id, "state", "preemptions") == ("completed", 1)


@pytest.mark.usefixtures("soon")
async def test_a_sync_that_was_asked_and_fails_by_itself_spends_its_attempt(app: Archibald, look: Look) -> None:
    begun = asyncio.Event()

    @app.operation("sync-orders")
    async def sync_orders(ctx: JobContext, data: dict[str, Any]) -> None:
        begun.set()
        while not ctx.cancelled:  # noqa: ASYNC110  # as a handler checks in
            await asyncio.sleep(0)
        raise RuntimeError("the grid is broken")

    Stage(hold=False).register(app, "submit-order")
    async with working(app):
        sync = await app.enqueue("sync-orders", user_id="alice")
        await asyncio.wait_for(begun.wait(), PATIENCE)
        await (await app.enqueue("submit-order", user_id="alice")).wait(timeout=20)
        assert await look.job(sync.id, "state", "wait_reason", "attempt", "preemptions") == ("queued", "retry", 1, 0)


async def test_a_cancel_stops_at_once_a_sync_that_is_asked_to_make_room(
    app: Archibald, look: Look, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ARCHIBALD_PREEMPT_GRACE", "3600")
    begun, asked = asyncio.Event(), asyncio.Event()

    @app.operation("sync-orders")
    async def sync_orders(ctx: JobContext, data: dict[str, Any]) -> None:
        begun.set()
        while not ctx.cancelled:  # noqa: ASYNC110  # as a handler checks in
            await asyncio.sleep(0)
        asked.set()
        await asyncio.Event().wait()

    Stage(hold=False).register(app, "submit-order")
    async with working(app):
        sync = await app.enqueue("sync-orders", user_id="alice")
        await asyncio.wait_for(begun.wait(), PATIENCE)
        write = await app.enqueue("submit-order", user_id="alice")
        await asyncio.wait_for(asked.wait(), PATIENCE)
        await app.cancel(sync.id)
        await write.wait(timeout=20)
    assert await look.job(sync.id, "state", "error") == ("cancelled", "cancelled on request")


@pytest.mark.parametrize("stops", [True, False])
async def test_a_sync_whose_request_was_taken_back_goes_on_and_may_still_stop_without_an_attempt_spent(
    app: Archibald, look: Look, monkeypatch: pytest.MonkeyPatch, stops: bool
) -> None:
    monkeypatch.setenv("ARCHIBALD_PREEMPT_GRACE", "3600")
    contexts: list[JobContext] = []
    begun, asked = asyncio.Event(), asyncio.Event()

    @app.operation("sync-orders")
    async def sync_orders(ctx: JobContext, data: dict[str, Any]) -> None:
        contexts.append(ctx)
        if len(contexts) > 1:
            return
        begun.set()
        while not ctx.cancelled:  # noqa: ASYNC110  # as a handler checks in
            await asyncio.sleep(0)
        asked.set()
        while contexts[0].cancelled:  # noqa: ASYNC110  # as one that tidies up, and takes its time
            await asyncio.sleep(0)
        if stops:
            raise asyncio.CancelledError

    async with working(app):
        sync = await app.enqueue("sync-orders", user_id="alice")
        await asyncio.wait_for(begun.wait(), PATIENCE)
        write = await app.enqueue("submit-order", user_id="alice")
        await asyncio.wait_for(asked.wait(), PATIENCE)
        await app.cancel(write.id)
        await sync.wait(timeout=20)
    assert await look.job(sync.id, "state", "attempt", "losses") == ("completed", 1, 0)
    assert len(contexts) == 1 + stops


@pytest.mark.parametrize("way", ["a notification", "the heartbeat alone", "the look of its own worker"])
@pytest.mark.usefixtures("soon")
async def test_a_request_arrives_also_without_any_notification(
    app: Archibald, database: str, look: Look, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if way == "the look of its own worker":
        monkeypatch.setattr("archibald_pgq.runtime.registration.Registration._heard", lambda *_: None)
        monkeypatch.setattr("archibald_pgq.runtime.registration.Registration.preempt_requested", lambda *_: None)
    stage = Stage()
    stage.register(app, "sync-orders")
    async with working(app), hand(database) as other:
        await app.enqueue("sync-orders", user_id="alice")
        await stage.until_started(1)
        await look.until("SELECT doubt_at IS NULL FROM archibald.agents")
        if way == "the look of its own worker":
            await look.rows("SET archibald.notify = off")
            await look.rows("INSERT INTO archibald.jobs (user_id, kind) VALUES ('alice', 'submit-order')")
        elif way != "a notification":  # written as a turn would, but nobody is told
            await look.rows("SET archibald.notify = off")
            await look.rows("INSERT INTO archibald.jobs (user_id, kind) VALUES ('alice', 'submit-order')")
            await look.rows("UPDATE archibald.jobs SET preempt_requested_at = now() WHERE state = 'running'")
            await look.rows("UPDATE archibald.agents SET preemptable = false, preempt_at = now() + interval '30 s'")
        else:
            await app.enqueue("submit-order", user_id="alice")
            await other.turn(look=True)
        await look.until("SELECT count(*) = 0 FROM archibald.jobs WHERE state = 'running' AND kind = 'sync-orders'")
        await stage.let_go()


# -- what a sync saves


async def test_a_state_is_written_by_the_fence_and_found_after_a_takeover(
    app: Archibald, database: str, look: Look
) -> None:
    from archibald_pgq.errors import JobStateError
    from archibald_pgq.store import commands
    from archibald_pgq.store.client import Client

    await app.enqueue("sync-orders", user_id="alice")
    client = Client(database)
    async with hand(database) as first, hand(database) as second:
        lost = await first.claim_one()
        await client.ask(commands.save_state(lost, first.worker_id, '{"page": 3}'))
        await look.rows("UPDATE archibald.workers SET beat = now() - interval '1 h' WHERE id = %s", first.worker_id)
        await look.rows("SELECT archibald.fence_stale_workers(%s)", second.worker_id)
        await look.rows("SELECT archibald.end_lost_backends()")
        pid = first.connection.info.backend_pid
        await look.until("SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = %s)", pid)
        await look.rows("SELECT archibald.release_fenced_lanes(10, 3)")
        again = await second.claim_one()
        assert again.saved_state == {"page": 3}
        for stale in ((lost, first.worker_id), (lost, second.worker_id)):
            with pytest.raises(JobStateError, match="no longer this worker's"):
                await client.ask(commands.save_state(*stale, '{"page": 4}'))
    await client.close()


async def test_what_cannot_be_saved_is_refused_and_a_write_saves_nothing(app: Archibald) -> None:
    refused: list[str] = []

    async def save(ctx: JobContext, data: dict[str, Any]) -> None:
        for state in ({1, 2}, "x" * 70_000, float("nan")):
            with pytest.raises(InvalidJobError) as caught:
                await ctx.save(state)
            refused.append(str(caught.value))

    app.operation("sync-orders")(save)
    app.operation("submit-order")(save)
    async with working(app):
        await (await app.enqueue("sync-orders", user_id="alice")).wait(timeout=20)
        await (await app.enqueue("submit-order", user_id="alice")).wait(timeout=20)
    assert [text.split(";")[0][:40] for text in refused] == [
        "the state cannot be stored as JSON: Obje",
        "the state is over 65536 bytes as JSON",
        "the state cannot be stored as JSON: Out ",
        *["submit-order is no sync"] * 3,
    ]
