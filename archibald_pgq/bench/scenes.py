"""What is measured: a function for each scene, which plays its rounds and reports rows.

Guarantees: each round has an empty queue and a worker of its own. Must not: print, or know where the databases are.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import TypeVar

from archibald_pgq.bench.app import KIND
from archibald_pgq.bench.report import Report, Row
from archibald_pgq.bench.stage import BATCH, Run, Stage, jobs_of, makespan, overlaps
from archibald_pgq.domain.new_job import NewJob

T = TypeVar("T")

USERS = [f"user-{n}" for n in range(60)]
SHORT, TINY = 0.010, 0.005
"""Seconds that a job sleeps."""

GAP = (0.020, 0.050)
"""Seconds between two jobs of the latency."""

WARM_UP = 5


@dataclass(frozen=True, slots=True)
class Bench:
    """What a scene needs.

    Attributes:
        quick: small sizes, one round.
        consumers: how many jobs the worker runs at once.
        report: takes the rows; it has the server's limits.
        stage: opens the place of a round.
        say: takes what is played now.
    """

    quick: bool
    consumers: int
    report: Report
    stage: Callable[[], AbstractAsyncContextManager[Stage]]
    say: Callable[[str], None]

    async def rounds(self, what: str, play: Callable[[Stage], Awaitable[T]]) -> list[T]:
        """Play each round on a stage of its own; return what they came to."""
        count, found = 1 if self.quick else 3, []
        for number in range(1, count + 1):
            self.say(f"{what}: round {number} of {count}")
            async with self.stage() as stage:
                found.append(await play(stage))
        return found

    def add(self, row: Row) -> None:
        """Report a row."""
        self.report.rows.append(row)

    def check(self, runs: Sequence[Run]) -> None:
        """Report a user of whom two jobs ran at once."""
        self.report.problems += overlaps(runs)


async def drain(bench: Bench) -> None:
    """Jobs that do nothing, of very many users and of a few."""
    many, each = (1_000, 10) if bench.quick else (10_000, 200)

    async def play(stage: Stage, users: Sequence[str], each: int) -> float:
        await stage.load(jobs_of(users, each))
        async with stage.worker(count := len(users) * each) as worker:
            await worker.until_run()
            written = await worker.until_written()
            runs = await worker.end()
        bench.check(runs)
        return count / (written - min(run.start for run in runs))

    crowd = [f"user-{n}" for n in range(many)]
    for what, users, jobs in ((f"{many:,} users", crowd, 1), (f"{len(USERS)} users × {each:,}", USERS, each)):
        found = await bench.rounds(f"drain, {what}", lambda stage, users=users, jobs=jobs: play(stage, users, jobs))  # type: ignore[misc]
        bench.add(
            Row("drain", f"{what}, jobs that do nothing", "jobs/s", found, "commits/s", bench.report.limits.commits)
        )


async def enqueue(bench: Bench) -> None:
    """Enqueueing, a job a call and a thousand a call."""
    single, calls = (200, 2) if bench.quick else (2_000, 10)

    async def play(stage: Stage) -> tuple[float, float]:
        jobs = jobs_of([f"user-{n}" for n in range(BATCH)], calls)
        await stage.app.enqueue(KIND, user_id="first", data={"seq": 0})
        begin = time.monotonic()
        for n in range(single):
            await stage.app.enqueue(KIND, user_id=f"single-{n}", data={"seq": 0})
        middle = time.monotonic()
        for start in range(0, len(jobs), BATCH):
            await stage.app.enqueue_many(jobs[start : start + BATCH])
        return single / (middle - begin), len(jobs) / (time.monotonic() - middle)

    found = await bench.rounds("enqueue", play)
    limits = bench.report.limits
    single_rates, bulk_rates = zip(*found, strict=True)
    bench.add(Row("enqueue", "one a call", "jobs/s", single_rates, "commits/s", limits.commits))
    bench.add(Row("enqueue", f"{BATCH:,} a call", "jobs/s", bulk_rates, "COPY rows/s", limits.copied_rows))


async def pickup(bench: Bench) -> None:
    """From the commit of an enqueue to the start of its handler, by an idle worker."""
    count = WARM_UP + (40 if bench.quick else 200)

    async def play(stage: Stage) -> list[float]:
        pauses, sent = random.Random(7), []  # noqa: S311  # the same in each round
        async with stage.worker(count) as worker:
            await worker.registered()
            for seq in range(count):
                await asyncio.sleep(pauses.uniform(*GAP))
                await stage.app.enqueue(KIND, user_id=f"user-{seq}", data={"seq": seq})
                sent.append(time.monotonic())
            await worker.until_run()
            runs = await worker.end()
        return [(run.start - sent[run.seq]) * 1000 for run in runs if run.seq >= WARM_UP]

    found = await bench.rounds("pickup", play)
    for percent in (50, 99):
        values = [statistics.quantiles(delays, n=100, method="inclusive")[percent - 1] for delays in found]
        bench.add(Row("pickup", f"p{percent}", "ms", values, "ms a round trip", 1000 / bench.report.limits.round_trips))


async def serial(bench: Bench) -> None:
    """Short jobs of sixty users, one at a time of each: how close to the least time that this can take."""
    each = 5 if bench.quick else 20
    ideal = SHORT * max(each, each * len(USERS) / bench.consumers)

    async def play(stage: Stage) -> float:
        await stage.load(jobs_of(USERS, each, SHORT))
        runs = await stage.run(len(USERS) * each)
        bench.check(runs)
        return makespan(runs)

    found = await bench.rounds("serial", play)
    bench.add(Row("serial", f"{len(USERS)} users × {each} jobs of 10 ms, makespan", "s", found, "s at best", ideal))


async def hot(bench: Bench) -> None:
    """One user with very many jobs before everybody else's few."""
    many, each = (200, 2) if bench.quick else (2_000, 5)
    light = jobs_of(USERS[1:], each, TINY)

    async def play(stage: Stage) -> tuple[float, float, float, float]:
        await stage.load(light)
        alone = await stage.run(len(light))
        await stage.load([*jobs_of(["hot"], many, TINY), *light])
        runs = await stage.run(many + len(light))
        bench.check(runs)
        others = [run for run in runs if run.user_id != "hot"]
        begin = min(run.start for run in runs)
        return makespan(alone), others[-1].end - begin, makespan(runs), many * await _sleep_takes(TINY)

    alone, behind, whole, sleeps = zip(*await bench.rounds("hot", play), strict=True)
    bench.add(Row("hot", f"{len(light)} jobs of the others, alone", "s", alone))
    bench.add(Row("hot", f"… behind {many:,} jobs of one user", "s", behind, "s alone", statistics.median(alone)))
    bench.add(Row("hot", "… all done", "s", whole, "s of sleeps in a row", statistics.median(sleeps)))


