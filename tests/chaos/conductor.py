"""Plays a schedule of faults over a server, workers and enqueuers, lets everything end, and asks the checker.

Guarantees: the faults end before the judgement begins; all that was started is gone at the end. Must not: judge (that is the checker's).
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich.progress import Progress

from archibald_pgq import Archibald
from archibald_pgq.store import migrations
from tests.acceptance import fault_app
from tests.acceptance.faults import CHECKOUT, JOBS, OwnServer, Scene, Wire
from tests.acceptance.history import JobRow, now, read, stillness, violations
from tests.chaos.crew import Crew
from tests.chaos.mutants import Mutant
from tests.chaos.schedule import Fault, schedule
from tests.chaos.strikes import Strikes
from tests.support import looking

ENDS_WITHIN = 60.0
"""Seconds after the last fault in which every job must have ended."""

ENQUEUERS = 2
BACKLOG = 4
"""Jobs that may wait for one agent: what waits at the end has to end soon."""


@dataclass
class Result:
    """What came of it."""

    jobs: Counter[str] = field(default_factory=Counter)
    """By state."""
    faults: Counter[str] = field(default_factory=Counter)
    """By kind."""
    counts: dict[str, int] = field(default_factory=dict)
    last_end: float = 0.0
    """Seconds from the end of the faults to the end of the last job."""
    longest_still: float = 0.0
    """Seconds that an agent stood still though a job of it waited."""
    violations: list[str] = field(default_factory=list)


class Conductor:
    """One run."""

    def __init__(
        self,
        server: OwnServer,
        folder: Path,
        progress: Progress,
        *,
        seed: int,
        seconds: float,
        daemons: int,
        mutant: Mutant | None = None,
    ) -> None:
        """Prepare; `folder` gets the history and the logs. `mutant`: spoils the product, to see that it is found."""
        self._server, self._folder, self._seed, self._seconds = server, folder, seed, seconds
        self._wanted, self._progress, self._mutant = daemons, progress, mutant
        self._result = Result()

    async def run(self) -> Result:
        """Play it."""
        phase = self._progress.add_task("server and workers", total=None)
        await self._server.start()
        await asyncio.to_thread(migrations.upgrade, self._server.dsn)
        extra = {}
        if self._mutant is not None:
            self._mutant.spoil_database(self._server.dsn)
            extra["FAULT_MUTANT"] = self._mutant.name
        async with Archibald(self._server.dsn) as app, looking(self._server.dsn) as look:
            fault_app.register(app)
            scene = Scene(self._server.dsn, self._folder, look, app)
            await app.stats()  # declares the operations
            wires = [await Wire(self._server.dsn).__aenter__() for _ in range(ENQUEUERS)]
            enqueuers = [self._enqueuer(number, wire) for number, wire in enumerate(wires)]
            crew = Crew(scene, self._wanted, extra)
            keeping = asyncio.create_task(crew.keep())
            self._progress.remove_task(phase)
            try:
                await self._play(Strikes(self._server, crew, wires))
                phase = self._progress.add_task("all must end", total=None)
                for process in enqueuers:
                    process.terminate()
                codes = [await asyncio.to_thread(process.wait, ENDS_WITHIN) for process in enqueuers]
                if any(codes):  # one that ended before its time proves less than the figures seem to say
                    self._result.violations.append(f"the enqueuers ended with {codes}: see their logs")
                await self._judge(scene)
                self._progress.remove_task(phase)
            finally:
                keeping.cancel()
                await asyncio.gather(keeping, return_exceptions=True)
                await crew.close()
                for process in enqueuers:
                    process.kill()
                    process.wait()
                for wire in wires:
                    await wire.__aexit__()
        self._result.counts["workers started"] = crew.started
        return self._result

    def _enqueuer(self, number: int, wire: Wire) -> subprocess.Popen[bytes]:
        with (self._folder / f"enqueuer-{number}.log").open("ab") as log:
            seed = str(self._seed * 10 + number)
            return subprocess.Popen(
                [sys.executable, "-m", "tests.chaos.enqueuer", wire.dsn, str(self._folder), seed, str(self._seconds)],
                cwd=CHECKOUT,
                env={**os.environ, "ARCHIBALD_AGENT_BACKLOG": str(BACKLOG)},
                stdout=log,
                stderr=log,
            )

    async def _play(self, strikes: Strikes) -> None:
        began = now()
        phase = self._progress.add_task("faults", total=self._seconds)

        async def play(fault: Fault) -> None:
            if await strikes.strike(fault):
                self._result.faults[fault.kind] += 1

        async with asyncio.TaskGroup() as under_way:
            for fault in schedule(self._seed, self._seconds):
                while (left := fault.at - (now() - began)) > 0:
                    self._progress.update(phase, completed=now() - began)
                    await asyncio.sleep(min(left, 0.5))
                self._progress.update(phase, completed=now() - began, description=fault.kind)
                under_way.create_task(play(fault))
        self._progress.remove_task(phase)

    async def _judge(self, scene: Scene) -> None:
        began = now()
        live = "SELECT count(*) FROM archibald.jobs WHERE state IN ('queued', 'running')"
        async with looking(self._server.dsn) as look:
            await look.rows("UPDATE archibald.agents SET paused_until = now() WHERE paused_until IS NOT NULL")
            while await look.value(live) and now() < began + ENDS_WITHIN:  # noqa: ASYNC110  # of other processes
                await asyncio.sleep(0.2)
            self._result.last_end = now() - began
            rows = [JobRow(*row) for row in await look.rows(JOBS)]
            lost = {row[0] for row in await look.rows("SELECT id FROM archibald.workers WHERE fenced_at IS NOT NULL")}
            sums = await look.rows(
                "SELECT coalesce(sum(losses), 0)::int, coalesce(sum(requeue_count), 0)::int, coalesce(sum(preemptions), 0)::int "
                "FROM archibald.all_jobs"
            )
        (self._folder / "rows.json").write_text(
            json.dumps({"rows": [asdict(row) for row in rows], "lost": sorted(lost)})
        )
        events = read(scene.history)
        self._result.counts = {
            "handlers started": sum(event.what == "start" for event in events),
            "takeovers": len(lost),
            **dict(zip(("losses", "requeues", "preemptions"), sums[0], strict=True)),
        }
        self._result.jobs = Counter(row.state for row in rows)
        self._result.longest_still = stillness(events)
        self._result.violations += violations(events, rows, lost)
