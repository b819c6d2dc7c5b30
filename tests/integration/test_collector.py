"""Memory while a worker of this process runs: the garbage collector, and what a job leaves to it."""

from __future__ import annotations

import asyncio
import gc
import weakref
from typing import Any

import pytest

from archibald_pgq import Archibald, JobContext
from archibald_pgq.runtime.collector import YOUNG
from tests.support import PATIENCE, working


async def test_it_looks_less_often_while_a_worker_runs_and_is_then_as_it_was(database: str) -> None:
    found = gc.get_threshold()
    app = Archibald(database)

    @app.operation("look", job_class="read")
    async def look(ctx: JobContext, data: dict[str, Any]) -> list[int]:
        return list(gc.get_threshold())

    async with app:
        async with working(app):
            job = await app.enqueue("look", user_id="alice")
            assert (await job.wait(30))[0] >= YOUNG
        assert gc.get_threshold() == found


@pytest.mark.parametrize("end", ["completed", "failed", "cancelled by itself"])
async def test_a_job_is_freed_when_it_has_ended_and_not_when_the_collector_looks(database: str, end: str) -> None:
    app = Archibald(database)
    freed = asyncio.Event()

    @app.operation("look", job_class="read", max_attempts=1)
    async def look(ctx: JobContext, data: dict[str, Any]) -> None:
        weakref.finalize(ctx, freed.set)
        await ctx.progress(50)
        async with ctx.uninterruptible():
            pass
        if end == "failed":
            raise LookupError("nothing there")
        if end == "cancelled by itself":
            raise asyncio.CancelledError

    async with app, working(app):
        gc.disable()
        try:
            await app.enqueue("look", user_id="alice")
            async with asyncio.timeout(PATIENCE):
                await freed.wait()
        finally:
            gc.enable()
