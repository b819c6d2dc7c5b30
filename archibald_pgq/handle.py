"""A job in the hands of whoever enqueued it, in asynchronous and in synchronous code."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

from archibald_pgq.domain.job import JobRecord
from archibald_pgq.domain.states import State
from archibald_pgq.errors import JobCancelledError, JobFailedError, JobNeedsReviewError, WaitTimeoutError

FIRST_LOOK = 0.02
LONGEST_PAUSE = 0.5
"""Seconds between two looks at a job that somebody waits for: more at each look, from the first to the longest."""


class Job:
    """A handle on one job.

    Attributes:
        id: the job's id.
    """

    def __init__(self, job_id: int, read: Callable[[int], Awaitable[JobRecord]]) -> None:
        """Made by `Archibald.enqueue`."""
        self.id = job_id
        self._read = read

    def __repr__(self) -> str:
        """Show the id."""
        return f"<Job {self.id}>"

    async def record(self) -> JobRecord:
        """Return the job as it is now.

        Raises:
            UnknownJobError: it is not there (for instance, its transaction was rolled back, or its history was dropped).
            DatabaseError: the database cannot be used.
        """
        return await self._read(self.id)

    async def wait(self, timeout: float | None = None) -> Any:  # noqa: ASYNC109  # the public name; it bounds polling, not a task
        """Wait until the job has finished and return the handler's result.

        A sync that was absorbed by another one of its kind is followed to that one.

        Args:
            timeout: seconds to wait at most; None waits for as long as it takes.

        Raises:
            JobFailedError: it failed; the text is its error.
            JobCancelledError: it was cancelled.
            JobNeedsReviewError: it was interrupted and may or may not have had its effect.
            WaitTimeoutError: it was not finished in time; it goes on.
            UnknownJobError, DatabaseError: see `record`.
            ValueError: the timeout is negative or NaN.
        """
        watch = _Watch(self.id, timeout)
        while watch.goes_on(await self._read(watch.job_id)):  # noqa: ASYNC110  # a database has no event for this
            await asyncio.sleep(watch.pause)
        return watch.result


class SyncJob:
    """A handle on one job, for synchronous code.

    Attributes:
        id: the job's id.
    """

    def __init__(self, job_id: int, read: Callable[[int], JobRecord]) -> None:
        """Made by `SyncArchibald.enqueue`."""
        self.id = job_id
        self._read = read

    def __repr__(self) -> str:
        """Show the id."""
        return f"<SyncJob {self.id}>"

    def record(self) -> JobRecord:
        """Return the job as it is now; raises what `Job.record` raises."""
        return self._read(self.id)

    def wait(self, timeout: float | None = None) -> Any:
        """Wait until the job has finished and return the handler's result; see `Job.wait` for arguments and errors."""
        watch = _Watch(self.id, timeout)
        while watch.goes_on(self._read(watch.job_id)):
            time.sleep(watch.pause)
        return watch.result


class _Watch:
    """Follows a job to its end: which id to look at, how long to rest between two looks, what it came to."""

    def __init__(self, job_id: int, timeout: float | None) -> None:
        if timeout is not None and not timeout >= 0:  # NaN too
            raise ValueError(f"timeout is a number of seconds from 0, not {timeout}")
        self.job_id = job_id
        self.pause = 0.0
        self.result: Any = None
        self._timeout = timeout
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._next_pause = FIRST_LOOK

    def goes_on(self, record: JobRecord) -> bool:
        """True if there is something to wait for yet, after `pause` seconds; False when `result` is there.

        Raises:
            JobFailedError, JobCancelledError, JobNeedsReviewError, WaitTimeoutError: see `Job.wait`.
        """
        match record.state:
            case State.COMPLETED:
                self.result = record.result
                return False
            case State.FAILED:
                raise JobFailedError(record.error or "failed")
            case State.CANCELLED if isinstance(record.result, dict) and "absorbed_by" in record.result:
                self.job_id, self.pause = int(record.result["absorbed_by"]), 0.0
                return True
            case State.CANCELLED:
                raise JobCancelledError(record.error or "cancelled")
            case State.NEEDS_REVIEW:
                raise JobNeedsReviewError(record.error or "needs review")
            case _:
                pass
        left = LONGEST_PAUSE if self._deadline is None else self._deadline - time.monotonic()
        if left <= 0:
            raise WaitTimeoutError(f"job {self.job_id} is {record.state} after {self._timeout:g} s; it goes on")
        self.pause = min(self._next_pause, left)
        self._next_pause = min(self._next_pause * 1.5, LONGEST_PAUSE)
        return True
