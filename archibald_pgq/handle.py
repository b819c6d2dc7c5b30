"""A job in the hands of whoever enqueued it."""

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
        if timeout is not None and not timeout >= 0:  # NaN too
            raise ValueError(f"timeout is a number of seconds from 0, not {timeout}")
        deadline = None if timeout is None else time.monotonic() + timeout
        job_id, pause = self.id, FIRST_LOOK
        while True:
            record = await self._read(job_id)
            match record.state:
                case State.COMPLETED:
                    return record.result
                case State.FAILED:
                    raise JobFailedError(record.error or "failed")
                case State.CANCELLED if isinstance(record.result, dict) and "absorbed_by" in record.result:
                    job_id = int(record.result["absorbed_by"])
                    continue
                case State.CANCELLED:
                    raise JobCancelledError(record.error or "cancelled")
                case State.NEEDS_REVIEW:
                    raise JobNeedsReviewError(record.error or "needs review")
                case _:
                    pass
            left = LONGEST_PAUSE if deadline is None else deadline - time.monotonic()
            if left <= 0:
                raise WaitTimeoutError(f"job {job_id} is {record.state} after {timeout:g} s; it goes on")
            await asyncio.sleep(min(pause, left))
            pause = min(pause * 1.5, LONGEST_PAUSE)
