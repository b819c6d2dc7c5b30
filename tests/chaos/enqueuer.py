"""One process that enqueues, cancels, pauses, retries and locks until it is told to end.

Each job has a key of its own: where a connection broke during the commit, the history gets a `maybe` with that key.
Its connections pass through a wire on which faults act. An operator's lock is taken beside the rest and held for a while, whatever happens
meanwhile; the history gets the time from which and until which it was held for certain.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import sys
from pathlib import Path
from typing import Any

import psycopg
from psycopg.types.json import Jsonb

from archibald_pgq import Archibald
from archibald_pgq.errors import ArchibaldError
from tests.acceptance import fault_app
from tests.acceptance.events import Event, append, now

AGENTS = [f"agent-{number}" for number in range(12)]
REST = 0.05
CALM = 15.0
"""Seconds before the end in which no long job comes any more, and no long lock: what waits then has to end soon."""

ACTS = {
    "enqueue": 72,
    "burst": 4,
    "new agent": 2,
    "in a transaction": 4,
    "roll back": 3,
    "cancel": 6,
    "pause": 2,
    "lock": 5,
    "retry": 4,
}
KINDS = {"fault-write": 4, "fault-idempotent": 3, "fault-read": 4, "fault-again": 1, "fault-sync": 2}
DEEDS = {"short": 88, "block": 3, "stubborn": 5, "fail": 3, "die": 0.4}
BRIEF = {"short": 96, "block": 2, "fail": 1, "die": 0.4}
BURST = 8
FIRST_JOBS = 24
"""Of a new agent: more than a worker gives their lane at once."""
LONG_ONES = 0.18
"""How many jobs take longer than the lease: only such a handler shows whether its worker stops it in time, and who ends its job."""


class Enqueuer:
    """Does one thing after the other, by the numbers of its seed."""

    def __init__(self, app: Archibald, dsn: str, folder: Path, seed: int, seconds: float) -> None:
        self._app, self._dsn, self._history = app, dsn, folder / fault_app.HISTORY
        self._chance, self._name, self._count = random.Random(seed), f"e{seed}", 0
        self._calm_from = now() + seconds - CALM
        self._locks: set[asyncio.Task[None]] = set()

    async def act(self) -> None:
        """Do one thing; errors of a database that is down are what this is about."""
        user = self._chance.choice(AGENTS)
        what = self._chance.choices(list(ACTS), list(ACTS.values()))[0]
        try:
            match what:
                case "enqueue":
                    await self._enqueue(user, *self._data())
                case "burst":
                    for _ in range(BURST):
                        await self._enqueue(user, *self._brief())
                case "new agent":
                    await self._new_agent(f"{self._name}-agent-{self._count}")
                case "in a transaction":
                    await self._enqueue_in_a_transaction(user)
                case "roll back":
                    await self._roll_back(user)
                case "cancel":
                    await self._cancel()
                case "pause":
                    await self._app.pause_agent(user, reason="chaos")
                    await asyncio.sleep(0.3)
                    await self._resume(user)
                case "lock":
                    seconds = self._chance.choice((0.3, 0.6, 1.0, 1.0, 2.5, 4.0) if now() < self._calm_from else (0.3,))
                    task = asyncio.create_task(self._lock(user, seconds))
                    self._locks.add(task)
                    task.add_done_callback(self._locks.discard)
                case _:
                    await self._retry()
        except (ArchibaldError, psycopg.Error, OSError):
            await asyncio.sleep(REST)

    async def end(self) -> None:
        """Wait for the locks that are still held."""
        await asyncio.gather(*self._locks)

    def _data(self) -> tuple[str, dict[str, Any]]:
        kind = self._chance.choices(list(KINDS), list(KINDS.values()))[0]
        long = self._chance.random() < LONG_ONES and now() < self._calm_from
        seconds = self._chance.uniform(3.0, 6.0) if long else self._chance.uniform(0.0, 0.3)
        do = self._chance.choices(list(DEEDS), list(DEEDS.values()))[0]
        match do:
            case "die":
                return kind, {"do": do}
            case "fail":
                return kind, {"do": do, "attempts": self._chance.randint(1, 4)}
            case "short" if kind == "fault-sync":
                return kind, {"do": "pages", "seconds": seconds}
        return kind, {"do": do, "seconds": seconds}

    def _brief(self) -> tuple[str, dict[str, Any]]:
        """One of the short jobs that share turns; now and then it takes long after all, or is the end of its worker."""
        do = self._chance.choices(list(BRIEF), list(BRIEF.values()))[0]
        seconds = self._chance.uniform(0.2, 0.6) if do == "block" else self._chance.uniform(0.0, 0.004)
        return "fault-brief", {"do": "short" if do == "block" else do, "seconds": seconds, "attempts": 9}

    async def _enqueue(self, user: str, kind: str, data: dict[str, Any]) -> None:
        # Not of syncs: a later request is coalesced with a delayed one, and would pass for a job that is due.
        delay = 0.0 if kind == "fault-sync" else self._chance.choice((0.0, 0.0, 0.0, 0.0, 0.5))
        key = self._key(user)
        job = await self._app.enqueue(kind, user_id=user, data=data, idempotency_key=key, delay=delay)
        append(self._history, Event(now(), "enqueued", job_id=job.id, user_id=user, how=str(delay) if delay else ""))

    def _key(self, user: str) -> str:
        """A new key, in the history before it is tried: what is not known afterwards is in doubt."""
        self._count += 1
        key = f"{self._name}-{self._count}"
        append(self._history, Event(now(), "maybe", user_id=user, how=key))
        return key

    async def _new_agent(self, user: str) -> None:
        """By SQL, one transaction each, for which the client's limit of a backlog does not count."""
        async with await psycopg.AsyncConnection.connect(self._dsn, autocommit=True) as connection:
            for _ in range(FIRST_JOBS):
                kind, data = self._brief()
                cursor = await connection.execute(
                    "SELECT archibald.enqueue(%s, %s, %s, %s)", (user, kind, Jsonb(data), self._key(user))
                )
                row = await cursor.fetchone()
                assert row is not None
                append(self._history, Event(now(), "enqueued", job_id=row[0], user_id=user))

    async def _enqueue_in_a_transaction(self, user: str) -> None:
        kind, data = self._data()
        async with await psycopg.AsyncConnection.connect(self._dsn) as connection:
            job = await self._app.enqueue(
                kind, user_id=user, data=data, idempotency_key=self._key(user), connection=connection
            )
            await asyncio.sleep(self._chance.uniform(0.0, 0.3))
            await connection.commit()
        append(self._history, Event(now(), "enqueued", job_id=job.id, user_id=user))

    async def _roll_back(self, user: str) -> None:
        async with await psycopg.AsyncConnection.connect(self._dsn) as connection:
            await self._app.enqueue(
                "fault-read", user_id=user, data={"do": "short", "seconds": 0.0}, connection=connection
            )
            await asyncio.sleep(REST)
            await connection.rollback()

    async def _cancel(self) -> None:
        async with await psycopg.AsyncConnection.connect(self._dsn, autocommit=True) as connection:
            await connection.execute("SELECT archibald.cancel_job(id) FROM archibald.jobs ORDER BY random() LIMIT 1")

    async def _lock(self, user: str, seconds: float) -> None:
        with contextlib.suppress(psycopg.Error, OSError):
            async with await psycopg.AsyncConnection.connect(self._dsn, autocommit=True) as connection:
                cursor = await connection.execute("SELECT archibald.try_lock_agent(%s), pg_backend_pid()", (user,))
                row = await cursor.fetchone()
                if row is None or not row[0]:
                    return
                began = held = now()
                session = f"{self._name}, {row[1]}, {began:.3f}"
                append(self._history, Event(began, "locked", user_id=user, how=session))
                try:
                    while now() < began + seconds:
                        await asyncio.sleep(REST)
                        asked = now()
                        await connection.execute("SELECT 1")
                        held = asked
                finally:
                    append(self._history, Event(held, "unlocked", user_id=user, how=session))
                await connection.execute("SELECT archibald.unlock_agent(%s)", (user,))

    async def _retry(self) -> None:
        found = await self._app.review(limit=1)
        if found:
            append(self._history, Event(now(), "retried", job_id=found[0].id))
            await self._app.retry(found[0].id)
            append(self._history, Event(now(), "put back", job_id=found[0].id))

    async def _resume(self, user: str) -> None:
        while True:
            try:
                await self._app.resume_agent(user)
            except ArchibaldError:
                await asyncio.sleep(REST)
            else:
                return


async def main(dsn: str, folder: Path, seed: int, seconds: float) -> None:
    """Act until SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with Archibald(dsn) as app:
        fault_app.register(app)
        enqueuer = Enqueuer(app, dsn, folder, seed, seconds)
        while not stop.is_set():
            await enqueuer.act()
            await asyncio.sleep(REST)
        await enqueuer.end()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])))
