"""The day itself: the ERP and a worker as processes, the enqueues at their times, another program that takes a lock.

Guarantees: whatever happens, both processes have ended when `conduct` returns or raises; the day ends by itself, also when
jobs are stuck. Must not: show anything, or know where the database is from.
"""

from __future__ import annotations

import asyncio
import importlib
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Protocol

import aiohttp
import psycopg

from archibald_pgq import Archibald
from archibald_pgq.demo.summary import Summary, summarize
from archibald_pgq.demo.watch import JobRow, Snapshot, Watch, last_id
from archibald_pgq.processes.children import Child, environment
from archibald_pgq.store.dsn import to_libpq

EXAMPLE = "archibald_pgq.examples.erp"
LOOK_EVERY = 0.25
LOCK_SECONDS = 15.0
"""Not scaled: the backoff of a requeue is 2, 4, 8 s whatever the speed, and three of them are to be seen."""
STUCK_SECONDS = 60.0
"""Without a job that finishes for so long (at speed 1) the day is given up."""


class Entry(Protocol):
    """An enqueue of the day, as `archibald_pgq.examples.erp.day` describes it."""

    at: float
    user_id: str
    kind: str
    data: dict[str, Any]
    idempotency_key: str | None
    delay: float


async def conduct(dsn: str, logs: Path, speed: float, show: Callable[[Snapshot], None], *, browser: bool) -> Summary:
    """Play the day on the migrated, empty queue at `dsn`, `speed` times as fast; return what it came to.

    `browser`: the agents drive real browsers, else the same pages over HTTP.

    Raises:
        ChildDiedError: the ERP or the worker ended too early.
        psycopg.Error: the database was lost.
    """
    async with AsyncExitStack() as stack:
        erp = await Child.start(
            *("the ERP", f"{EXAMPLE}.server", "--port", "0", "--speed", f"{speed:g}"),
            log=logs / "erp.log",
            env=environment(),
        )
        stack.push_async_callback(erp.stop)
        url = await erp.first_line()
        worker = await Child.start(
            *("the worker", "archibald_pgq", "run", f"{EXAMPLE}:app"),
            log=logs / "worker.log",
            env=environment(
                ARCHIBALD_DATABASE_URL=dsn,
                ERP_URL=url,
                ERP_BROWSER=str(int(browser)),
                ARCHIBALD_SHUTDOWN_GRACE="3",
                ARCHIBALD_LOGIN_BUDGET="10000",  # a day in a minute has as many logins as a day
            ),
        )
        stack.push_async_callback(worker.stop)
        play = asyncio.create_task(_Day(dsn, url, speed, show).play())
        ends = [play, asyncio.create_task(erp.watch()), asyncio.create_task(worker.watch())]
        try:
            first, _ = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            # Whoever died is the reason of what else went wrong; so its sentence comes first.
            for end in [*ends[1:], play]:
                if end in first:
                    await end
            return play.result()
        finally:
            for end in ends:
                end.cancel()
            await asyncio.gather(*ends, return_exceptions=True)


class _Day:
    """One play of the day."""

    def __init__(self, dsn: str, url: str, speed: float, show: Callable[[Snapshot], None]) -> None:
        # By name: in a checkout the example lies outside of the package's folder, where no type checker finds it.
        day = importlib.import_module(f"{EXAMPLE}.day")
        self._entries: Sequence[Entry] = day.ENTRIES
        self._locked: tuple[str, float] = (day.LOCKED_AGENT, day.LOCKED_AT)
        self._dsn = dsn
        self._url = url
        self._speed = speed
        self._show = show
        self._began = time.monotonic()
        self._ids: set[int] = set()

    async def play(self) -> Summary:
        """Feed, lock and look until all is at rest."""
        async with await psycopg.AsyncConnection.connect(to_libpq(self._dsn), autocommit=True) as connection:
            watch = Watch(len(self._entries), await last_id(connection))
            self._began = time.monotonic()
            try:
                async with asyncio.TaskGroup() as group:
                    inputs = [group.create_task(self._feed(watch)), group.create_task(self._other_program(watch))]
                    looking = group.create_task(self._look(connection, watch, inputs))
            except ExceptionGroup as errors:
                raise errors.exceptions[0] from None
        return summarize(
            looking.result(),
            seconds=self._seconds(),
            entries=len(self._entries),
            merged=len(self._entries) - len(self._ids),
            most_running=watch.most_running,
            preemptions=watch.preemptions,
            erp=await _stats(self._url),
        )

    def _seconds(self) -> float:
        return time.monotonic() - self._began

    async def _until(self, offset: float) -> None:
        await asyncio.sleep(max(0.0, offset / self._speed - self._seconds()))

    async def _feed(self, watch: Watch) -> None:
        """Enqueue the day's entries at their times."""
        async with Archibald(database_url=self._dsn) as app:
            for entry in self._entries:
                await self._until(entry.at)
                job = await app.enqueue(
                    entry.kind,
                    user_id=entry.user_id,
                    data=entry.data,
                    idempotency_key=entry.idempotency_key,
                    delay=entry.delay / self._speed,
                )
                self._ids.add(job.id)
                watch.fed += 1

    async def _other_program(self, watch: Watch) -> None:
        """Be another program that uses one agent's login for a while, as soon as that agent has nothing running."""
        agent, at = self._locked
        await self._until(at)
        async with await psycopg.AsyncConnection.connect(
            to_libpq(self._dsn), autocommit=True, application_name="demo: another program"
        ) as connection:
            # Nothing tells another program when the agent's running job ends.
            while not await _is_true(connection, "SELECT archibald.try_lock_agent(%s)", agent):  # noqa: ASYNC110
                await asyncio.sleep(LOOK_EVERY)
            watch.events.append(
                f"{self._seconds():5.1f} s  another program takes {agent}'s lock for {LOCK_SECONDS:.0f} s"
            )
            await asyncio.sleep(LOCK_SECONDS)
            await _is_true(connection, "SELECT archibald.unlock_agent(%s)", agent)
            watch.events.append(f"{self._seconds():5.1f} s  another program lets go of {agent}'s lock")

    async def _look(
        self, connection: psycopg.AsyncConnection[Any], watch: Watch, inputs: Sequence[asyncio.Task[None]]
    ) -> tuple[JobRow, ...]:
        """Look until nothing more will happen, or nothing has happened for long; return the last rows."""
        finished, since = 0, time.monotonic()
        while True:
            complete = all(task.done() for task in inputs)
            snapshot = await watch.look(connection, self._seconds())
            self._show(snapshot)
            if snapshot.finished > finished or not complete:
                finished, since = snapshot.finished, time.monotonic()
            stuck = time.monotonic() - since > STUCK_SECONDS / min(self._speed, 1.0)
            if (complete and snapshot.at_rest) or stuck:
                return snapshot.rows
            await asyncio.sleep(LOOK_EVERY)


async def _is_true(connection: psycopg.AsyncConnection[Any], query: str, agent: str) -> bool:
    row = await (await connection.execute(query.encode(), (agent,))).fetchone()
    return bool(row and row[0])


async def _stats(url: str) -> dict[str, int]:
    async with aiohttp.ClientSession() as http, http.get(f"{url}/stats") as answer:
        numbers: dict[str, int] = await answer.json()
        return numbers
