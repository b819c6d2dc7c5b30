"""The worker's session: its one direct connection, on which the agents' locks are held and turns are taken.

Owns: the connection, and what is done when a turn fails or the connection breaks. Guarantees: a session that was lost is replaced, however
long it takes, while handlers go on (the heartbeat watches the lease); after every failed turn the locks of the session are compared with
what the database says is ours, both ways. Must not: decide what a turn is about, or know what runs.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import psycopg
from psycopg import errors

from archibald_pgq.domain.outcome import Outcome
from archibald_pgq.runtime.executor import error_text
from archibald_pgq.runtime.lane_run import LaneRun
from archibald_pgq.runtime.lock_check import LockCheck
from archibald_pgq.runtime.reconnect import Outage, in_need, jittered
from archibald_pgq.store import turn as store
from archibald_pgq.store import workers
from archibald_pgq.store.connect import HANGS, Deadline, connect, told
from archibald_pgq.store.turn import NOTHING, Answer, Owner, Report, Turn, Want

logger = logging.getLogger(__name__)

SOON = 0.2
"""Seconds until a turn is repeated that met somebody's lock, or a server that is short of something."""

POLL = 1.0
"""Seconds between two turns when nothing happens: what a lost notification can cost."""

_TRANSIENT = (errors.LockNotAvailable, errors.DeadlockDetected, errors.SerializationFailure, errors.QueryCanceled)


class FencedError(Exception):
    """This worker's agents were given to others; it must stop everything and register anew."""