async def backlog(bench: Bench) -> None:
    """The first jobs of ever longer backlogs."""
    sizes, count = ((1_000, 5_000), 500) if bench.quick else ((10_000, 200_000), 2_000)
    first: float | None = None
    for size in sizes:
        jobs = jobs_of([f"user-{n}" for n in range(size)], 1)

        async def play(stage: Stage, jobs: Sequence[NewJob] = jobs) -> float:
            await stage.load(jobs)
            return count / makespan((await stage.run(count))[:count])

        found = await bench.rounds(f"backlog of {size:,}", play)
        what, beside = f"the first {count:,} of {size:,} jobs", "" if first is None else f"jobs/s of {sizes[0]:,}"
        bench.add(Row("backlog", what, "jobs/s", found, beside, first))
        first = first or statistics.median(found)


async def _sleep_takes(seconds: float) -> float:
    """Return what a sleep takes on this machine now, which is more than what it is asked for."""
    count, begin = 100, time.monotonic()
    for _ in range(count):
        await asyncio.sleep(seconds)
    return (time.monotonic() - begin) / count


SCENES: dict[str, Callable[[Bench], Awaitable[None]]] = {
    scene.__name__: scene for scene in (drain, enqueue, pickup, serial, hot, backlog)
}
"""By name, in the order in which they are played."""
