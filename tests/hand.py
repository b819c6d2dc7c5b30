"""A worker moved by hand: it claims and settles when a test says so, through the same functions of `store` as the dispatcher."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import psycopg

from archibald_pgq.domain.job import ClaimedJob
from archibald_pgq.domain.outcome import Outcome
from archibald_pgq.store import turn as store
from archibald_pgq.store import workers
from archibald_pgq.store.connect import connect, worker_options
from archibald_pgq.store.turn import Owner, Report, Settlement, Turn, Want

KINDS = (
    "submit-order",
    "edit-order",
    "delete-order",
    "download-ddt-pdf",
    "sync-order-articles",
    "sync-customers",
    "sync-orders",
)

COMPLETE = """
SELECT fate
  FROM archibald.settle(%s, ARRAY[%s]::bigint[], ARRAY[%s]::bigint[], ARRAY[NULL]::bigint[], NULL, ARRAY[%s]::bigint[],
                        ARRAY[%s]::bigint[], ARRAY['complete'], ARRAY['1'], ARRAY[NULL]::text[], ARRAY[0]::float8[],
                        ARRAY[0]::float8[], ARRAY[0]::float8[])
"""
"""Settles one job as a worker does: parameters are worker, lane, epoch, lane again, job. No row: nothing was refused."""


class Hand:
    """One registered worker on one connection."""

    def __init__(self, connection: psycopg.AsyncConnection[tuple[Any, ...]], worker_id: int) -> None:
        self.connection = connection
        self.worker_id = worker_id

    async def turn(
        self, *settlements: tuple[ClaimedJob, Outcome], want: int = 0, look: bool = False, solo: bool = False
    ) -> Turn:
        """Take one turn."""
        reports = [
            Report(Owner(job.lane, job.epoch), [Settlement(job.job_id, outcome, time.monotonic(), time.monotonic())])
            for job, outcome in settlements
        ]
        answer = await store.take_turn(self.connection, self.worker_id, reports, Want(want, want), look=look, solo=solo)
        return answer.read()

    async def report(self, *reports: Report, want: Want = store.NOTHING, look: bool = False) -> Turn:
        """Take one turn with reports as a dispatcher makes them."""
        return (await store.take_turn(self.connection, self.worker_id, reports, want, look=look, solo=False)).read()

    async def claim(self, want: int = 10) -> list[ClaimedJob]:
        """Claim what may run, after looking at everything."""
        return (await self.turn(want=want, look=True)).claimed

    async def claim_one(self) -> ClaimedJob:
        """Claim the one job that may run."""
        (job,) = await self.claim()
        return job

    async def settle(self, job: ClaimedJob, outcome: Outcome | None = None) -> Turn:
        """Write one outcome (by default: completed) and claim nothing."""
        return await self.turn((job, outcome or Outcome.completed("1")))


@contextlib.asynccontextmanager
async def hand(
    database: str,
    kinds: Sequence[str] = KINDS,
    lease: float = 6.0,
    *,
    concurrency: int = 10,
    max_syncs: int = 10,
    max_wait: float = 900.0,
    max_preemptions: int = 5,
) -> AsyncIterator[Hand]:
    """Register a worker that does nothing by itself."""
    connection = await connect(worker_options(database, "worker", lease))
    try:
        worker_id = await workers.register(
            connection,
            "test",
            kinds,
            concurrency=concurrency,
            max_syncs=max_syncs,
            lease=lease,
            max_wait=max_wait,
            max_preemptions=max_preemptions,
            max_losses=3,
            mark=None,
        )
        yield Hand(connection, worker_id)
    finally:
        await connection.close()
