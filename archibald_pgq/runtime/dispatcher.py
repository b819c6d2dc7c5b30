"""The dispatcher: the one task of a worker that talks about jobs with the database.

Owns: the wishes of idle consumers, the lanes that were taken ahead for busy ones, and what runs and is not settled yet. Guarantees: an
outcome is written once or refused by the fence, however often the connection breaks. Must not: run handlers, or know the connection.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any

import psycopg

from archibald_pgq.domain.job import ClaimedJob
from archibald_pgq.domain.operations import JobClass
from archibald_pgq.domain.pace import Pace
from archibald_pgq.runtime.executor import Run, Stop
from archibald_pgq.runtime.lane_run import LONGEST, LaneRun
from archibald_pgq.runtime.session import POLL, SOON, FencedError, Session
from archibald_pgq.runtime.turn_log import say
from archibald_pgq.store.turn import NOTHING, Answer, Owner, Report, Turn, Want

logger = logging.getLogger(__name__)

LARGEST_AGED = 2.0

SHORTLY = 0.02
"""Seconds until a turn asks what is due next, after one that had jobs to bring and did not stop for that."""

TICKS = 8
"""Turns of the event loop that a turn waits for more outcomes: enough for a handler that returns at once, microseconds otherwise.

Without it consumers with such handlers part into two groups, each of which waits for the other's turns: beside an agent with 200,000
jobs other agents' jobs of 0 ms took up to 1.6 times as long (84 turns instead of 31 for 295 jobs), with it 1.0 to 1.17 times.
"""

FEWEST_TICKS = 2
"""Of these, where some lanes wait for consumers, but not one for each: one until a consumer that has ended a lane comes for the next one,
and one for those that began with it and end with it.

