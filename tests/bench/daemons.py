"""Several workers on one server: jobs per second in all, and the checker's judgement of what their handlers wrote down.

Run as `python -m tests.bench.daemons`. All workers are there before the jobs are, which appear with one commit: what is measured is how
they share the work, and not how long eight processes take to start. Handlers write each start and end into a file, which costs more
than the job does.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from functools import partial
from typing import Any

import psycopg

from archibald_pgq import NewJob
from tests.acceptance.events import Event, append, now, read
from tests.acceptance.faults import scene
from tests.bench.scene import Play, main, numbers

KIND = "fault-read"
BATCH = 1000


def options(parser: argparse.ArgumentParser) -> None:
    """Sizes."""
    parser.add_argument("--daemons", type=numbers, default=[1, 2, 4, 8], metavar="N,N", help="numbers of workers")
    parser.add_argument("--users", type=int, default=600)
    parser.add_argument("--each", type=int, default=50, help="jobs of each user")
    parser.add_argument("--rounds", type=int, default=3)


async def play(bench: Play) -> None:
    """Measure each number of workers."""
    chosen = bench.options
    cases = {f"{workers} workers": workers for workers in chosen.daemons}
    rates = await bench.in_turns(cases, partial(_rate, bench))
    for name, rate in zip(cases, rates, strict=True):
        bench.add(f"{name}, {chosen.users} users × {chosen.each} jobs", rate, "jobs/s")
        bench.add(f"… ratio to {chosen.daemons[0]}", rate / rates[0], "×")
    bench.add("violations found by the checker", len(bench.problems), "")


async def _rate(bench: Play, workers: int) -> float:
    """Let them run what appears, have the checker judge, and return the jobs per second from the first start to the last end."""
    chosen = bench.options
    count: int = chosen.users * chosen.each
    async with bench.stage() as stage, scene(stage.dsn) as made:
        await made.app.stats()  # opens it, which declares the kinds
        daemons = [made.spawn(f"worker-{n}", "app", stage.dsn, {}) for n in range(workers)]
        for daemon in daemons:
            await made.registered(daemon)
        data: dict[str, Any] = {"do": "short", "seconds": 0.0}
        jobs = [NewJob(KIND, user_id=f"user-{n % chosen.users}", data=data) for n in range(count)]
        async with await psycopg.AsyncConnection.connect(stage.dsn) as connection:
            for start in range(0, count, BATCH):
                part = jobs[start : start + BATCH]
                for job, new in zip(await made.app.enqueue_many(part, connection=connection), part, strict=True):
                    append(made.history, Event(now(), "enqueued", job_id=job.id, user_id=new.user_id))
        while await made.look.value("SELECT EXISTS (SELECT FROM archibald.jobs)"):
            assert all(daemon.process.poll() is None for daemon in daemons)
            await asyncio.sleep(0.05)  # who looks is not to take a core from them
        await made.stop_all()
        try:
            await made.check()
        except AssertionError as error:
            bench.problems.append(f"{workers} workers: {error}")
        at = [event.at for event in read(made.history) if event.what in ("start", "end")]
    seconds: float = max(at) - min(at)
    return float(count) / seconds


if __name__ == "__main__":
    sys.exit(main(__doc__, play, options))
