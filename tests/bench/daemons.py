"""Several workers on one server: jobs per second in all, and the checker's judgement of what their handlers wrote down.

Run as `python -m tests.bench.daemons`. All workers are there before the jobs are, which become due with one commit: what is measured is
how they share the work, and not how long eight processes take to start. The agents have had a job before and were paused; with `--new`
nobody knows them, and one commit brings all their jobs. Handlers write each start and end into a file, which costs more than the job does;
with `--seconds` they wait so long besides, and one worker does not fill the server.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

import psycopg

from archibald_pgq import NewJob
from tests.acceptance.events import Event, append, now, read
from tests.acceptance.faults import Scene, scene
from tests.bench.scene import Play, main, numbers

KIND = "fault-read"
BATCH = 1000


def options(parser: argparse.ArgumentParser) -> None:
    """Sizes."""
    parser.add_argument("--daemons", type=numbers, default=[1, 2, 4, 8], metavar="N,N", help="numbers of workers")
    parser.add_argument("--users", type=int, default=600)
    parser.add_argument("--each", type=int, default=50, help="jobs of each user")
    parser.add_argument(
        "--seconds", type=float, help="that each job waits; 0: for the others' turns; left out: for nothing"
    )
    parser.add_argument("--new", action="store_true", help="of agents that never had a job, instead of known ones")
    parser.add_argument("--rounds", type=int, default=3)


async def play(bench: Play) -> None:
    """Measure each number of workers."""
    chosen = bench.options
    cases = {f"{workers} workers": workers for workers in chosen.daemons}
    rates = await bench.in_turns(cases, partial(_rate, bench))
    for name, rate in zip(cases, rates, strict=True):
        what = "jobs" if chosen.seconds is None else f"jobs of {chosen.seconds * 1000:g} ms"
        bench.add(f"{name}, {chosen.users} users × {chosen.each} {what}", rate, "jobs/s")
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
        # What blocks for no time waits for nothing; what sleeps for no time lets the other consumers' handlers go first.
        do = {"do": "block", "seconds": 0.0} if chosen.seconds is None else {"do": "short", "seconds": chosen.seconds}
        jobs = [NewJob(KIND, user_id=f"user-{n % chosen.users}", data=do) for n in range(count)]
        if not chosen.new:
            await _enqueue(made, jobs[: chosen.users])
            await made.look.until("SELECT NOT EXISTS (SELECT FROM archibald.jobs)")
            await made.look.rows("SELECT archibald.pause_agent(user_id) FROM archibald.agents ORDER BY id")
        async with await psycopg.AsyncConnection.connect(stage.dsn) as connection:
            await _enqueue(made, jobs, connection if chosen.new else None)
            begun = now()
            if not chosen.new:
                await connection.execute("SELECT archibald.resume_agent(user_id) FROM archibald.agents ORDER BY id")
        while await made.look.value("SELECT EXISTS (SELECT FROM archibald.jobs)"):
            assert all(daemon.process.poll() is None for daemon in daemons)
            await asyncio.sleep(0.05)  # who looks is not to take a core from them
        await made.stop_all()
        try:
            await made.check()
        except AssertionError as error:
            bench.problems.append(f"{workers} workers: {error}")
        at = [event.at for event in read(made.history) if event.what in ("start", "end") and event.at > begun]
    seconds: float = max(at) - min(at)
    return float(count) / seconds


async def _enqueue(made: Scene, jobs: Sequence[NewJob], connection: psycopg.AsyncConnection[Any] | None = None) -> None:
    """Enqueue them in pieces, in this connection's transaction if there is one, and tell the checker."""
    for start in range(0, len(jobs), BATCH):
        part = jobs[start : start + BATCH]
        for job, new in zip(await made.app.enqueue_many(part, connection=connection), part, strict=True):
            append(made.history, Event(now(), "enqueued", job_id=job.id, user_id=new.user_id))


if __name__ == "__main__":
    sys.exit(main(__doc__, play, options))
