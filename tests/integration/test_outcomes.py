"""What becomes of a job: result, error, retry, timeout, cancel, a result that cannot be kept, a kind without a handler."""

from __future__ import annotations

import asyncio
import math
import sys
from typing import Any

import pytest

from archibald_pgq import Archibald, Backoff, JobCancelledError, JobContext, JobFailedError
from tests.support import Look, Stage, working


async def test_a_result_is_kept_and_the_job_is_completed_once(app: Archibald, look: Look) -> None:
    @app.operation("submit-order")
    async def handle(ctx: JobContext, data: dict[str, Any]) -> dict[str, Any]:
        return {"order": data["order"], "agent": ctx.user_id}

    job = await app.enqueue("submit-order", user_id="alice", data={"order": 7})
    async with working(app):
        assert await job.wait(timeout=20) == {"order": 7, "agent": "alice"}
    assert await look.job(job.id, "state", "attempt", "error") == ("completed", 1, None)
    assert await look.value("SELECT count(*) FROM archibald.jobs") == 0
    assert await look.value("SELECT count(*) FROM archibald.job_history WHERE id = %s", job.id) == 1


async def test_an_error_fails_the_job_when_no_attempt_is_left_and_is_kept(app: Archibald, look: Look) -> None:
    @app.operation("submit-order")
    async def handle(ctx: JobContext, data: dict[str, Any]) -> None:
        raise ValueError("no such \x00 customer \ud800")

    job = await app.enqueue("submit-order", user_id="alice")
    async with working(app):
        with pytest.raises(JobFailedError, match="ValueError: no such"):
            await job.wait(timeout=20)
        after = await app.enqueue("submit-order", user_id="alice")  # worker and agent go on
        with pytest.raises(JobFailedError):
            await after.wait(timeout=20)
    assert await look.job(job.id, "state", "attempt", "error") == (
        "failed",
        1,
        r"ValueError: no such \x00 customer \ud800",
    )


async def test_a_retry_spends_an_attempt_waits_by_the_policy_and_lets_the_agents_other_jobs_pass(
    app: Archibald, look: Look
) -> None:
    ran: list[tuple[str, int]] = []

    @app.operation("fetch", job_class="read", max_attempts=3, backoff=Backoff.exponential(600))
    async def fetch(ctx: JobContext, data: dict[str, Any]) -> str:
        ran.append((ctx.kind, ctx.attempt))
        if ctx.attempt < 3:
            raise ConnectionError("the ERP is away")
        return "there"

    @app.operation("other")
    async def other(ctx: JobContext, data: dict[str, Any]) -> None:
        ran.append((ctx.kind, ctx.attempt))

    job = await app.enqueue("fetch", user_id="alice")
    async with working(app):
        for attempt, seconds in ((1, 600), (2, 1200)):
            await look.until(
                "SELECT state = 'queued' AND attempt = %s FROM archibald.all_jobs WHERE id = %s", attempt, job.id
            )
            reason, error, ahead = await look.job(
                job.id, "wait_reason", "error", "extract(epoch FROM run_after - clock_timestamp())"
            )
            assert (reason, error) == ("retry", "ConnectionError: the ERP is away")
            assert seconds - 60 < ahead <= seconds
            passing = await app.enqueue("other", user_id="alice")
            await passing.wait(timeout=20)
            await look.rows("UPDATE archibald.jobs SET run_after = now() WHERE id = %s", job.id)
        assert await job.wait(timeout=20) == "there"
    assert ran == [("fetch", 1), ("other", 1), ("fetch", 2), ("other", 1), ("fetch", 3)]
    assert await look.job(job.id, "state", "attempt", "requeue_count") == ("completed", 3, 0)


async def test_a_timeout_cancels_the_handler_fails_the_job_and_is_not_retried(app: Archibald, look: Look) -> None:
    seen: list[bool] = []

    @app.operation("slow", job_class="read", timeout=0.05, max_attempts=3)
    async def slow(ctx: JobContext, data: dict[str, Any]) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            seen.append(ctx.cancelled)

    job = await app.enqueue("slow", user_id="alice")
    async with working(app):
        with pytest.raises(JobFailedError, match=r"timed out after 0\.05 s"):
            await job.wait(timeout=20)
    assert seen == [True]
    assert await look.job(job.id, "state", "attempt") == ("failed", 1)