class Session:
    """Of one registered worker."""

    def __init__(
        self,
        conninfo: str,
        connection: psycopg.AsyncConnection[tuple[Any, ...]],
        worker_id: int,
        lease: float,
        *,
        runs: Mapping[Owner, LaneRun],
        unknown: Callable[[Report], None],
    ) -> None:
        """Take over `connection`, on which the worker was registered.

        `runs` is what this worker owns, as far as it knows; `unknown` is called for what it owns by the database's word alone, with what
        is to be written of it.
        """
        self._conninfo, self._connection, self._worker_id, self._lease = conninfo, connection, worker_id, lease
        self.fenced = False
        """It is known that this worker is fenced: a connection for it is not worth waiting for."""
        self._runs, self._unknown = runs, unknown
        self._locks = LockCheck(worker_id, lease)
        self._outage = Outage("the dispatcher")
        self._had_outage = False
        """And no turn was taken since."""
        self._unsure = False
        """A turn failed, and the server was too much in need to say which locks this session still has."""
        self._patience = lease / 2
        """Seconds that a turn gets, so that a new connection has the locks within the lease; twice as many after each one in a row
        that took longer, so that a slow turn of a server that answers does end."""

    async def take_turn(self, reports: Sequence[Report], want: Want, *, look: bool, solo: bool) -> Answer:
        """Take one turn.

        Raises:
            psycopg.Error: to be given to `mend`.
        """
        if self._unsure:
            await self._compare_locks()
        answer = await self._take_turn(reports, want, look=look, solo=solo)
        self._patience = self._lease / 2
        return answer

    def written(self, reports: Sequence[Report], turn: Turn) -> None:
        """To be called with what a turn came to: the first one after an outage is told of."""
        if self._had_outage:
            self._had_outage = False
            written = sum(
                len(report.settlements) for report in reports if report.owner not in {*turn.lost, *turn.locked}
            )
            logger.info(
                "of the time without a connection %d outcomes are written, and %d agents' jobs go on",
                written,
                len(self._runs),
            )

    async def _take_turn(self, reports: Sequence[Report], want: Want, *, look: bool, solo: bool) -> Answer:
        with Deadline(self._connection, self._patience, self._lose_patience):
            return await store.take_turn(self._connection, self._worker_id, reports, want, look=look, solo=solo)

    def _lose_patience(self) -> None:
        """A turn took too long, and its connection is cut: a new one ends the old backend and takes its locks."""
        logger.warning("a turn got no answer for %.1f s: its connection is given up", self._patience)
        self._patience = min(2 * self._patience, HANGS + self._lease)

    def freed(self, owner: Owner) -> None:
        """This lane is no longer ours, and needs no lock."""
        self._locks.settled(owner)

    @property
    def lacks_locks(self) -> bool:
        """Locks of this session are missing; before these are compared, every answer is to be read."""
        return self._locks.incomplete

    async def take_missing_locks(self) -> None:
        """Try again to take the locks that could not be taken with a new session."""
        if self._locks.incomplete:
            await self._mend_locks()

    async def mend(
        self, error: psycopg.Error, reports: Sequence[Report], apply: Callable[[Iterable[Report], Turn], None]
    ) -> float:
        """Do what the error of a turn with these reports asks for; return the seconds until the next one.

        `apply` is called for every report that could be written after all.

        Raises:
            FencedError: this worker's lease was taken over.
        """
        if self._connection.closed or isinstance(error, errors.AdminShutdown | errors.CrashShutdown):
            await self._reconnect(error)
            return 0.0
        await self._mend_locks()
        if isinstance(error, _TRANSIENT):
            logger.warning("a turn met somebody's lock and is repeated: %s", type(error).__name__)
            return jittered(SOON)
        if in_need(error):
            logger.warning("the server is in need, and the turn is repeated until it is not: %s", told(error))
            return POLL
        await self._one_by_one(error, reports, apply)
        await asyncio.sleep(SOON)  # whatever is wrong, it must not be tried in a tight loop
        return 0.0

    async def _one_by_one(
        self, cause: psycopg.Error, reports: Sequence[Report], apply: Callable[[Iterable[Report], Turn], None]
    ) -> None:
        """Repeat a failed turn item by item; an item that fails alone fails its job, with that error."""
        alone = [Report(report.owner, [item]) for report in reports for item in report.settlements]
        logger.error("a turn of %d outcomes failed and is repeated one by one: %s", len(alone), told(cause))
        stuck: set[Owner] = set()  # what is behind an item that could not be written must not be written before it
        for report in alone:
            if report.owner in stuck:
                continue
            try:
                turn = (await self._take_turn([report], NOTHING, look=False, solo=False)).read()
                if report.owner in turn.locked:
                    stuck.add(report.owner)
                apply([report], turn)
            except psycopg.Error as error:
                if self._connection.closed:
                    return
                stuck.add(report.owner)
                if not isinstance(error, _TRANSIENT) and not in_need(error):
                    (item,) = report.settlements
                    item.outcome = Outcome.failed(f"its outcome could not be written: {error_text(error)}")
        await self._mend_locks()

    async def _reconnect(self, cause: psycopg.Error) -> None:
        """Get a new connection, however long it takes; running handlers go on meanwhile (the heartbeat watches the lease).

        Raises:
            FencedError: this worker's lease was taken over.
        """
        pause = self._outage.goes_on(cause)
        while True:
            await self._connection.close()
            if self.fenced:
                raise FencedError
            try:
                self._connection = await connect(self._conninfo)
                with Deadline(self._connection, self._lease):
                    if not await workers.move(self._connection, self._worker_id):
                        raise FencedError
                await self._compare_locks()
            except psycopg.Error as error:
                await asyncio.sleep(pause)
                pause = self._outage.goes_on(error)
            else:
                self._outage.is_over()
                self._had_outage = True
                return

    async def _mend_locks(self) -> None:
        """Compare the locks; where that fails too, a new session takes them all again.

        Not of a server in need: it has no session to give either, and this one's locks would be gone for that.
        """
        try:
            await self._compare_locks()
        except psycopg.Error as error:
            if in_need(error) and not self._connection.closed:
                self._unsure = True
            else:
                await self._reconnect(error)

    async def _compare_locks(self) -> None:
        with Deadline(self._connection, self._lease):
            for report in await self._locks.compare(self._connection, self._runs):
                self._unknown(report)
        self._unsure = False

    async def close(self, *, goodbye: bool) -> None:
        """Close the connection: the locks end with it; `goodbye`: say before that this worker ends, owning nothing."""
        try:
            if goodbye:
                await workers.stop(self._connection, self._worker_id)
        except psycopg.Error as error:
            logger.info("the database could not be told goodbye: %s", type(error).__name__)
        finally:
            await self._connection.close()
