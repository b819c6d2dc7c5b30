"""The workers of a run: each behind a wire of its own, replaced when it dies, its death written down at once.

Guarantees: the time of a death in the history is the moment at which the kernel says so, whatever this process is busy with.
Must not: kill anything.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import threading
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from tests.acceptance.events import Event, append, now
from tests.acceptance.faults import Daemon, Scene, Wire
from tests.chaos.schedule import LEASE

SETTINGS = {
    "ARCHIBALD_LEASE": LEASE,
    "ARCHIBALD_SHUTDOWN_GRACE": 1,
    "ARCHIBALD_PREEMPT_GRACE": 0.5,
    "ARCHIBALD_MAX_LOSSES": 5,  # jobs near it run alone, one after the other: with 3, as many are struck here, little else would run
    "WORKER_CONCURRENCY": 5,
}
LOOK = 0.02


@dataclass(eq=False)
class Member:
    """A worker."""

    daemon: Daemon
    wire: Wire
    death: threading.Thread
    struck: bool = False
    """While a fault lasts; the next one meets somebody else."""


@dataclass
class Crew:
    """All workers that live."""

    scene: Scene
    wanted: int
    extra: dict[str, Any]
    """Further settings of each worker."""
    members: list[Member] = field(default_factory=list)
    started: int = 0
    _read: int = 0
    _running: defaultdict[int, set[int]] = field(default_factory=lambda: defaultdict(set))

    async def keep(self) -> None:
        """Start a worker for each that is missing, until cancelled."""
        while True:
            for member in [member for member in self.members if member.daemon.process.poll() is not None]:
                self.members.remove(member)
                await asyncio.to_thread(member.death.join)
                await member.wire.__aexit__()
            while len(self.members) < self.wanted:
                wire = await Wire(self.scene.database).__aenter__()
                self.started += 1
                daemon = self.scene.spawn(f"d{self.started}", "app", wire.dsn, {**SETTINGS, **self.extra})
                death = threading.Thread(target=_write_down, args=(self.scene, daemon), daemon=True)
                death.start()
                self.members.append(Member(daemon, wire, death))
            await asyncio.sleep(LOOK)

    async def close(self) -> None:
        """End all."""
        self.scene.clear()
        for member in self.members:
            member.death.join()
            await member.wire.__aexit__()

    def running(self, member: Member) -> int:
        """How many handlers run there, by the history."""
        self._look()
        return len(self._running[member.daemon.pid])

    async def next_start(self) -> int:
        """Wait until a handler starts; return its process."""
        self._look()
        while not (pids := self._look()):  # noqa: ASYNC110  # of other processes
            await asyncio.sleep(LOOK / 4)
        return pids[-1]

    def _look(self) -> list[int]:
        """Read the lines that came since the last look; return the processes of those that are starts."""
        started = []
        with contextlib.suppress(FileNotFoundError), self.scene.history.open("rb") as file:
            file.seek(self._read)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._read += len(line)
                event = json.loads(line)
                running = self._running[event["pid"]]
                if event["what"] == "start":
                    running.add(event["job_id"])
                    started.append(event["pid"])
                elif event["what"] == "end":
                    running.discard(event["job_id"])
        return started


def _write_down(scene: Scene, daemon: Daemon) -> None:
    descriptor = os.pidfd_open(daemon.pid)
    try:
        select.select([descriptor], [], [])
        append(scene.history, Event(now(), "killed", daemon.pid, daemon.name))
    finally:
        os.close(descriptor)
