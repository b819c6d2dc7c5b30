"""One job in, one outcome out.

Owns: running a handler under its timeout, stopping it when asked, and reading off what came of it. Guarantees: `execute` returns only
when no code of the handler runs any more, however long that takes, because its agent's lock is free after that; every way a handler can
end maps to exactly one `Outcome`. Must not: talk to the database.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from enum import StrEnum
from typing import Any

from archibald_pgq.domain.job import ClaimedJob
from archibald_pgq.domain.outcome import Outcome
from archibald_pgq.domain.payload import to_json
from archibald_pgq.errors import InvalidJobError, StepUnknownError
from archibald_pgq.runtime.breakers import Breakers
from archibald_pgq.runtime.browsing import Browsers
from archibald_pgq.runtime.context import JobContext
from archibald_pgq.runtime.own_context import InOwnContext
from archibald_pgq.runtime.registry import Handler
from archibald_pgq.store.request import Ask

logger = logging.getLogger(__name__)

STUBBORN_REPORT = 30.0
"""Seconds between two reports about a handler that does not end though it was told to."""

MAX_ERROR = 8000


class Stop(StrEnum):
    """Why a run is told to stop."""

    TIMEOUT = "timed out"
    CANCEL = "cancelled on request"
    SHUTDOWN = "interrupted by shutdown"
    PREEMPT = "making room for a write of its agent"
    FENCE = "interrupted: its worker lost contact with the database"


class HandlerExitError(Exception):
    """A handler called `sys.exit` or raised KeyboardInterrupt; the daemon does not end for that."""


def error_text(error: BaseException) -> str:
    """Return an exception as text that Postgres can store, cut to 8,000 characters."""
    try:
        words = str(error)
    except Exception:  # noqa: BLE001  # a handler's own exception class may be broken; the worker must not end for that
        words = "(its text cannot be made)"
    text = f"{type(error).__name__}: {words}" if words else type(error).__name__
    return text.replace("\x00", "\\x00").encode("utf-8", "backslashreplace").decode()[:MAX_ERROR]


class Run:
    """One run of one job, in the task of whoever calls `execute`."""

    def __init__(
        self,
        job: ClaimedJob,
        handler: Handler | None,
        worker_id: int,
        *,
        ask: Ask,
        breakers: Breakers,
        browsers: Browsers | None,
        brief: bool,
        grace: float,
        ask_again: Callable[[], None],
    ) -> None:
        """Prepare.

        Args:
            job: what to run.
            handler: None for a kind that no live worker handles.
            worker_id: who runs it.
            ask: asks the database, for the handler's context.
            breakers: what is told of outages.
            browsers: where this kind needs one.
            brief: it has probably ended before its time could be over: whoever runs it calls `watch` if not.
            grace: seconds between asking a sync to make room and cancelling it.
            ask_again: called when that time is over; whoever asked looks whether the reason still stands, and asks again.
        """
        self.job = job
        self.reason: Stop | None = None
        self.active = False
        """True while handler code may run."""
        self.ended = False
        """No handler code runs any more, and none will."""
        self._breakers, self._browsers = breakers, browsers
        self._handler, self._brief, self._grace, self._ask_again = handler, brief, grace, ask_again
        self._context = JobContext(job, worker_id, ask)
        self._task: asyncio.Task[Any] | None = None
        self._loop = asyncio.get_running_loop()
        self._timers: list[asyncio.TimerHandle] = []
        self._asked_at = self._told_at = self._began = 0.0
        self._by = ""
        self._forced = False

    def stop(self, reason: Stop) -> None:
        """Tell the handler to stop; the first reason stands, but a lost lease outranks all, and making room is outranked by all."""
        if self.reason in {None, Stop.PREEMPT} or reason is Stop.FENCE:
            self.reason = reason
        self._tell()

    def make_room(self, by: str) -> None:
        """Ask a sync to stop for a write of its agent; asked again when the grace is over, it is cancelled. `by` names the write."""
        if self.reason is None and not self.ended:
            self.reason, self._by, self._asked_at = Stop.PREEMPT, by, self._loop.time()
            self._context.asked = True
            self._timers.append(self._loop.call_later(self._grace, self._ask_again))
        elif (
            self.reason is Stop.PREEMPT and not self._forced and self._grace_is_over() and not self._context.in_section
        ):
            self._forced = True
            self._tell()

    def need_not_make_room(self) -> None:
        """The write does not wait any more; a handler that was not cancelled yet goes on."""
        if self.reason is Stop.PREEMPT and not self._forced:
            self.reason = None
            self._context.asked = False

    def _grace_is_over(self) -> bool:
        return self._loop.time() - self._asked_at >= self._grace

    def _section_ended(self) -> None:
        if self.reason is Stop.PREEMPT and self._grace_is_over():
            self._ask_again()

    def _tell(self) -> None:
        self._context.told = True
        if self.active and self._task is not None:
            self._task.cancel()
            if not self._told_at:
                self._told_at = self._loop.time()
                self._timers.append(self._loop.call_later(STUBBORN_REPORT, self._report))

    def _report(self) -> None:
        logger.warning(
            "%s (job %d) of %s still runs %.0f s after it was told to stop (%s); its agent stays locked",
            self.job.kind,
            self.job.job_id,
            self.job.user_id,
            self._loop.time() - self._told_at,
            self.reason,
        )
        self._timers.append(self._loop.call_later(STUBBORN_REPORT, self._report))

    async def execute(self, waits: Callable[[], None]) -> Outcome:
        """Run the handler to its end and return what came of it; `waits` is called when the handler waits for the first time."""
        try:
            return await self._execute(waits)
        finally:
            self.active, self.ended = False, True

    async def _execute(self, waits: Callable[[], None]) -> Outcome:
        if self._handler is None:
            return Outcome.failed(f"no handler: no live worker has one for {self.job.kind}")
        self._began = self._loop.time()
        if not self._brief:
            self.watch()
        task = self._task = asyncio.current_task()
        assert task is not None  # noqa: S101  # this is a coroutine: for the type checker
        self._context.section_ended = self._section_ended
        self.active = True
        result, error = None, None
        try:
            handling = self._handler(self._context, self.job.payload) if self._browsers is None else self._in_browser()
            result = await InOwnContext(handling, waits)
        except BaseException as raised:  # noqa: BLE001  # also SystemExit: no handler ends the daemon
            error = raised
        self.active = False
        if task.cancelling():
            await _uncancel(task)
        for timer in self._timers:
            timer.cancel()
        await self._context.finish()
        try:
            outcome = self._outcome(result, error)
            if self._browsers is not None:
                outcome = await self._browsers.after(self._context.tab, self.job, outcome, error, forced=self._forced)
            if self._breakers.concern(self.job, outcome, error):
                outcome = await self._breakers.judge(self.job, outcome, error)
            return outcome
        finally:
            del error  # whose traceback refers to this frame: see `JobContext.finish`

    async def _in_browser(self) -> Any:
        assert self._browsers is not None  # noqa: S101  # for the type checker
        assert self._handler is not None  # noqa: S101
        self._context.tab = await self._browsers.open(self.job, self._context)
        return await self._handler(self._context, self.job.payload)

    def watch(self) -> None:
        """See to it that the handler does not exceed its time; called at the start, but for a brief job only where it is none."""
        self._timers.append(self._loop.call_at(self._began + self.job.policy.timeout, self._time_out))

    def _time_out(self) -> None:
        if self.reason in {None, Stop.PREEMPT} and not self._forced:
            self.stop(Stop.TIMEOUT)

    def _outcome(self, result: Any, error: BaseException | None) -> Outcome:
        if self.reason is Stop.TIMEOUT:
            return Outcome.failed(f"timed out after {self.job.policy.timeout:g} s")
        if error is None:
            return _completed(result)
        if self.reason is Stop.CANCEL:
            return Outcome.cancelled(self.reason)
        # Asked once, also if that was taken back since: the handler may have seen it before.
        if self.reason is Stop.PREEMPT or (self.reason is None and self._by):
            if not self._forced and not isinstance(error, asyncio.CancelledError):
                return self._after_error(error)  # it failed by itself
            logger.info(
                "JOB_PREEMPTED: %s (job %d) of %s makes room for %s",
                self.job.kind,
                self.job.job_id,
                self.job.user_id,
                self._by,
            )
            return Outcome.preempted()
        if self.reason is not None:
            return Outcome.gone_back(self.reason) if self.job.policy.repeatable else Outcome.needs_review(self.reason)
        return self._after_error(error)

    def _after_error(self, error: BaseException) -> Outcome:
        if isinstance(error, asyncio.CancelledError):
            error = asyncio.CancelledError("the handler cancelled itself")
        elif isinstance(error, SystemExit | KeyboardInterrupt):
            error = HandlerExitError(f"the handler raised {type(error).__name__}")
        text, job = error_text(error), self.job
        if isinstance(error, StepUnknownError):
            return Outcome.needs_review(text)
        logger.info(
            "%s (job %d) of %s failed in attempt %d: %s",
            job.kind,
            job.job_id,
            job.user_id,
            job.attempt,
            type(error).__name__,
        )
        if job.attempt >= job.max_attempts:
            return Outcome.failed(text)
        backoff = job.policy.backoff
        return Outcome.retry(text, backoff.delay(job.attempt) if backoff else 0.0)


_COMPLETED = Outcome.completed("null")
"""What most handlers come to."""


def _completed(result: Any) -> Outcome:
    """The effect stands, so the job is completed even if its result cannot be kept."""
    if result is None:
        return _COMPLETED
    try:
        return Outcome.completed(to_json(result, "result"))
    except InvalidJobError as error:
        return Outcome.completed(None, f"completed, but without its result: {error}")


async def _uncancel(task: asyncio.Task[Any]) -> None:
    """Take back what a handler was told: it has ended, and its task goes on with the next job.

    A handler that cancels its own task and returns leaves a cancellation that comes with the next wait: this one.
    """
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.sleep(0)
    while task.cancelling():
        task.uncancel()
