"""One job in, one outcome out.

Owns: running a handler under its timeout, stopping it when asked, and reading off what came of it. Guarantees: `execute` returns only
when no code of the handler runs any more, however long that takes, because its agent's lock is free after that; every way a handler can
end maps to exactly one `Outcome`. Must not: talk to the database.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable
from enum import StrEnum
from typing import Any

from archibald_pgq.domain.job import ClaimedJob
from archibald_pgq.domain.outcome import Outcome
from archibald_pgq.domain.payload import to_json
from archibald_pgq.errors import InvalidJobError
from archibald_pgq.runtime.context import JobContext, WriteProgress
from archibald_pgq.runtime.registry import Handler

logger = logging.getLogger(__name__)

STUBBORN_REPORT = 30.0
"""Seconds between two reports about a handler that does not end though it was told to."""

MAX_ERROR = 8000


class Stop(StrEnum):
    """Why a run is told to stop."""

    TIMEOUT = "timed out"
    CANCEL = "cancelled on request"
    SHUTDOWN = "interrupted by shutdown"
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
    """One run of one job."""

    def __init__(self, job: ClaimedJob, handler: Handler | None, write_progress: WriteProgress) -> None:
        """Prepare; `handler` is None for a kind that no live worker handles."""
        self.job = job
        self.reason: Stop | None = None
        self._handler = handler
        self._context = JobContext(job, write_progress)
        self._task: asyncio.Task[Any] | None = None
        self.ended = asyncio.Event()
        """Set when no handler code runs any more."""

    @property
    def active(self) -> bool:
        """True while handler code may run."""
        return self._task is not None and not self._task.done()

    def stop(self, reason: Stop) -> None:
        """Tell the handler to stop; the first reason stands, but a lost lease outranks all."""
        if self.reason is None or reason is Stop.FENCE:
            self.reason = reason
        self._context.cancelled = True
        if self._task is not None:
            self._task.cancel()

    async def execute(self) -> Outcome:
        """Run the handler to its end and return what came of it."""
        try:
            return await self._execute()
        finally:
            self.ended.set()

    async def _execute(self) -> Outcome:
        if self._handler is None:
            return Outcome.failed(f"no handler: no live worker has one for {self.job.kind}")
        if self.reason is not None:  # told to stop before it began
            return Outcome.cancelled(self.reason) if self.reason is Stop.CANCEL else Outcome.gone_back()
        self._task = asyncio.create_task(
            _guarded(self._handler(self._context, self.job.payload)), name=f"job {self.job.job_id}"
        )
        await self._ended(self._task)
        await self._context.finish()
        return self._outcome(self._task)

    async def _ended(self, task: asyncio.Task[Any]) -> None:
        await asyncio.wait({task}, timeout=self.job.policy.timeout)
        if not task.done() and self.reason is None:
            self.stop(Stop.TIMEOUT)
        told = time.monotonic()
        while not task.done():
            await asyncio.wait({task}, timeout=STUBBORN_REPORT)
            if not task.done():
                logger.warning(
                    "%s (job %d) of %s still runs %.0f s after it was told to stop (%s); its agent stays locked",
                    self.job.kind,
                    self.job.job_id,
                    self.job.user_id,
                    time.monotonic() - told,
                    self.reason,
                )

    def _outcome(self, task: asyncio.Task[Any]) -> Outcome:
        if self.reason is Stop.TIMEOUT:
            return Outcome.failed(f"timed out after {self.job.policy.timeout:g} s")
        if not task.cancelled() and task.exception() is None:
            return _completed(task.result())
        if self.reason is Stop.CANCEL:
            return Outcome.cancelled(self.reason)
        if self.reason is not None:
            return Outcome.gone_back(self.reason) if self.job.policy.repeatable else Outcome.needs_review(self.reason)
        error = asyncio.CancelledError("the handler cancelled itself") if task.cancelled() else task.exception()
        assert error is not None  # noqa: S101  # neither cancelled nor without exception: for the type checker
        return self._after_error(error)

    def _after_error(self, error: BaseException) -> Outcome:
        text, job = error_text(error), self.job
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


def _completed(result: Any) -> Outcome:
    """The effect stands, so the job is completed even if its result cannot be kept."""
    try:
        return Outcome.completed(to_json(result, "result"))
    except InvalidJobError as error:
        return Outcome.completed(None, f"completed, but without its result: {error}")


async def _guarded(handler: Awaitable[Any]) -> Any:
    """Keep a handler's SystemExit from ending the daemon: asyncio would re-raise it out of the loop."""
    try:
        return await handler
    except (SystemExit, KeyboardInterrupt) as error:
        raise HandlerExitError(f"the handler raised {type(error).__name__}") from error
