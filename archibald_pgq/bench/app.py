"""The app that the worker of a bench runs: handlers that do nothing, or sleep.

`BENCH_RUNS` names the file into which their times are written when the process ends, and which are kept in memory until then; with the
`BENCH_EXPECTED`th run a line goes to stdout.
"""

from __future__ import annotations

import asyncio
import atexit
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from archibald_pgq.app import Archibald
from archibald_pgq.runtime.context import JobContext

KIND = "bench"

_runs: list[tuple[str, int, float, float]] = []
_path = os.environ.get("BENCH_RUNS")
_expected = int(os.environ.get("BENCH_EXPECTED", "0"))


async def run_job(ctx: JobContext, data: dict[str, Any]) -> None:
    """Sleep for so many seconds, if any, and note it."""
    start = time.monotonic()
    if seconds := data.get("seconds"):
        await asyncio.sleep(seconds)
    if not _path:
        return
    _runs.append((ctx.user_id, data["seq"], start, time.monotonic()))
    if len(_runs) == _expected:
        sys.stdout.write("done\n")
        sys.stdout.flush()


def _write(path: Path) -> None:
    path.write_text(json.dumps(_runs), encoding="utf-8")


def declare(to: Archibald) -> None:
    """Make it the handler of the bench's kind."""
    to.operation(KIND, job_class="read")(run_job)


app = Archibald()
declare(app)
if _path:
    atexit.register(_write, Path(_path))
