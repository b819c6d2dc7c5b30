"""This project behind the interface of the side-by-side benchmark of queues: `setup`, `load`, `producer`, `work`, `PENDING_SQL`.

Written as a user writes, with the public names only and the settings' defaults; the jobs are of a kind of its own, of class `read`. One at
a time per user is always on. Must not: be faster than what a user gets.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from archibald_pgq import Archibald, JobContext, NewJob, Worker

RunJob = Callable[[str, int], Awaitable[None]]

PENDING_SQL = "SELECT count(*) FROM archibald.jobs"
KIND = "bench"
BATCH = 1000


def _app(dsn: str, run_job: RunJob | None = None) -> Archibald:
    app = Archibald(dsn)

    @app.operation(KIND, job_class="read")
    async def bench(ctx: JobContext, data: dict[str, Any]) -> None:
        assert run_job is not None
        await run_job(ctx.user_id, data["seq"])

    return app


async def setup(dsn: str, spec: dict[str, Any]) -> None:
    """Make the schema; there is no other public way to it than the command."""
    await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "archibald_pgq", "migrate"],
        env={**os.environ, "ARCHIBALD_DATABASE_URL": dsn},
        check=True,
    )


async def load(dsn: str, jobs: list[tuple[str, int]], spec: dict[str, Any]) -> None:
    """Enqueue jobs in this order, a thousand a call."""
    async with _app(dsn) as app:
        for start in range(0, len(jobs), BATCH):
            part = jobs[start : start + BATCH]
            await app.enqueue_many([NewJob(KIND, user_id=user, data={"seq": seq}) for user, seq in part])


@asynccontextmanager
async def producer(dsn: str, spec: dict[str, Any]) -> AsyncIterator[RunJob]:
    """Yield what enqueues one job and commits it."""
    async with _app(dsn) as app:

        async def put(user: str, seq: int) -> None:
            await app.enqueue(KIND, user_id=user, data={"seq": seq})

        yield put


async def work(dsn: str, spec: dict[str, Any], run_job: RunJob, stopped: asyncio.Event) -> None:
    """Run a worker in this process until told to stop."""
    os.environ["WORKER_CONCURRENCY"] = str(spec["concurrency"])
    async with _app(dsn, run_job) as app:
        worker: Worker = await app.worker()
        running = asyncio.create_task(worker.run())
        stopping = asyncio.create_task(stopped.wait())
        await asyncio.wait({running, stopping}, return_when=asyncio.FIRST_COMPLETED)
        worker.request_stop()
        await running
        stopping.cancel()
