"""Plays a schedule of faults over a server, workers and enqueuers, lets everything end, and asks the checker.

Guarantees: every death, stop and continuation of a process is in the history; the faults end before the judgement begins.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import psycopg
from rich.console import Console
from rich.progress import Progress

from archibald_pgq import Archibald
from archibald_pgq.store import migrations
from tests.acceptance import fault_app
from tests.acceptance.faults import CHECKOUT, JOBS, Daemon, OwnServer, Scene, Wire
from tests.acceptance.history import Event, JobRow, append, now, read, violations
from tests.chaos.schedule import Fault, schedule
from tests.support import looking

LEASE = 2.0
ENDS_WITHIN = 120.0
"""Seconds after the last fault in which every job must have ended."""

ENQUEUERS = 2
BACKENDS = (
    "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'archibald-pgq %' "
    "ORDER BY pid"
)


@dataclass
class Result:
    """What came of it."""

    jobs: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    takeovers: int = 0
    requeues: int = 0
    violations: list[str] = field(default_factory=list)


class Conductor:
    """One run."""

    def __init__(
        self, server: OwnServer, folder: Path, console: Console, *, seed: int, seconds: float, daemons: int
    ) -> None:
        """Prepare; `folder` gets the history and the logs."""
        self._server, self._folder, self._seed, self._seconds = server, folder, seed, seconds
        self._wanted, self._console, self._started = daemons, console, 0
        self._result = Result()
        self._alive: dict[Daemon, Wire] = {}
        self._dead: set[int] = set()
        self._scene: Scene

    async def run(self) -> Result:
        """Play it."""
        await self._server.start()
        await asyncio.to_thread(migrations.upgrade, self._server.dsn)
        async with Archibald(self._server.dsn) as app, looking(self._server.dsn) as look:
            fault_app.register(app)
            self._scene = Scene(self._server.dsn, self._folder, look, app)
            await app.stats()  # declares the operations
            enqueuers = [self._enqueuer(number) for number in range(ENQUEUERS)]
            watch = asyncio.create_task(self._keep())
            try:
                await self._play()
                for process in enqueuers:
                    process.terminate()
                codes = [await asyncio.to_thread(process.wait, 60) for process in enqueuers]
                await self._judge()
                if any(codes):  # one that ended before its time proves less than the figures seem to say
                    self._result.violations.append(f"the enqueuers ended with {codes}: see their logs")
            finally:
                watch.cancel()
                await asyncio.gather(watch, return_exceptions=True)
                self._scene.clear()
                for wire in self._alive.values():
                    await wire.__aexit__()
                for process in enqueuers:
                    process.kill()
                    process.wait()
        return self._result

    def _enqueuer(self, number: int) -> subprocess.Popen[bytes]:
        log = (self._folder / f"enqueuer-{number}.log").open("ab")
        seed = str(self._seed * 10 + number)
        return subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.enqueuer", self._server.dsn, str(self._folder), seed],
            cwd=CHECKOUT,
            stdout=log,
            stderr=log,
        )

    async def _keep(self) -> None:
        """Write down every death, and start a daemon for each that died."""
        while True:
            for daemon, wire in list(self._alive.items()):
                if daemon.process.poll() is not None:
                    append(self._scene.history, Event(now(), "killed", daemon.pid, daemon.name))
                    del self._alive[daemon]
                    await wire.__aexit__()
            while len(self._alive) < self._wanted:
                wire = await Wire(self._server.dsn).__aenter__()
                self._started += 1
                settings = {"ARCHIBALD_LEASE": LEASE, "ARCHIBALD_SHUTDOWN_GRACE": 1, "WORKER_CONCURRENCY": 4}
                self._alive[self._scene.spawn(f"d{self._started}", "app", wire.dsn, settings)] = wire
            await asyncio.sleep(0.02)

    async def _play(self) -> None:
        began = now()
        with Progress(console=self._console) as progress:
            bar = progress.add_task("faults", total=self._seconds)
            for fault in schedule(self._seed, self._seconds):
                await asyncio.sleep(max(0.0, fault.at - (now() - began)))
                progress.update(bar, completed=now() - began, description=fault.kind)
                with contextlib.suppress(psycopg.Error, psutil.NoSuchProcess, ProcessLookupError):
                    await self._strike(fault)
                    self._result.faults[fault.kind] += 1

    async def _strike(self, fault: Fault) -> None:
        daemons = list(self._alive)
        daemon = daemons[fault.rank % len(daemons)]
        wire = self._alive[daemon]
        match fault.kind:
            case "kill":
                daemon.process.kill()
            case "term":
                daemon.signal(signal.SIGTERM)
            case "stop short" | "stop long":
                await self._scene.freeze(daemon)
                await asyncio.sleep(LEASE / 4 if fault.kind == "stop short" else LEASE * 2)
                self._scene.thaw(daemon)
            case "black hole":
                wire.hold()
                await asyncio.sleep(LEASE * (0.25 + fault.rank % 8 / 4))
                wire.release()
            case "reset":
                wire.reset()
            case "end a backend" | "end all backends" | "kill a backend":
                await self._strike_backends(fault)
            case _:
                await self._server.stop(signal.SIGINT if fault.kind == "restart" else signal.SIGQUIT)
                await self._server.start()

    async def _strike_backends(self, fault: Fault) -> None:
        async with looking(self._server.dsn) as look:
            pids = [row[0] for row in await look.rows(BACKENDS)]
            if not pids:
                return
            one = pids[fault.rank % len(pids)]
            if fault.kind == "kill a backend":
                psutil.Process(one).kill()
                return
            for pid in pids if fault.kind == "end all backends" else [one]:
                await look.rows("SELECT pg_terminate_backend(%s)", pid)

    async def _judge(self) -> None:
        over = now() + ENDS_WITHIN
        live = "SELECT count(*) FROM archibald.jobs WHERE state IN ('queued', 'running')"
        async with looking(self._server.dsn) as look:
            await look.rows("UPDATE archibald.agents SET paused_until = now() WHERE paused_until IS NOT NULL")
            while await look.value(live) and now() < over:  # noqa: ASYNC110  # of other processes
                await asyncio.sleep(0.2)
            rows = [JobRow(*row) for row in await look.rows(JOBS)]
            self._result.requeues = await look.value(
                "SELECT coalesce(sum(requeue_count), 0)::int FROM archibald.all_jobs"
            )
            self._result.takeovers = await look.value(
                "SELECT count(*) FROM archibald.workers WHERE fenced_at IS NOT NULL"
            )
        self._result.jobs = Counter(f"jobs {row.state}" for row in rows)
        self._result.violations = violations(read(self._scene.history), rows)
