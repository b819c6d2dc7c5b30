"""The app that the workers of the preemption bench run.

Its handlers write down when they start and end, as those of the fault tests do, and in the same folder. `BENCH_DEAF` makes a worker that
hears no notification at all.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable
from typing import Any

from archibald_pgq import Archibald, JobContext
from archibald_pgq.runtime import registration
from tests.acceptance.fault_app import FOLDER, note
from tests.acceptance.history import now

CHECK_EVERY = 0.1
FINISH = "finish"
"""A file in the folder: syncs that were preempted come to their end."""

PAGE = {"page": 7}
"""What a sync saves."""

app = Archibald()


@app.operation("bench-write", job_class="write", priority=10)
async def write(ctx: JobContext, data: dict[str, Any]) -> None:
    """What a person asks for."""
    note("start", ctx)
    await asyncio.sleep(data.get("seconds", 0))
    note("end", ctx, "returned")


async def sync(ctx: JobContext, data: dict[str, Any]) -> None:
    """Run for so many seconds: `checks` in all the time, only `awaits`, or `ignores` its cancellation."""
    note("start", ctx)
    again = ctx.state is not None
    try:
        if again:
            note("found", ctx, json.dumps(ctx.state))
        else:
            await ctx.save(PAGE)
            note("saved", ctx)
        await _pass(ctx, data["do"], 0 if again and data["do"] == "ignores" else data["seconds"])
    except BaseException as error:
        note("end", ctx, type(error).__name__)
        raise
    note("end", ctx, "returned")


app.operation("bench-sync", job_class="sync", priority=100, timeout=600)(sync)
app.operation("bench-other-sync", job_class="sync", priority=110, timeout=600)(sync)


async def _pass(ctx: JobContext, do: str, seconds: float) -> None:
    ends = now() + seconds
    while now() < ends and not (FOLDER / FINISH).exists():
        if do == "checks":
            ctx.raise_if_cancelled()
        try:
            await asyncio.sleep(CHECK_EVERY)
        except asyncio.CancelledError:
            if do != "ignores":
                raise


async def _deaf(conninfo: str, heard: Callable[[str], None]) -> None:
    await asyncio.Event().wait()


if "BENCH_DEAF" in os.environ:
    vars(registration)["listen"] = _deaf
