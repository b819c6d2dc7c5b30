"""The dispatcher: the one task of a worker that talks about jobs with the database.

Owns: the direct connection on which the agents' session locks are held, the wishes of idle consumers, the outcomes not yet settled.
Guarantees: an outcome is written once or refused by the fence, however often the connection breaks; after every failed turn the locks
of this session are compared with what the database says is ours, both ways. Must not: run handlers.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import psycopg
from psycopg import errors

from archibald_pgq.domain.job import ClaimedJob
from archibald_pgq.domain.operations import JobClass
from archibald_pgq.domain.outcome import Outcome
from archibald_pgq.runtime.executor import Run, error_text
from archibald_pgq.runtime.lock_check import LockCheck
from archibald_pgq.store import turn as store
from archibald_pgq.store import workers
from archibald_pgq.store.connect import HANGS, connect, deadline, told
from archibald_pgq.store.turn import NOTHING, Owner, Settlement, Turn, Want

logger = logging.getLogger(__name__)

POLL = 1.0
"""Seconds between two turns when nothing happens: what a lost notification can cost."""

SOON = 0.2
"""Seconds until a turn is repeated that met somebody's lock, or a server that is short of something."""

LARGEST_AGED = 2.0

TICKS = 8
"""Turns of the event loop that a turn waits for more outcomes: enough for a handler that returns at once, microseconds otherwise.

Without it consumers with such handlers part into two groups, each of which waits for the other's turns: beside an agent with 200,000
jobs other agents' jobs of 0 ms took up to 1.6 times as long (84 turns instead of 31 for 295 jobs), with it 1.0 to 1.17 times.
"""

_TRANSIENT = (errors.LockNotAvailable, errors.DeadlockDetected, errors.SerializationFailure, errors.QueryCanceled)

_SERVER_IN_NEED = ("53", "58")
"""Classes of SQLSTATE: a full disk, no memory, an I/O error. It says nothing about a job, so no job may fail by it."""


def _in_need(error: psycopg.Error) -> bool:
    return (error.sqlstate or "")[:2] in _SERVER_IN_NEED


class FencedError(Exception):
    """This worker's agents were given to others; it must stop everything and register anew."""


