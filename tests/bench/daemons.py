"""Several workers on one server: jobs per second in all, and the checker's judgement of what their handlers wrote down.

Run as `python -m tests.bench.daemons`. Handlers write each start and end into a file, which costs more than the job does.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

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
    parser.add_argument("--each", type=int, default=20, help="jobs of each user")


async def play(bench: Play) -> None:
    """For each number of workers: let them run what is enqueued, then judge."""
    chosen = bench.options
    count = chosen.users * chosen.each
    base: float | None = None
    for workers in chosen.daemons:
        bench.say(f"{workers} workers")
        async with bench.stage() as stage, scene(stage.dsn) as made:
            await made.app.stats()  # opens it, which declares the kinds
            data: dict[str, Any] = {"do": "short", "seconds": 0.0}
            jobs = [NewJob(KIND, user_id=f"user-{n % chosen.users}", data=data) for n in range(count)]
            for start in range(0, count, BATCH):
                part = jobs[start : start + BATCH]
                for job, new in zip(await made.app.enqueue_many(part), part, strict=True):
                    append(made.history, Event(now(), "enqueued", job_id=job.id, user_id=new.user_id))
            daemons = [made.spawn(f"worker-{n}", "app", stage.dsn, {}) for n in range(workers)]
            for daemon in daemons:
                await made.registered(daemon)
            while await made.look.value("SELECT EXISTS (SELECT FROM archibald.jobs)"):
                assert all(daemon.process.poll() is None for daemon in daemons)
            await made.stop_all()
            try:
                await made.check()
            except AssertionError as error:
                bench.problems.append(f"{workers} workers: {error}")
            events = [event.at for event in read(made.history) if event.what in ("start", "end")]
        rate = count / (max(events) - min(events))
        base = base or rate
        bench.add(f"{workers} workers, {chosen.users} users × {chosen.each} jobs", rate, "jobs/s")
        bench.add(f"… ratio to {chosen.daemons[0]}", rate / base, "×")
    bench.add("violations found by the checker", len(bench.problems), "")


if __name__ == "__main__":
    sys.exit(main(__doc__, play, options))
