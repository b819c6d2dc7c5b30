"""One turn of one lane: the jobs of one agent that were claimed together, or while these ran, run one after the other.

Owns: which of them runs, what came of those that ran, and what the database does not know of it yet. Guarantees: never two at once; once it
is told to stop, or its time is over, no further job begins and the rest goes back. Must not: talk to the database.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence

from archibald_pgq.domain.job import ClaimedJob
from archibald_pgq.domain.outcome import Outcome
from archibald_pgq.domain.states import Event
from archibald_pgq.runtime.executor import Run, Stop
from archibald_pgq.store.turn import Mark, Owner, Report, Settlement

LONGEST = 0.1
"""Seconds after which a turn of a lane begins no further job, and one that was taken ahead and has not begun goes back. A job that runs by
then is marked running."""

AT_HAND = 0.005
"""Seconds of work that are left when a lane asks for its next jobs: a turn takes less, mostly, so that they arrive in time."""

MOST = 500
"""Jobs after which a lane asks for no more: what ran is kept in mind until its end."""

HOGS = 0.001
"""Seconds for which jobs that never wait may follow each other before the event loop gets its turn."""


class LaneRun:
    """The jobs of one ownership of one lane, in their order."""

    def __init__(
        self,
        jobs: Sequence[ClaimedJob],
        make_run: Callable[[ClaimedJob], Run],
        report: Callable[[LaneRun], None],
        in_contact: Callable[[], bool],
        consumer_waits: Callable[[], bool],
    ) -> None:
        """Prepare; `report` is called when there is something to write before the end.

        `in_contact` says whether a handler may start, `consumer_waits` whether a consumer has nothing to run.
        """
        self.owner = Owner(jobs[0].lane, jobs[0].epoch)
        self.jobs = list(jobs)
        self.job = jobs[0]
        """The job that runs, or that ran last."""
        self.claimed_at = time.monotonic()
        self.took: list[float] = []
        """Seconds that each of the jobs took, as far as they ran."""
        self.lasted = 0.0
        """Seconds from before the first of them to the end; jobs of other lanes may have run in between."""
        self.ended = asyncio.Event()
        """Set when no handler code runs any more and none will."""
        self.task_name = ""
        """Of the task in which its handlers run."""
        self._make_run, self._report, self._in_contact = make_run, report, in_contact
        self._consumer_waits = consumer_waits
        self._run: Run | None = None
        self._began = self.claimed_at
        self.marked = jobs[0].marked
        """It is one job that the database says runs; else they are short, and have mostly ended before anybody looks."""
        self._given = {job.job_id for job in jobs}
        self._mark: Mark | None = None
        self._asks = self._asked = False
        """It asks for more jobs; and has done so since the last ones came."""
        self._cut = False
        self._timer: asyncio.TimerHandle | None = None
        self._unwritten: list[Settlement] = []

    # -- running

    async def execute(self, task_name: str) -> None:
        """Run the jobs in this task, of this name; those that do not begin go back."""
        self.task_name = task_name
        begun = began = loop_ran = self._began = time.monotonic()
        done = 0
        for job in self.jobs:  # which grow meanwhile, or are cut off
            if began - loop_ran > HOGS:  # whatever cuts this short arrives in the event loop
                await asyncio.sleep(0)
                began = loop_ran = time.monotonic()
            self._ask(done)
            self.job = job
            self._run = run = self._make_run(job)
            # First active, then the look: a process that was stopped before the look does not begin this job, and one that is stopped
            # after it ends when it is continued too late.
            run.active = True
            if self._cut or not self._in_contact() or (done and time.monotonic() - self._began > LONGEST):
                run.active = False
                break
            began = time.monotonic()
            outcome = await run.execute(self._waits)
            ended = time.monotonic()
            self._unwritten.append(Settlement(job.job_id, outcome, began, ended))
            self.took.append(ended - began)
            began = ended
            done += 1
            if outcome.event not in (Event.COMPLETE, Event.FAIL):
                break  # it keeps its place before the others
        self.lasted = time.monotonic() - begun
        if self._timer is not None:
            self._timer.cancel()
        self._end(done)

    def _ask(self, done: int) -> None:
        """Ask for more jobs at the last moment at which there is enough left to do until they come.

        Not where every consumer runs something: its agent goes behind the others then, and asking would be one more report of each lane.
        """
        if done and not self._asked and not self.marked and done < MOST:
            each = self.took[-1]
            if AT_HAND <= (len(self.jobs) - done) * each < AT_HAND + each and self._consumer_waits():
                self._asks = self._asked = True
                self._report(self)

    def go_on(self, jobs: Sequence[ClaimedJob]) -> None:
        """Run these too, which were claimed for this ownership of the lane; those that come too late go back."""
        self._given |= {job.job_id for job in jobs}
        if self.ended.is_set() or self._cut:
            self._put_back(job.job_id for job in jobs)
            return
        self._asked = False
        self._began = time.monotonic()
        self.jobs += jobs
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._waits()

    def owns(self, job_ids: Iterable[int]) -> None:
        """The database says that these are in this lane's turn; those that never arrived here go back."""
        unknown = [job_id for job_id in job_ids if job_id not in self._given]
        if unknown:  # else there is nothing to report, and a turn for it would be followed by the next look, and so on
            self._given.update(unknown)
            self._put_back(unknown)

    def _put_back(self, job_ids: Iterable[int]) -> None:
        self._unwritten += [Settlement(job_id, Outcome.gone_back()) for job_id in job_ids]
        self._report(self)

    def _waits(self) -> None:
        """A handler does not end at once: its turn may become too long."""
        if self._timer is None and not self.marked:
            left = self._began + LONGEST - time.monotonic()
            self._timer = asyncio.get_running_loop().call_later(left, self._time_is_over)

    def give_back(self) -> None:
        """End it before it began: no consumer is left for it, or no contact, or its time is over."""
        self._end(0)

    def _end(self, done: int) -> None:
        if not self.ended.is_set():
            self._unwritten += [Settlement(job.job_id, Outcome.gone_back()) for job in self.jobs[done:]]
            self.jobs = self.jobs[:done]
            self.ended.set()

    def _time_is_over(self) -> None:
        """What still runs now is marked running, and what would have come after it goes back at once."""
        if not self.ended.is_set():
            if self._run is not None:
                self._run.watch()
            place = self.jobs.index(self.job)
            self._unwritten += [Settlement(job.job_id, Outcome.gone_back()) for job in self.jobs[place + 1 :]]
            self.jobs = self.jobs[: place + 1]
            self._cut = True
            self._mark = Mark(self.job.job_id, time.monotonic())
            self._report(self)

    # -- being stopped

    @property
    def reason(self) -> Stop | None:
        """Why it was told to stop."""
        return None if self._run is None else self._run.reason

    @property
    def active(self) -> bool:
        """True while handler code may run."""
        return self._run is not None and self._run.active

    def cut(self) -> None:
        """Begin no further job; the one that runs goes on."""
        self._cut = True

    def stop(self, reason: Stop) -> None:
        """Tell the job that runs to stop, and begin no further one; the settle knows which of these were cancelled."""
        self._cut = True
        if self._run is not None:
            self._run.stop(reason)

    def make_room(self, by: str) -> None:
        """Ask a sync to stop for a write of its agent, which `by` names."""
        if self._run is not None:
            self._run.make_room(by)

    def need_not_make_room(self) -> None:
        """The write does not wait any more."""
        if self._run is not None:
            self._run.need_not_make_room()

    # -- what is to be written

    def report(self) -> Report | None:
        """Return what the database is to be told now, if anything: all outcomes at the end, and before it when a job is to be marked."""
        if not self.ended.is_set() and self._mark is None and not self._asks:
            return None
        mark = None if self.ended.is_set() else self._mark
        return Report(self.owner, list(self._unwritten), mark)

    def written(self, report: Report) -> bool:
        """This report was written; return True if with it all is told and the lane is free."""
        del self._unwritten[: len(report.settlements)]
        self._asks = False
        if report.mark is not None:
            self._mark = None
        return self.ended.is_set() and not self._unwritten
