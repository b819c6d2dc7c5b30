"""What a worker does for all: taking over from workers that went silent, requests to stop, sweeping.

Guarantees: nobody is judged silent unless this worker's own heartbeat is beyond doubt; one whose death is proven on this machine is
judged at once; the verdict is committed before any lane is touched. Must not: touch a lane of a worker that is not fenced.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from typing import Any

import psycopg
from psycopg import errors

from archibald_pgq.runtime.heartbeat import Heartbeat
from archibald_pgq.runtime.reconnect import Outage
from archibald_pgq.runtime.witness import Death, proof_of_death
from archibald_pgq.store import migrations, workers
from archibald_pgq.store.connect import HANGS, Deadline, connect, told

logger = logging.getLogger(__name__)

SWEEP = 10.0
SERVED = 3.0
"""Seconds between two looks at whether the schema still serves this code, and at which agents' systems fail."""
PROBE = 0.2
"""Seconds between two looks whether a neighbour on this machine has died, while there is one."""
GRACE = 5.0
"""Seconds more than the server gives one statement: only then is the upkeep's connection itself given up."""

SESSION_ENDED = (errors.AdminShutdown, errors.CrashShutdown)
"""The connection looks open until its next use."""

BATCH = 100
"""Lanes of a lost worker released at once: a takeover must not hold many rows for long."""


class Maintenance:
    """The upkeep of one registered worker, on a connection of its own."""

    def __init__(
        self,
        conninfo: str,
        worker_id: int,
        heartbeat: Heartbeat,
        max_losses: int,
        *,
        cancel: Callable[[list[int]], None],
        preempt: Callable[[list[workers.PreemptRequest]], None],
        failing: Callable[[list[str]], None],
        not_served: Callable[[], None],
    ) -> None:
        """Prepare.

        `cancel` is called with the ids of running jobs that somebody asked to cancel, `preempt` with all requests to make room,
        `failing` with the agents of which an outage was noted; `not_served` when the schema was migrated and no longer serves this code.
        """
        self._conninfo, self._worker_id, self._heartbeat = conninfo, worker_id, heartbeat
        self._max_losses, self._cancel, self._preempt = max_losses, cancel, preempt
        self._failing, self._not_served = failing, not_served
        self._asked = asyncio.Event()
        self._swept = self._served = float("-inf")
        self._neighbours: list[workers.Neighbour] = []
        self._deaths: dict[workers.Neighbour, Death] = {}
        """Proven, and not fenced yet."""

    def watch_over(self, neighbours: list[workers.Neighbour]) -> None:
        """These workers live on this machine, by the database; what was said before is out of date."""
        self._neighbours = neighbours

    def look_for_requests(self) -> None:
        """A hint that some running job was asked to stop."""
        self._asked.set()

    async def run(self) -> None:
        """Work until cancelled, once a heartbeat and when asked; reconnects by itself."""
        connection: psycopg.AsyncConnection[tuple[Any, ...]] | None = None
        outage = Outage("upkeep", longest=self._heartbeat.interval)
        try:
            while True:
                try:
                    if connection is None:
                        connection = await connect(self._conninfo)
                    with Deadline(connection, HANGS + GRACE):
                        await self._round(connection)
                except psycopg.Error as error:
                    if connection is None or connection.closed or isinstance(error, SESSION_ENDED):
                        pause = outage.goes_on(error)
                        if connection is not None:
                            await connection.close()
                            connection = None
                        # Whoever asks waits too: where a socket is missing an attempt fails at once, and would keep the loop from all else.
                        await asyncio.sleep(pause)
                        continue
                    logger.warning("upkeep met an error and goes on: %s", told(error))
                else:
                    outage.is_over()
                await self._rest(self._heartbeat.interval)
        finally:
            self._bury()
            if connection is not None:
                await connection.close()

    async def _rest(self, seconds: float) -> None:
        """Wait so long; less if somebody asks, or a neighbour has died: that is looked at meanwhile, without the database."""
        ends = time.monotonic() + seconds
        while (left := ends - time.monotonic()) > 0 and not self._asked.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(left, PROBE) if self._neighbours else left):
                    await self._asked.wait()
            if self._look_for_deaths():
                return

    def _look_for_deaths(self) -> bool:
        """True if one is proven that was not before."""
        found = False
        for neighbour in self._neighbours:
            if neighbour not in self._deaths and (death := proof_of_death(neighbour.mark)) is not None:
                self._deaths[neighbour] = death
                found = True
        return found

    def _bury(self, fenced: frozenset[int] = frozenset()) -> None:
        for neighbour, death in self._deaths.items():
            death.bury(fenced=neighbour.worker_id in fenced)
        self._deaths.clear()

    async def _round(self, connection: psycopg.AsyncConnection[tuple[Any, ...]]) -> None:
        if self._asked.is_set():
            self._asked.clear()
            if job_ids := await workers.cancel_requests(connection, self._worker_id):
                self._cancel(job_ids)
            self._preempt(await workers.preempt_requests(connection, self._worker_id))
        await self._fence_dead(connection)
        await self._take_over(connection)
        now = time.monotonic()
        if now - self._served >= SERVED:
            self._served = now
            if not await migrations.serves(connection):
                self._not_served()
            self._failing(await workers.failing_agents(connection))
        if now - self._swept >= SWEEP:
            self._swept = now
            await workers.sweep(connection)

    async def _fence_dead(self, connection: psycopg.AsyncConnection[tuple[Any, ...]]) -> None:
        """Fence those whose death is proven; one that could not be, because its last turn hangs, is found and tried again."""
        fenced: set[int] = set()
        try:
            for neighbour in self._deaths:
                for lost in await workers.fence_dead(connection, self._worker_id, neighbour):
                    fenced.add(lost.worker_id)
                    logger.warning(
                        "worker %d (%s, process %d) has died: its agents are taken over at once",
                        lost.worker_id,
                        lost.host,
                        lost.pid,
                    )
        finally:
            self._bury(frozenset(fenced))

    async def _take_over(self, connection: psycopg.AsyncConnection[tuple[Any, ...]]) -> None:
        if not await workers.takeover_due(connection, self._worker_id):
            return
        trusted = self._heartbeat.trusted  # to judge others; a verdict that was committed holds, whoever finds it
        for lost in await workers.fence_stale(connection, self._worker_id) if trusted else ():
            logger.warning(
                "worker %d (%s, process %d) has gone silent: its agents are taken over",
                lost.worker_id,
                lost.host,
                lost.pid,
            )
        # Not only of those fenced just now: whoever fenced them may have died, or lost the server, before it came to this.
        await workers.end_lost_backends(connection, silent=trusted)
        while released := await workers.release_fenced(connection, BATCH, self._max_losses):
            for lane in released:
                logger.warning("took over %s: job %s is %s", lane.user_id, lane.job_id, lane.fate)
            if len(released) < BATCH or any(lane.job_id is None for lane in released):
                return