Without them a turn settled one lane and asked for none; while it was under way the other nine ended and waited, and for 30,000 jobs eight
workers took 2,200 turns instead of 1,750.
"""

MANY = 20
"""Rows of an answer from which on it takes longer to read it than to send the next turn, which the server then takes meanwhile."""


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
        consumers: int,
        max_syncs: int,
        looked: Callable[[], None],
        room: Callable[[], int] | None = None,
    ) -> None:
        """Take over `connection`, on which the worker was registered.

        `in_contact` says whether handlers may be started at all; `consumers` is how many jobs may run at once, and `max_syncs` how many
        of these may be syncs; `looked` is called after a turn that may have asked a sync of ours to make room; `room` says how many jobs
        may run now, where that changes.
        """
        self.runs: dict[Owner, LaneRun] = {}
        """What this worker owns and has not settled yet."""
        self._session = Session(conninfo, connection, worker_id, lease, runs=self.runs, unknown=self._note_unknown)
        self._make_run, self._in_contact, self._report_look = make_run, in_contact, looked
        self._consumers, self._max_syncs, self._room = consumers, max_syncs, room
        self._pace = Pace()
        self._aged = 0.0
        """Places that syncs which waited too long may take before all others: a quarter of one for each lane claimed."""
        self._wishes: deque[asyncio.Future[LaneRun]] = deque()
        self._ahead: deque[LaneRun] = deque()
        """Lanes that wait for a consumer, for 100 ms at most."""
        self._unread: Answer | None = None
        """The last turn, where its answer is read, and what it brought handed out, while the next one is under way."""
        self._reporting: dict[Owner, LaneRun] = {}
        """Of `runs`, those of which there is something to write."""
        self._orphans: dict[Owner, Report] = {}
        """What this worker owns without knowing more of it: the answer of the turn that claimed it was lost."""
        self._solo = False
        """A job waits that runs alone, and this worker is to run it: nothing else is claimed."""
        self._alone: Owner | None = None
        """That job, once it runs."""
        self._event = asyncio.Event()
        self._fired = False
        """It was set because nothing else had been, for so long."""
        self._look = True
        self._looked = 0.0
        self._claiming = True
        self._turning = False
        """While a turn is under way, or one that failed is being mended, it is not known what this worker owns."""
        self.begun = asyncio.Event()
        """Set once a turn was answered."""
        self.settled = asyncio.Event()
        """Set once nothing more is claimed and everything that was is settled."""

    # -- what consumers and the other parts call; none of it waits for the database

    async def next_lane(self) -> LaneRun:
        """Wait for a lane whose jobs this consumer shall run; cancelled when nothing more is claimed."""
        while self._ahead:
            lane = self._ahead.popleft()
            # Asked again: this process may have been stopped since it sent the turn, and others may have its agents by now.
            if self._in_contact():
                return lane
            self._give_back(lane)
        if not self._claiming:
            raise asyncio.CancelledError
        wish: asyncio.Future[LaneRun] = asyncio.get_running_loop().create_future()
        self._wishes.append(wish)
        self._event.set()
        return await wish

    def ended(self, lane: LaneRun) -> None:
        """A consumer has run this lane's jobs; the next turn writes what came of them."""
        # Where handlers wait for nothing, the jobs of all lanes take turns, and each lane lasts as long as all of them.
        ran = sum(lane.took)
        stretched = lane.lasted / ran if ran else 1.0
        for job, seconds in zip(lane.jobs, lane.took, strict=True):
            self._pace.job_ended(job.kind, job.policy, seconds * stretched)
        if not lane.marked:
            self._pace.lane_ended(len(lane.took), lane.lasted, ran)
        self._note(lane)

    def _note(self, lane: LaneRun) -> None:
        self._reporting[lane.owner] = lane
        self._event.set()

    def nudge(self, *, look: bool = False) -> None:
        """A hint that there may be something to claim; `look`: also look again at agents that were locked."""
        self._look = self._look or look
        if self._wishes:
            self._event.set()
        elif self._running_syncs():  # no consumer is free, but one becomes free if a write waits for a sync of ours
            self._look = True
            self._event.set()

    def fenced(self) -> None:
        """Others have this worker's agents: a turn at once says so, or the end of the attempts to reconnect."""
        self._session.fenced = True
        self._event.set()

    def cut(self, lane_id: int | None = None) -> None:
        """Begin no further job of this lane, or of any: a job that goes before them has come, one was cancelled, or an agent paused.

        What waits for a consumer goes back.
        """
        for lane in [lane for owner, lane in self.runs.items() if lane_id in {None, owner.lane}]:
            lane.cut()
            if lane in self._ahead:
                self._ahead.remove(lane)
                self._give_back(lane)

    def stop_claiming(self) -> None:
        """Claim nothing more, and begin no further job; consumers that wait get a CancelledError."""
        self._claiming = False
        self.cut()
        while self._wishes:
            self._wishes.popleft().cancel()
        self._note_settled()

    def _note_settled(self) -> None:
        if not self._claiming and self.idle:
            self.settled.set()

    @property
    def idle(self) -> bool:
        """True when everything that was claimed is settled; a turn under way may bring more."""
        return not self.runs and not self._orphans and not self._turning and self._unread is None

    # -- the loop

    async def run(self) -> None:
        """Take turns until everything is settled and nothing more is claimed, or until cancelled.

        Raises:
            FencedError: this worker's lease was taken over.
        """
        pause: float = 0.0
        while True:
            fired = self._unread is None and await self._rest(pause)
            if self.settled.is_set():
                return  # one turn more, cancelled with this task, would leave in doubt what this worker owns: it would not say goodbye
            self._turning = True  # and not reset if it is cancelled: what it did is not known then
            pause = await self._turn(look=fired)
            self._turning = False
            self._note_settled()

    async def _rest(self, seconds: float) -> bool:
        """Wait for something to do; True if the time ran out instead."""
        if not self._event.is_set():
            self._fired = False
            timer = asyncio.get_running_loop().call_later(seconds, self._fire)
            try:
                await self._event.wait()
            finally:
                timer.cancel()
            if self._fired:
                return True
        for tick in range(TICKS):  # let every consumer that is about to end hand in its outcome: one turn for all
            if not self.runs or len(self._ahead) >= (self._consumers if tick < FEWEST_TICKS else 1):
                break  # nothing runs, or they have more to run meanwhile
            await asyncio.sleep(0)
        return False

    def _fire(self) -> None:
        self._fired = True
        self._event.set()

    async def _turn(self, *, look: bool) -> float:
        """Take one turn; return the seconds until the next one is due by itself."""
        self._event.clear()
        look = look or self._look or time.monotonic() - self._looked >= POLL
        while self._ahead and time.monotonic() - self._ahead[0].claimed_at > LONGEST:
            self._give_back(self._ahead.popleft())
        reports, want = self._reports(), self._want()
        self._look = False  # now, and not after the turn: an unlock that is announced meanwhile asks for another look
        self._aged -= want.aged
        sent = time.monotonic()
        try:
            answer = await self._meanwhile(self._session.take_turn(reports, want, look=look, solo=self._solo))
        except psycopg.Error as error:
            self._look = self._look or look
            self._aged += want.aged
            return await self._session.mend(error, reports, self._written)
        self.begun.set()
        if look:
            self._looked = time.monotonic()
            if self._running_syncs():
                self._report_look()  # and not only by a notification: where none arrives, a write waits for one poll and no longer
        self._pace.turn_ended(answer.lanes, time.monotonic() - sent)
        more = len(self._reporting) + len(self._orphans) > len(reports)
        if more and answer.rows >= MANY and not self._solo and not self._session.lacks_locks:
            self._unread = answer
            return 0.0
        turn = self._read(answer)
        if turn.claimed:
            await asyncio.sleep(0)  # consumers begin before this task makes ready for its next wait
        await self._session.take_missing_locks()
        if turn.locked:
            return SOON
        pause = SHORTLY if turn.claimed and self._wishes else POLL
        if turn.next_in is not None:
            pause = min(max(turn.next_in, 0.005), POLL)
        return min(pause, LONGEST) if self._ahead else pause

    async def _meanwhile(self, turn: Coroutine[Any, Any, Answer]) -> Answer:
        """Take a turn, and read the answer of the one before once it is sent."""
        unread = self._unread
        if unread is None:
            return await turn
        task = asyncio.create_task(turn)
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            task.cancel()
            raise
        finally:
            self._unread = None
            self._read(unread)
        return await task

    def _read(self, answer: Answer) -> Turn:
        """Note what a turn wrote, and hand out what it brought."""
        turn = answer.read()
        self._session.written(answer.reports, turn)
        if answer.want.jobs:
            self._note_solo(turn)
        self._written(answer.reports, turn)
        say(turn)
        lanes = [list(jobs) for _, jobs in itertools.groupby(turn.claimed, key=lambda job: job.lane)]
        self._aged = min(self._aged + (len(lanes) / 4 if lanes else answer.want.aged), LARGEST_AGED)
        for jobs in lanes:
            self._hand_out(jobs)
        return turn

    def _reports(self) -> list[Report]:
        told = {report.owner for report in self._unread.reports} if self._unread else ()
        reports = [
            report
            for owner, lane in self._reporting.items()
            if owner not in told and (report := lane.report()) is not None
        ]
        return reports + [report for owner, report in self._orphans.items() if owner not in told]

    def _want(self) -> Want:
        alone = self._alone in self.runs and not self.runs[self._alone].ended.is_set()
        if not self._claiming or not self._in_contact() or alone:
            return NOTHING
        wishes = len(self._wishes)
        arrived = self._unread.lanes if self._unread else 0
        lacks = (
            0 if self._room is None else max(0, self._consumers - self._room())
        )  # consumers that could do nothing now
        short = self._pace.short()
        at_hand = len(self._ahead) + max(0, arrived - wishes)
        ahead = self._pace.ahead(self._consumers, at_hand) if short and not self._solo else 0
        return Want(
            max(0, wishes - arrived - lacks),
            max(0, self._max_syncs - self._running_syncs() - lacks),
            int(self._aged),
            0 if lacks else ahead,
            short,
        )

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
        jobs = [lane.job for lane in self.runs.values() if not lane.ended.is_set()]
        unread = self._unread.want.syncs if self._unread else 0  # at most
        return sum(job.policy.job_class is JobClass.SYNC for job in jobs) + unread

    def _written(self, reports: Iterable[Report], turn: Turn) -> None:
        """Note what the database made of these reports."""
        if turn.fenced:
            raise FencedError
        refused = set(turn.lost)
        held = set(turn.locked)
        for report in reports:
            owner = report.owner
            if owner in held:
                continue
            if owner in refused:
                for item in report.settlements:
                    logger.warning("an outcome was refused: job %d is no longer this worker's", item.job_id)
            lane = self.runs.get(owner)
            if lane is None:
                self._orphans.pop(owner, None)
            elif lane.written(report):
                del self.runs[owner], self._reporting[owner]
            elif owner in refused:
                lane.stop(Stop.FENCE)
            elif not lane.ended.is_set():
                del self._reporting[owner]
            if owner not in self.runs:
                self._session.freed(owner)
        for owner in turn.unwanted:
            if owner in self.runs:
                self.runs[owner].stop(Stop.CANCEL)

    def _hand_out(self, jobs: Sequence[ClaimedJob]) -> None:
        known = self.runs.get(Owner(jobs[0].lane, jobs[0].epoch))
        if known is not None:
            known.go_on(jobs)
            return
        lane = LaneRun(jobs, self._make_run, self._note, self._in_contact, self._consumer_waits)
        self.runs[lane.owner] = lane
        while self._wishes and self._in_contact():
            wish = self._wishes.popleft()
            if not wish.done():
                wish.set_result(lane)
                return
        if self._claiming and self._in_contact() and not jobs[0].marked:
            self._ahead.append(lane)
        else:
            self._give_back(lane)  # no consumer is left for it, or no contact; no handler started

    def _consumer_waits(self) -> bool:
        return bool(self._wishes)

    def _give_back(self, lane: LaneRun) -> None:
        lane.give_back()
        self._note(lane)

    def _note_unknown(self, report: Report) -> None:
        self._orphans.setdefault(report.owner, report)
        self._event.set()

    async def close(self) -> None:
        """Say goodbye if everything is settled, and close the connection: the session's locks end with it."""
        await self._session.close(goodbye=self.idle)
