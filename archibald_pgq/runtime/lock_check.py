"""Compares what this session holds and what the database says is this worker's, after a turn failed or a connection was lost.

Owns: the agent locks that could not be taken again yet. Guarantees: a session lock without a lane of ours is freed; a lane of ours without
its lock gets it, or its job is stopped within a lease; a job whose lane is no longer ours is stopped. Must not: connect, or write outcomes.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any

import psycopg

from archibald_pgq.domain.outcome import Outcome
from archibald_pgq.runtime.executor import Stop
from archibald_pgq.runtime.lane_run import LaneRun
from archibald_pgq.store import turn as store
from archibald_pgq.store.turn import Owner, Report, Settlement

logger = logging.getLogger(__name__)


class LockCheck:
    """Of one registered worker."""

    def __init__(self, worker_id: int, lease: float) -> None:
        """Prepare; `lease` in seconds."""
        self._worker_id, self._lease = worker_id, lease
        self._untaken: dict[Owner, float] = {}
        """Lanes whose lock could not be taken again yet, with the time (monotonic) at which their run must stop."""

    @property
    def incomplete(self) -> bool:
        """True while a lock is still to be taken again."""
        return bool(self._untaken)

    def settled(self, owner: Owner) -> None:
        """This lane is no longer ours, and needs no lock."""
        self._untaken.pop(owner, None)

    async def compare(
        self, connection: psycopg.AsyncConnection[tuple[Any, ...]], runs: Mapping[Owner, LaneRun]
    ) -> list[Report]:
        """Compare both ways, and mend; return what must be written for lanes of which nothing is known here.

        They were claimed by a turn whose reply was lost: no handler started, so they go back, as do such jobs of lanes that are known.
        """
        owned = await store.owned_lanes(connection, self._worker_id)
        await store.drop_stray_locks(connection, self._worker_id)
        now = time.monotonic()
        unknown: list[Report] = []
        for lane in owned:
            run = runs.get(lane.owner)
            if run is None:
                unknown.append(Report(lane.owner, [Settlement(job_id, Outcome.gone_back()) for job_id in lane.job_ids]))
                continue
            run.owns(lane.job_ids)
            if lane.locked:
                self._untaken.pop(lane.owner, None)
            elif now > self._untaken.setdefault(lane.owner, now + self._lease) and run.reason is not Stop.FENCE:
                logger.error(
                    "the lock of %s is held by somebody else; its job %d is stopped", run.job.user_id, run.job.job_id
                )
                run.stop(Stop.FENCE)
        there = {lane.owner for lane in owned}
        for owner, run in runs.items():
            if owner not in there and not run.ended.is_set() and run.reason is not Stop.FENCE:
                logger.error("job %d of %s is no longer this worker's and is stopped", run.job.job_id, run.job.user_id)
                run.stop(Stop.FENCE)
        return unknown
