"""The faults: what each kind in the schedule does to a server, the workers and the enqueuers.

Guarantees: a fault that lasts ends by itself, also if its target has died; stops are in the history. Must not: decide when.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Sequence

import psutil
import psycopg

from tests.acceptance.faults import OwnServer, Wire
from tests.chaos.crew import Crew, Member
from tests.chaos.schedule import Aim, Fault
from tests.support import looking

PATIENCE = 3.0
"""Seconds in which a handler has to start somewhere."""

BACKENDS = (
    "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'archibald-pgq %' "
    "ORDER BY pid"
)


class Strikes:
    """All that strikes one scene."""

    def __init__(self, server: OwnServer, crew: Crew, enqueuers: Sequence[Wire]) -> None:
        """Prepare; `enqueuers`: their wires."""
        self._server, self._crew, self._enqueuers = server, crew, enqueuers
        self._serving = asyncio.Lock()

    async def strike(self, fault: Fault) -> bool:
        """Do it, and wait until it is over; False if there was nothing to meet."""
        try:
            match fault.kind:
                case "restart" | "crash":
                    async with self._serving:
                        await self._server.stop(signal.SIGINT if fault.kind == "restart" else signal.SIGQUIT)
                        await self._server.start()
                    return True
                case "end a backend" | "end all backends" | "kill a backend":
                    return await self._strike_backends(fault)
                case "enqueuers' black hole":
                    await self._cut_off(self._enqueuers[fault.rank % len(self._enqueuers)], fault.seconds)
                    return True
                case "enqueuers' reset":
                    for wire in self._enqueuers:
                        wire.reset()
                    return True
                case _:
                    member = await self._target(fault)
                    return member is not None and await self._strike_worker(fault, member)
        except (psycopg.Error, psutil.NoSuchProcess, ProcessLookupError):
            return False

    async def _target(self, fault: Fault) -> Member | None:
        free = self._free()
        if fault.aim is Aim.CLAIM:
            try:
                async with asyncio.timeout(PATIENCE):
                    while True:
                        pid = await self._crew.next_start()
                        for member in self._free():
                            if member.daemon.pid == pid:
                                return member
            except TimeoutError:
                return None
        if not free:
            return None
        turned = free[fault.rank % len(free) :] + free[: fault.rank % len(free)]
        return turned[0] if fault.aim is Aim.ANY else max(turned, key=self._crew.running)

    def _free(self) -> list[Member]:
        return [member for member in self._crew.members if not member.struck and member.daemon.process.poll() is None]

    async def _strike_worker(self, fault: Fault, member: Member) -> bool:
        daemon = member.daemon
        member.struck = True
        try:
            match fault.kind.split()[0]:
                case "kill":
                    daemon.process.kill()
                case "term":
                    daemon.signal(signal.SIGTERM)
                case "reset":
                    member.wire.reset()
                case "black":
                    await self._cut_off(member.wire, fault.seconds)
                case "stop":
                    await self._crew.scene.freeze(daemon)
                    await asyncio.sleep(fault.seconds)
                    if daemon.process.poll() is None:
                        self._crew.scene.thaw(daemon)
                case other:
                    raise ValueError(f"there is no fault {other}")
        finally:
            member.struck = False
        return True

    async def _cut_off(self, wire: Wire, seconds: float) -> None:
        wire.hold()
        try:
            await asyncio.sleep(seconds)
        finally:
            wire.release()

    async def _strike_backends(self, fault: Fault) -> bool:
        async with looking(self._server.dsn) as look:
            pids = [row[0] for row in await look.rows(BACKENDS)]
            if not pids:
                return False
            one = pids[fault.rank % len(pids)]
            if fault.kind == "kill a backend":
                psutil.Process(one).kill()
                return True
            for pid in pids if fault.kind == "end all backends" else [one]:
                await look.rows("SELECT pg_terminate_backend(%s)", pid)
        return True
