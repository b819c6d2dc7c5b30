"""The demo's day in real browsers, with the ERP down in its middle: what it comes to, and what the browsers take.

Run as `python -m tests.bench.erp_day`. The example ERP and one worker are processes of their own. The ERP answers no page for `--outage`
seconds; what then stays paused by a breaker is waited for, so that a day of 70 seconds takes up to ten minutes. `--http`: the same without
browsers.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
import tempfile
import time
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import psycopg
from archibald_pgq.examples.erp import admin, day

from archibald_pgq.app import Archibald
from archibald_pgq.processes.children import Child, environment
from tests.bench.scene import LEAVING, Play, main, memory

LOOK_EVERY = 3.0
LONGEST = 900.0
"""Seconds until it is given up."""

MEANT_TO_FAIL = 2
"""An order and an invoice that do not exist."""

_LOOK = """
SELECT (SELECT count(*) FROM archibald.jobs WHERE state IN ('queued', 'running')),
       (SELECT count(*) FROM archibald.agents WHERE paused_until > now()),
       (SELECT max((browsers ->> 'contexts')::integer) FROM archibald.workers)
"""
_ENDED = "SELECT state, count(*) FROM archibald.all_jobs GROUP BY 1 ORDER BY 1"
_SPENT = "SELECT count(*) FILTER (WHERE attempt > 1), coalesce(sum(losses), 0) FROM archibald.all_jobs"


@dataclass(slots=True)
class Peaks:
    """The highest of each at one look."""

    paused: int = 0
    contexts: int = 0
    pss: float = 0.0
    processes: dict[int, psutil.Process] = field(default_factory=dict)
    """All of the browsers' that were seen."""


def options(parser: argparse.ArgumentParser) -> None:
    """What day it is."""
    parser.add_argument("--outage", type=float, default=180.0, help="seconds that the ERP is down; 0: never")
    parser.add_argument("--at", type=float, default=25.0, help="seconds after the first enqueue at which it goes down")
    parser.add_argument("--http", action="store_true", help="over HTTP, without browsers")


async def play(bench: Play) -> None:
    """Play it once."""
    chosen = bench.options
    async with bench.stage() as stage, AsyncExitStack() as stack:
        logs = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="archibald-pgq-day-")))
        erp = await Child.start(
            "the ERP", "archibald_pgq.examples.erp.server", "--faults", log=logs / "erp.log", env=environment()
        )
        stack.push_async_callback(erp.stop)
        url = await erp.first_line()
        worker = await Child.start(
            *("the worker", "archibald_pgq", "run", "archibald_pgq.examples.erp:app"),
            log=logs / "worker.log",
            env=environment(
                ARCHIBALD_DATABASE_URL=stage.dsn,
                ERP_URL=url,
                ERP_BROWSER=str(int(not chosen.http)),
                ARCHIBALD_LOGIN_BUDGET="10000",  # a day in a minute has as many logins as a day
            ),
        )
        stack.push_async_callback(worker.stop)
        began, peaks = time.monotonic(), Peaks()
        outage = asyncio.create_task(_outage(bench, url, chosen.at, chosen.outage))
        await asyncio.gather(_feed(stage.dsn), _until_all_ended(bench, stage.dsn, peaks, outage))
        bench.add("the day", time.monotonic() - began, "s")
        stats = await _stats(url)
        await worker.stop()
        await _report(bench, stage.dsn, peaks, stats)


async def _feed(dsn: str) -> None:
    """Enqueue the day's entries at their times."""
    began = time.monotonic()
    async with Archibald(database_url=dsn) as app:
        for entry in day.ENTRIES:
            await asyncio.sleep(max(0.0, began + entry.at - time.monotonic()))
            await app.enqueue(
                entry.kind,
                user_id=entry.user_id,
                data=entry.data,
                idempotency_key=entry.idempotency_key,
                delay=entry.delay,
            )


async def _outage(bench: Play, url: str, at: float, seconds: float) -> None:
    if seconds:
        async with aiohttp.ClientSession() as http:
            await asyncio.sleep(at)
            bench.say("the ERP goes down")
            (await http.post(url + admin.PATH, json={"down": "silent"})).raise_for_status()
            await asyncio.sleep(seconds)
            (await http.post(url + admin.PATH, json={})).raise_for_status()
            bench.say("the ERP is back")


async def _until_all_ended(bench: Play, dsn: str, peaks: Peaks, outage: asyncio.Task[None]) -> None:
    """Look until the day's last enqueue has been made, the outage is over, and nothing moves by itself any more."""
    began = time.monotonic()
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        while (passed := time.monotonic() - began) < LONGEST:
            row = await (await connection.execute(_LOOK)).fetchone()
            assert row is not None
            peaks.paused, peaks.contexts = max(peaks.paused, row[1]), max(peaks.contexts, row[2] or 0)
            peaks.pss = max(peaks.pss, await asyncio.to_thread(_browsers, peaks))
            if not row[0] and outage.done() and passed > day.ENTRIES[-1].at:
                return
            bench.say(f"{passed:5.0f} s  {row[0]} jobs left, {row[1]} agents paused, {row[2]} contexts")
            await asyncio.sleep(LOOK_EVERY)
    bench.problems.append(f"not all jobs ended within {LONGEST:.0f} s")


def _browsers(peaks: Peaks) -> float:
    """Note this command's browser processes, and return the PSS of those that are there now, in MB."""
    total = 0.0
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if "chrom" in process.name() or "headless" in process.name():
                peaks.processes[process.pid] = process
                total += memory(process.pid)[1]
    return total


async def _stats(url: str) -> dict[str, int]:
    async with aiohttp.ClientSession() as http, http.get(f"{url}/stats") as answer:
        found: dict[str, int] = await answer.json()
        return found


async def _report(bench: Play, dsn: str, peaks: Peaks, erp: dict[str, Any]) -> None:
    """Add the figures, and what of them breaks a promise; the worker has ended."""
    left = len(psutil.wait_procs(peaks.processes.values(), timeout=LEAVING)[1])
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        ended: Counter[str] = Counter(dict(await (await connection.execute(_ENDED)).fetchall()))
        ((retried, losses),) = await (await connection.execute(_SPENT)).fetchall()
    for state, count in ended.items():
        bench.add(f"jobs {state}", count, "")
    for name in ("orders", "orders_twice", "simultaneous", "logins", "operations"):
        bench.add(f"{name}, as the ERP counted", erp[name], "")
    bench.add("operations that found their agent logged in", 100 * (1 - erp["logins"] / max(1, erp["operations"])), "%")
    bench.add("jobs with more than one attempt", retried, "")
    bench.add("losses", losses, "")
    bench.add("agents paused at once, at most", peaks.paused, "")
    bench.add("browser contexts at once, at most", peaks.contexts, "")
    bench.add("PSS of the browsers, at most", peaks.pss, "MB")
    bench.add("browser processes that were left", left, "")
    if ended.keys() - {"completed", "failed"} or ended["failed"] != MEANT_TO_FAIL:
        bench.problems.append(f"the day's jobs ended as {dict(ended)}, of which {MEANT_TO_FAIL} are meant to fail")
    if erp["orders_twice"] or erp["simultaneous"] or left:
        bench.problems.append("an order is there twice, a login was used twice at once, or a browser was left")


if __name__ == "__main__":
    sys.exit(main(__doc__, play, options))
