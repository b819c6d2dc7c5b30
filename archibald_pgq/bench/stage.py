"""An empty queue, and a worker on it: the place of one round.

Guarantees: the worker is the daemon, a process of `archibald-pgq run` without the caller's settings, and has ended when the block ends;
the database is gone after it. Must not: know what is measured.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

from archibald_pgq.app import Archibald
from archibald_pgq.bench.app import KIND, declare
from archibald_pgq.domain.new_job import NewJob
from archibald_pgq.domain.views import WorkerRecord
from archibald_pgq.errors import ArchibaldError
from archibald_pgq.processes.children import Child, environment
from archibald_pgq.store import scratch

BATCH = 1000
LOOK_EVERY = 0.005
PATIENCE = 300.0
"""Seconds after which a round that does not come to its end is given up."""


class BenchError(ArchibaldError):
    """A round that could not be measured; the text says why."""


class Run(NamedTuple):
    """A run of a handler, in seconds of the clock that processes of a machine share."""

    user_id: str
    seq: int
    start: float
    end: float


def jobs_of(users: Iterable[str], each: int, seconds: float = 0.0) -> list[NewJob]:
    """Return so many jobs of each user, the first of everybody first."""
    users = list(users)
    more = {"seconds": seconds} if seconds else {}
    return [NewJob(KIND, user_id=user, data={"seq": seq, **more}) for seq in range(each) for user in users]


def makespan(runs: Sequence[Run]) -> float:
    """Return the seconds from the first start to the last end."""
    return max(run.end for run in runs) - min(run.start for run in runs)


def overlaps(runs: Sequence[Run]) -> list[str]:
    """Name each user of whom a job started while another one ran; an empty list if that never was."""
    ends: dict[str, float] = {}
    found = []
    for run in sorted(runs, key=lambda run: run.start):
        latest = ends.get(run.user_id, run.start)
        if run.start < latest:
            found.append(f"two jobs of {run.user_id} ran at once")
        ends[run.user_id] = max(latest, run.end)
    return found


class Stage:
    """The queue of one round; made by `stage`."""

    def __init__(self, dsn: str, folder: Path, app: Archibald) -> None:
        """Wrap an empty migrated database."""
        self.dsn, self.app = dsn, app
        self._folder, self._numbers = folder, itertools.count(1)

    async def load(self, jobs: Sequence[NewJob]) -> None:
        """Enqueue jobs, a thousand a call, and bring the tables' statistics up to date."""
        for start in range(0, len(jobs), BATCH):
            await self.app.enqueue_many(jobs[start : start + BATCH])
        await asyncio.to_thread(scratch.vacuum, self.dsn)

    @asynccontextmanager
    async def worker(self, expected: int = 0, *, keep: bool = True) -> AsyncIterator[Daemon]:
        """Start a worker, and stop it at the end of the block.

        `expected`: the runs for which `Daemon.until_run` waits. `keep`: it keeps them all in memory, for `Daemon.end`.
        """
        number = next(self._numbers)
        runs = self._folder / f"runs-{number}.json"
        runs.unlink(missing_ok=True)
        child = await Child.start(
            *("the bench's worker", "archibald_pgq", "run", "archibald_pgq.bench.app:app"),
            log=self._folder / f"worker-{number}.log",
            env=environment(
                ARCHIBALD_DATABASE_URL=self.dsn,
                ARCHIBALD_SHUTDOWN_GRACE="3",
                BENCH_RUNS=str(runs) if keep else "",
                BENCH_EXPECTED=str(expected),
            ),
        )
        try:
            yield Daemon(child, runs, self.dsn, self.app)
        finally:
            await child.stop()

    async def run(self, count: int) -> list[Run]:
        """Let a worker run so many jobs, and return what it ran until it had ended: at least these."""
        async with self.worker(count) as worker:
            await worker.until_run()
            return await worker.end()


class Daemon:
    """The worker of a stage."""

    def __init__(self, child: Child, runs: Path, dsn: str, app: Archibald) -> None:
        """Wrap a started process."""
        self._child, self._runs, self._dsn, self._app = child, runs, dsn, app

    async def registered(self, count: int = 1) -> list[WorkerRecord]:
        """Wait until so many workers of the queue are registered; return them."""
        async with _patience("the worker did not register"):
            while len(workers := await self._app.workers()) < count:  # noqa: ASYNC110  # other processes register
                await asyncio.sleep(LOOK_EVERY)
            return workers

    async def until_run(self) -> None:
        """Wait until the handlers have run as often as is expected."""
        async with _patience("its jobs did not all run"):
            await self._child.first_line()

    async def until_written(self) -> float:
        """Wait until no live job is left, which handlers must have run already; return when that was."""
        async with _patience("its jobs did not all end"):
            await scratch.until_empty(self._dsn)
        return time.monotonic()

    async def end(self) -> list[Run]:
        """Stop it, and return what its handlers did in the order of their ends."""
        await self._child.stop()
        if not self._runs.exists():
            raise BenchError(
                "the bench's worker did not end in time, so that what it measured is lost; run the bench again"
            )
        return sorted(itertools.starmap(Run, json.loads(self._runs.read_text())), key=lambda run: run.end)


@asynccontextmanager
async def stage(databases: scratch.Scratch, folder: Path) -> AsyncIterator[Stage]:
    """Yield an empty queue in a database of its own."""
    dsn = await asyncio.to_thread(databases.copy)
    try:
        async with Archibald(dsn) as app:
            declare(app)
            yield Stage(dsn, folder, app)
    finally:
        await asyncio.to_thread(databases.drop, dsn)


@asynccontextmanager
async def _patience(what: str) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(PATIENCE):
            yield
    except TimeoutError:
        raise BenchError(f"a round of the bench was given up after {PATIENCE:.0f} s: {what}") from None
