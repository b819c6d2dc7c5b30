"""What a worker does for the history: partitions for the days that come, and dropping what is over.

That is days whose last job ended long enough ago, and what is kept of such jobs.

Guarantees: an error in one does not stop the other. Nothing else waits for it: it has a connection of its own, for as long as it takes,
because reading a day of millions of jobs must not hold up a takeover. Must not: touch a live job.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import psycopg

from archibald_pgq.runtime.reconnect import Outage
from archibald_pgq.store import workers
from archibald_pgq.store.connect import connect, told

logger = logging.getLogger(__name__)

PARTITION_DAYS = 7
HOURLY = 3600.0
AGAIN = 10.0
"""Seconds, on average, until the next attempt when the database could not be reached."""


async def keep_history(conninfo: str, retention_days: int) -> None:
    """Look after the history's partitions at once and then every hour, until cancelled."""

    async def make(connection: psycopg.AsyncConnection[tuple[Any, ...]]) -> None:
        await workers.make_partitions(connection, PARTITION_DAYS)

    async def drop(connection: psycopg.AsyncConnection[tuple[Any, ...]]) -> None:
        while dropped := await workers.drop_partitions(connection, retention_days):
            for name in dropped:
                logger.info("dropped %s: its last job ended over %d days ago", name, retention_days)

    async def sweep(connection: psycopg.AsyncConnection[tuple[Any, ...]]) -> None:
        while await workers.drop_checkpoints(connection, retention_days):
            pass
        while await workers.drop_evidence(connection, retention_days):
            pass

    outage = Outage("upkeep of the history", first=AGAIN, longest=AGAIN)
    while True:
        pause = HOURLY
        try:
            async with await connect(conninfo) as connection:
                for work in (make, drop, sweep):
                    try:
                        await work(connection)
                    except psycopg.Error as error:
                        if connection.closed:
                            raise
                        logger.warning(
                            "upkeep of the history met an error, the next attempt is in an hour: %s", told(error)
                        )
            outage.is_over()
        except psycopg.Error as error:
            pause = outage.goes_on(error)
        await asyncio.sleep(pause)