async def test_the_lock_is_not_free_while_handler_code_still_runs_after_its_timeout(app: Archibald, look: Look) -> None:
    told, may_end = asyncio.Event(), asyncio.Event()

    @app.operation("stubborn", timeout=0.05)
    async def stubborn(ctx: JobContext, data: dict[str, Any]) -> None:
        while not may_end.is_set():
            try:
                await may_end.wait()
            except asyncio.CancelledError:
                told.set()

    job = await app.enqueue("stubborn", user_id="alice")
    async with working(app):
        async with asyncio.timeout(20):
            await told.wait()
        assert await look.job(job.id, "state") == ("running",)
        assert await look.value("SELECT archibald.try_lock_agent('alice')") is False
        may_end.set()
        with pytest.raises(JobFailedError, match="timed out"):
            await job.wait(timeout=20)


@pytest.mark.parametrize(
    "result",
    [{1, 2}, math.nan, "\x00", "\ud800", "x" * 1_100_000, object()],
    ids=["a set", "NaN", "a NUL", "a lone surrogate", "over 1 MB", "an object"],
)
async def test_a_result_that_cannot_be_kept_leaves_the_job_completed_with_the_reason(
    app: Archibald, look: Look, result: object
) -> None:
    @app.operation("submit-order")
    async def handle(ctx: JobContext, data: dict[str, Any]) -> object:
        return result

    job = await app.enqueue("submit-order", user_id="alice")
    async with working(app):
        assert await job.wait(timeout=20) is None
    state, kept, error = await look.job(job.id, "state", "result", "error")
    assert (state, kept) == ("completed", None)
    assert error.startswith("completed, but without its result: the result ")


async def test_a_claimed_job_without_any_handler_fails_with_a_clear_error(app: Archibald, look: Look) -> None:
    stage = Stage(hold=False)
    stage.register(app, "submit-order")
    orphan = await app.enqueue("edit-order", user_id="alice")
    after = await app.enqueue("submit-order", user_id="alice", data={"n": 2})
    async with working(app):
        with pytest.raises(JobFailedError, match="no live worker has one for edit-order"):
            await orphan.wait(timeout=20)
        assert await after.wait(timeout=20) == {"ran": {"n": 2}}


async def test_a_kind_of_another_live_worker_is_left_to_it(app: Archibald, look: Look, database: str) -> None:
    mine, theirs = Stage(hold=False), Stage(hold=False)
    mine.register(app, "submit-order")
    async with Archibald(database) as other:
        theirs.register(other, "edit-order")
        async with working(app), working(other):
            jobs = [
                await app.enqueue(kind, user_id=f"u{n % 4}")
                for n in range(20)
                for kind in ("submit-order", "edit-order")
            ]
            for job in jobs:
                await job.wait(timeout=20)
    assert (len(mine.started), len(theirs.started)) == (20, 20)
    assert await look.value("SELECT count(*) FROM archibald.all_jobs WHERE state <> 'completed'") == 0


async def test_a_handler_that_exits_fails_its_job_and_not_the_daemon(app: Archibald) -> None:
    @app.operation("submit-order")
    async def handle(ctx: JobContext, data: dict[str, Any]) -> None:
        sys.exit(3)

    async with working(app):
        for _ in range(2):
            job = await app.enqueue("submit-order", user_id="alice")
            with pytest.raises(JobFailedError, match="the handler raised SystemExit"):
                await job.wait(timeout=20)


async def test_cancel_stops_a_job_that_waits_and_one_that_runs_and_says_so_of_a_finished_one(
    app: Archibald, look: Look
) -> None:
    stage = Stage()
    stage.register(app, "submit-order")
    running = await app.enqueue("submit-order", user_id="alice")
    async with working(app):
        await stage.until_started(1)
        waiting = await app.enqueue("submit-order", user_id="alice")
        assert await app.cancel(waiting.id) == "cancelled"
        assert await app.cancel(running.id) == "requested"
        with pytest.raises(JobCancelledError, match="cancelled on request"):
            await running.wait(timeout=20)
        with pytest.raises(JobCancelledError):
            await waiting.wait(timeout=20)
        assert await app.cancel(running.id) == "already cancelled"
        assert stage.contexts[0].cancelled
        await stage.let_go()
        after = await app.enqueue("submit-order", user_id="alice")
        await after.wait(timeout=20)
        assert await app.cancel(after.id) == "already completed"
    assert len(stage.started) == 2
    assert await look.value("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == 0


async def test_a_job_that_completes_although_it_was_told_to_stop_has_completed(app: Archibald, look: Look) -> None:
    told = asyncio.Event()

    @app.operation("submit-order")
    async def handle(ctx: JobContext, data: dict[str, Any]) -> str:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            told.set()
        return "saved"

    job = await app.enqueue("submit-order", user_id="alice")
    async with working(app):
        await look.until_state(job.id, "running")
        await app.cancel(job.id)
        assert await job.wait(timeout=20) == "saved"
    assert told.is_set()
    assert await look.job(job.id, "state") == ("completed",)
