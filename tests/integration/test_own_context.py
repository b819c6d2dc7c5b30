"""Handlers run one after the other in a consumer's task, and none notices those before it."""

from __future__ import annotations

import asyncio
from contextvars import ContextVar
from typing import Any

import pytest

from archibald_pgq import Archibald, JobContext, JobFailedError, NewJob
from archibald_pgq.runtime.own_context import InOwnContext
from tests.support import Look, working

MARK: ContextVar[str] = ContextVar("mark", default="none")


@pytest.fixture(autouse=True)
def one_consumer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKER_CONCURRENCY", "1")


async def test_a_context_variable_that_a_handler_sets_is_not_seen_by_the_next_one(app: Archibald, look: Look) -> None:
    seen = []

    @app.operation("fetch", job_class="read")
    async def fetch(ctx: JobContext, data: dict[str, Any]) -> None:
        seen.append(MARK.get())
        MARK.set(ctx.user_id)
        await asyncio.sleep(0.001 * data["n"])
        await asyncio.create_task(check(ctx.user_id))  # its own tasks inherit it

    async def check(user: str) -> None:
        assert MARK.get() == user

    await app.enqueue_many([NewJob("fetch", user_id=f"user-{n % 2}", data={"n": n % 3}) for n in range(12)])
    async with working(app):
        await look.until("SELECT count(*) = 12 FROM archibald.job_history WHERE state = 'completed'")
    assert seen == ["none"] * 12


@pytest.mark.parametrize("way", ["returns", "goes on", "raises"])
async def test_a_handler_that_cancels_its_own_task_stops_no_other_job(app: Archibald, look: Look, way: str) -> None:
    @app.operation("fetch", job_class="read")
    async def fetch(ctx: JobContext, data: dict[str, Any]) -> str:
        if data["n"] % 2 == 0:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            if way == "raises":
                raise ValueError(way)
            if way == "goes on":
                await asyncio.sleep(0)
        return "done"

    jobs = await app.enqueue_many([NewJob("fetch", user_id="alice", data={"n": n}) for n in range(6)])
    async with working(app):
        for n, job in enumerate(jobs):
            if n % 2 or way == "returns":
                assert await job.wait(timeout=20) == "done"
            else:
                with pytest.raises(JobFailedError, match="ValueError" if way == "raises" else "cancelled itself"):
                    await job.wait(timeout=20)


async def test_a_timeout_of_a_handlers_own_is_none_of_the_jobs(app: Archibald, look: Look) -> None:
    """`asyncio.timeout` cancels the task that it is in, and takes that back."""

    @app.operation("fetch", job_class="read")
    async def fetch(ctx: JobContext, data: dict[str, Any]) -> str:
        try:
            async with asyncio.timeout(0.001):
                await asyncio.sleep(60)
        except TimeoutError:
            return "too late"
        return "in time"

    jobs = await app.enqueue_many([NewJob("fetch", user_id="alice")] * 3)
    async with working(app):
        assert [await job.wait(timeout=20) for job in jobs] == ["too late"] * 3


async def test_what_is_thrown_in_arrives_where_it_waits_and_its_answer_comes_back() -> None:
    waits = asyncio.Event()

    async def inner() -> str:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            await asyncio.sleep(0)
            return "stopped"
        return "ran"

    async def outer() -> Any:
        return await InOwnContext(inner(), waits.set)

    task = asyncio.create_task(outer())
    await waits.wait()
    task.cancel()
    assert await task == "stopped"
