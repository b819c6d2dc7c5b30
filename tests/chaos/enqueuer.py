"""One process that enqueues, cancels, pauses and locks until it is told to end.

Each job has a key of its own: where a connection broke during the commit, the history gets a `maybe` with that key.
"""

from __future__ import annotations

import asyncio
import random
import signal
import sys
from pathlib import Path
from typing import Any

import psycopg

from archibald_pgq import Archibald
from archibald_pgq.errors import ArchibaldError
from tests.acceptance import fault_app
from tests.acceptance.history import Event, append, now

AGENTS = [f"agent-{number}" for number in range(12)]
REST = 0.05


class Enqueuer:
    """Does one thing after the other, by the numbers of its seed."""

    def __init__(self, app: Archibald, dsn: str, folder: Path, seed: int) -> None:
        self._app, self._dsn, self._history = app, dsn, folder / fault_app.HISTORY
        self._chance, self._name, self._count = random.Random(seed), f"e{seed}", 0

    async def act(self) -> None:
        """Do one thing; errors of a database that is down are what this is about."""
        user = self._chance.choice(AGENTS)
        what = self._chance.choices(("enqueue", "roll back", "cancel", "pause", "lock", "retry"), (80, 4, 6, 2, 4, 4))[
            0
        ]
        try:
            match what:
                case "enqueue":
                    await self._enqueue(user)
                case "roll back":
                    await self._roll_back(user)
                case "cancel":
                    await self._of_a_job(
                        "SELECT archibald.cancel_job(id) FROM archibald.jobs ORDER BY random() LIMIT 1"
                    )
                case "pause":
                    await self._app.pause_agent(user, reason="chaos")
                    await asyncio.sleep(0.3)
                    await self._resume(user)
                case "lock":
                    await self._lock(user)
                case _:
                    await self._retry()
        except (ArchibaldError, psycopg.Error, OSError):
            await asyncio.sleep(REST)

    def _data(self) -> tuple[str, dict[str, Any]]:
        kind = self._chance.choices(("fault-write", "fault-idempotent", "fault-read", "fault-sync"), (4, 3, 4, 2))[0]
        # One in 12 outlasts the lease: only such a handler shows whether its worker stops it in time.
        seconds = self._chance.uniform(2.5, 4.0) if self._chance.random() < 1 / 12 else self._chance.uniform(0.0, 0.3)
        do = self._chance.choices(("short", "block", "stubborn", "die"), (94, 2, 3, 0.4))[0]
        return kind, {"do": do} if do == "die" else {"do": do, "seconds": seconds * (1 if do == "short" else 2)}

    async def _enqueue(self, user: str) -> None:
        kind, data = self._data()
        # Not of syncs: a later request is coalesced with a delayed one, and would pass for a job that is due.
        delay = 0 if kind == "fault-sync" else self._chance.choice((0, 0, 0, 0, 0.5))
        self._count += 1
        key = f"{self._name}-{self._count}"
        # Before it is tried: what is not known afterwards is in doubt.
        append(self._history, Event(now(), "maybe", user_id=user, how=key))
        job = await self._app.enqueue(kind, user_id=user, data=data, idempotency_key=key, delay=delay)
        append(self._history, Event(now(), "enqueued", job_id=job.id, user_id=user, how="delayed" if delay else ""))

    async def _roll_back(self, user: str) -> None:
        async with await psycopg.AsyncConnection.connect(self._dsn) as connection:
            await self._app.enqueue(
                "fault-read", user_id=user, data={"do": "short", "seconds": 0.0}, connection=connection
            )
            await asyncio.sleep(REST)
            await connection.rollback()

    async def _of_a_job(self, sql: str) -> None:
        async with await psycopg.AsyncConnection.connect(self._dsn, autocommit=True) as connection:
            await connection.execute(sql)

    async def _lock(self, user: str) -> None:
        async with await psycopg.AsyncConnection.connect(self._dsn, autocommit=True) as connection:
            await connection.execute("SELECT archibald.try_lock_agent(%s)", (user,))
            await asyncio.sleep(0.5)
            await connection.execute("SELECT archibald.unlock_agent(%s)", (user,))

    async def _retry(self) -> None:
        found = await self._app.review(limit=1)
        if found:
            append(self._history, Event(now(), "retried", job_id=found[0].id))
            await self._app.retry(found[0].id)

    async def _resume(self, user: str) -> None:
        while True:
            try:
                await self._app.resume_agent(user)
            except ArchibaldError:
                await asyncio.sleep(REST)
            else:
                return


async def main(dsn: str, folder: Path, seed: int) -> None:
    """Act until SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with Archibald(dsn) as app:
        fault_app.register(app)
        enqueuer = Enqueuer(app, dsn, folder, seed)
        while not stop.is_set():
            await enqueuer.act()
            await asyncio.sleep(REST)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])))