class Dispatcher:
    """Takes turns for one registered worker until it is told to end, or is fenced."""

    def __init__(
        self,
        conninfo: str,
        connection: psycopg.AsyncConnection[tuple[Any, ...]],
        worker_id: int,
        lease: float,
        make_run: Callable[[ClaimedJob], Run],
        *,
        in_contact: Callable[[], bool],
        max_syncs: int,
        looked: Callable[[], None],
    ) -> None:
        """Take over `connection`, on which the worker was registered.

        `in_contact` says whether handlers may be started at all; `max_syncs` is how many syncs may run at once;
        `looked` is called after a turn that may have asked a sync of ours to make room.
        """
        self.worker_id = worker_id
        self.runs: dict[Owner, Run] = {}
        """What this worker owns and has not settled yet."""
        self._conninfo, self._connection, self._lease, self._make_run = conninfo, connection, lease, make_run
        self._in_contact, self._max_syncs, self._report_look = in_contact, max_syncs, looked
        self._aged = 0.0
        """Places that syncs which waited too long may take before all others: a quarter of one for each job claimed."""
        self._wishes: deque[asyncio.Future[Run]] = deque()
        self._settlements: dict[Owner, Settlement] = {}
        self._locks = LockCheck(worker_id, lease)
        self._patience = lease / 2
        """Seconds that a turn gets, so that a new connection has the locks within the lease; twice as many after each one in a row
        that took longer, so that a slow turn of a server that answers does end."""
        self._solo = False
        """A job waits that runs alone, and this worker is to run it: nothing else is claimed."""
        self._alone: Owner | None = None
        """That job, once it runs."""
        self._event = asyncio.Event()
        self._look = True
        self._looked = 0.0
        self._claiming = True
        self._turning = False
        """While a turn is under way, or one that failed is being mended, it is not known what this worker owns."""
        self.settled = asyncio.Event()
        """Set once nothing more is claimed and everything that was is settled."""

    # -- what consumers and the other parts call; none of it waits for the database

    async def next_run(self) -> Run:
        """Wait for a job that this consumer shall run; cancelled when nothing more is claimed."""
        wish: asyncio.Future[Run] = asyncio.get_running_loop().create_future()
        if not self._claiming:
            wish.cancel()
        self._wishes.append(wish)
        self._event.set()
        return await wish

    def settle(self, job: ClaimedJob, outcome: Outcome) -> None:
        """Take note of an outcome; the next turn writes it."""
        owner = Owner(job.lane, job.epoch)
        self._settlements[owner] = Settlement(owner, job.job_id, outcome)
        self._event.set()

    def nudge(self, *, look: bool = False) -> None:
        """A hint that there may be something to claim; `look`: also look again at agents that were locked."""
        self._look = self._look or look
        if self._wishes:
            self._event.set()
        elif self._running_syncs():  # no consumer is free, but one becomes free if a write waits for a sync of ours
            self._look = True
            self._event.set()

    def check(self) -> None:
        """Take a turn at once, whether or not anything waits: it tells whether this worker still is one."""
        self._event.set()

    def stop_claiming(self) -> None:
        """Claim nothing more; consumers that wait get a CancelledError."""
        self._claiming = False
        while self._wishes:
            self._wishes.popleft().cancel()
        self._note_settled()

    def _note_settled(self) -> None:
        if not self._claiming and self.idle:
            self.settled.set()

    @property
    def idle(self) -> bool:
        """True when everything that was claimed is settled; a turn under way may bring more."""
        return not self.runs and not self._settlements and not self._turning

    # -- the loop

    async def run(self) -> None:
        """Take turns until cancelled.

        Raises:
            FencedError: this worker's lease was taken over.
        """
        pause: float = 0.0
        while True:
            fired = await self._rest(pause)
            self._turning = True  # and not reset if it is cancelled: what it did is not known then
            pause = await self._turn(look=fired)
            self._turning = False
            self._note_settled()

    async def _rest(self, seconds: float) -> bool:
        """Wait for something to do; True if the time ran out instead."""
        try:
            async with asyncio.timeout(seconds):
                await self._event.wait()
        except TimeoutError:
            return True
        for _ in range(TICKS):  # let every consumer that is about to end hand in its outcome: one turn for all
            await asyncio.sleep(0)
        return False

    async def _turn(self, *, look: bool) -> float:
        """Take one turn; return the seconds until the next one is due by itself."""
        self._event.clear()
        look = look or self._look or time.monotonic() - self._looked >= POLL
        settlements, want = list(self._settlements.values()), self._want()
        self._look = False  # now, and not after the turn: an unlock that is announced meanwhile asks for another look
        try:
            with deadline(self._connection, self._patience, self._lose_patience):
                turn = await store.take_turn(
                    self._connection, self.worker_id, settlements, want, look=look, solo=self._solo
                )
        except psycopg.Error as error:
            self._look = self._look or look
            return await self._after_failure(error)
        if look:
            self._looked = time.monotonic()
            if self._running_syncs():
                self._report_look()  # and not only by a notification: where none arrives, a write waits for one poll and no longer
        self._patience = self._lease / 2
        if want.jobs:
            self._note_solo(turn)
        self._aged = min(self._aged - (want.aged if turn.claimed else 0) + len(turn.claimed) / 4, LARGEST_AGED)
        self._apply(turn)
        if self._locks.incomplete:
            await self._mend_locks()
        if turn.locked:
            return SOON
        return POLL if turn.next_in is None else min(max(turn.next_in, 0.005), POLL)

    def _want(self) -> Want:
        while self._wishes and self._wishes[0].done():
            self._wishes.popleft()
        alone = self._alone in self.runs and self._alone not in self._settlements
        if not self._claiming or not self._in_contact() or alone:
            return NOTHING
        jobs = sum(not wish.done() for wish in self._wishes)
        return Want(jobs, max(0, self._max_syncs - self._running_syncs()), int(self._aged))

    def _lose_patience(self) -> None:
        """A turn took too long, and its connection is cut: a new one ends the old backend and takes its locks."""
        logger.warning("a turn got no answer for %.1f s: its connection is given up", self._patience)
        self._patience = min(2 * self._patience, HANGS + self._lease)

    def _note_solo(self, turn: Turn) -> None:
        if turn.solo and not self._solo:
            logger.info(
                "a job waits that must run alone, because its workers died: nothing else is claimed until it has run"
            )
        self._solo = turn.solo
        if turn.solo and turn.claimed:
            self._alone = Owner(turn.claimed[0].lane, turn.claimed[0].epoch)

    def _running_syncs(self) -> int:
        """How many syncs run, without those whose outcome goes out with the next turn."""
        return sum(
            run.job.policy.job_class is JobClass.SYNC
            for owner, run in self.runs.items()
            if owner not in self._settlements
        )

    def _apply(self, turn: Turn) -> None:
        if turn.fenced:
            raise FencedError
        for owner in turn.lost:
            logger.warning("an outcome was refused: job %d is no longer this worker's", self._settlements[owner].job_id)
        for owner in turn.settled + turn.lost:
            del self._settlements[owner]
            self.runs.pop(owner, None)
            self._locks.settled(owner)
        for requeued in turn.requeued:
            logger.info(
                "Re-enqueueing %s for %s (attempt %d, delay %dms)",
                requeued.kind,
                requeued.user_id,
                requeued.requeue_count,
                round(requeued.delay * 1000),
            )
        for user_id in turn.contradictions:
            logger.error(
                "the lane of %s is ready while a job of it is marked running; it is set aside for 30 s", user_id
            )
        for job in turn.claimed:
            self._hand_out(job)

    def _hand_out(self, job: ClaimedJob) -> None:
        # Asked again: this process may have been stopped since it sent the turn, and others may have its agents by now.
        while self._wishes and self._in_contact():
            wish = self._wishes.popleft()
            if not wish.done():
                self.runs[Owner(job.lane, job.epoch)] = run = self._make_run(job)
                wish.set_result(run)
                return
        self.settle(job, Outcome.gone_back())  # no consumer is left for it, or no contact; the handler never started

    # -- when a turn fails

    async def _after_failure(self, error: psycopg.Error) -> float:
        if self._connection.closed or isinstance(error, errors.AdminShutdown | errors.CrashShutdown):
            await self._reconnect(error)
            return 0.0
        await self._mend_locks()
        if isinstance(error, _TRANSIENT):
            logger.warning("a turn met somebody's lock and is repeated: %s", type(error).__name__)
            return SOON * random.uniform(0.5, 1.5)  # noqa: S311  # jitter, not a secret
        if _in_need(error):
            logger.warning("the server is in need, and the turn is repeated until it is not: %s", told(error))
            return POLL
        await self._one_by_one(error)
        await asyncio.sleep(SOON)  # whatever is wrong, it must not be tried in a tight loop
        return 0.0

    async def _one_by_one(self, cause: psycopg.Error) -> None:
        """Repeat a failed turn item by item; an item that fails alone fails its job, with that error."""
        settlements = list(self._settlements.values())
        logger.error("a turn of %d outcomes failed and is repeated one by one: %s", len(settlements), told(cause))
        for item in settlements:
            try:
                with deadline(self._connection, self._patience, self._lose_patience):
                    turn = await store.take_turn(
                        self._connection, self.worker_id, [item], NOTHING, look=False, solo=False
                    )
                self._apply(turn)
            except psycopg.Error as error:
                if self._connection.closed:
                    return
                if isinstance(error, _TRANSIENT) or _in_need(error):
                    continue  # it stays among the settlements
                failed = Outcome.failed(f"its outcome could not be written: {error_text(error)}")
                self._settlements[item.owner] = Settlement(item.owner, item.job_id, failed)
        await self._mend_locks()

    async def _reconnect(self, cause: psycopg.Error) -> None:
        """Get a new connection, however long it takes; running handlers go on meanwhile (the heartbeat watches the lease)."""
        logger.warning("the dispatcher lost its connection and reconnects: %s", told(cause))
        pause = 0.05
        while True:
            await self._connection.close()
            try:
                self._connection = await connect(self._conninfo)
                with deadline(self._connection, self._lease):
                    if not await workers.move(self._connection, self.worker_id):
                        raise FencedError
                await self._compare_locks()
            except psycopg.Error as error:
                logger.info("the dispatcher cannot reconnect yet: %s", type(error).__name__)
                await asyncio.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311  # jitter, not a secret
                pause = min(pause * 2, 2.0)
            else:
                logger.info("the dispatcher is connected again; %d jobs go on", len(self.runs))
                return

    async def _mend_locks(self) -> None:
        """Compare the locks; where that fails too, a new session takes them all again."""
        try:
            await self._compare_locks()
        except psycopg.Error as error:
            await self._reconnect(error)

    async def _compare_locks(self) -> None:
        with deadline(self._connection, self._lease):
            unknown = await self._locks.compare(self._connection, self.runs)
        for settlement in unknown:
            self._settlements.setdefault(settlement.owner, settlement)
            self._event.set()

    async def close(self) -> None:
        """Say goodbye if everything is settled, and close the connection: the session's locks end with it."""
        try:
            if self.idle:
                await workers.stop(self._connection, self.worker_id)
        except psycopg.Error as error:
            logger.info("the database could not be told goodbye: %s", type(error).__name__)
        finally:
            await self._connection.close()
