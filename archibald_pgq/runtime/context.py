"""What a handler is given besides its data.

Guarantees: nothing here tells how often a job was requeued; progress is written at most twice a second and its last value always.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from archibald_pgq.domain.job import ClaimedJob
from archibald_pgq.errors import ArchibaldError

WriteProgress = Callable[[int, int, str | None], Awaitable[None]]
"""Writes (job id, percent, label)."""

PROGRESS_INTERVAL = 0.5
"""Seconds between two writes of one job's progress."""

LAST_WRITE = 2.0
"""Seconds that the last write may take."""

MAX_LABEL = 200


class _JobLog(logging.LoggerAdapter[logging.Logger]):
    """Puts the job in front of each line."""

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        extra = self.extra or {}
        return f"[{extra['kind']} {extra['job_id']} of {extra['user_id']}] {msg}", {**kwargs, "extra": extra}


class JobContext:
    """The job that a handler runs.

    Attributes:
        user_id: the agent.
        job_id: the job.
        kind: the operation.
        attempt: the number of this attempt; 1 is the first.
        log: a logger that names the job in each line.
        cancelled: true once the job was asked to stop (timeout, cancel, shutdown); the task is cancelled too.
    """

    def __init__(self, job: ClaimedJob, write_progress: WriteProgress) -> None:
        """Made by the executor, one for each run."""
        self.user_id = job.user_id
        self.job_id = job.job_id
        self.kind = job.kind
        self.attempt = job.attempt
        self.cancelled = False
        self.log = _JobLog(
            logging.getLogger("archibald_pgq.job"), {"kind": job.kind, "job_id": job.job_id, "user_id": job.user_id}
        )
        self._write = write_progress
        self._pending: tuple[int, str | None] | None = None
        self._writer: asyncio.Task[None] | None = None
        self._over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def progress(self, percent: int, label: str | None = None) -> None:
        """Show how far the job is: `percent` 0 to 100, `label` up to 200 characters.

        Returns at once. Written at most twice a second; what comes faster replaces what was not yet written.

        Raises:
            ValueError: percent is not within 0 to 100.
        """
        if not 0 <= percent <= 100:
            raise ValueError(f"progress is 0 to 100 percent, not {percent}")
        self._pending = (int(percent), label[:MAX_LABEL].replace("\x00", "") if label else None)
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write_pending())

    async def _write_pending(self) -> None:
        while self._pending is not None:
            await self._write_last()
            await asyncio.wait({self._over}, timeout=PROGRESS_INTERVAL)

    async def _write_last(self) -> None:
        if self._pending is None:
            return
        (percent, label), self._pending = self._pending, None
        try:
            await self._write(self.job_id, percent, label)
        except ArchibaldError as error:
            # Progress is for looking at: the job goes on without it.
            self.log.warning("progress could not be written: %s", error)

    async def finish(self) -> None:
        """Write what is still unwritten; called by the executor once the handler has ended.

        Not at any price: the job's outcome waits for this, and its agent too.
        """
        if self._writer is not None:
            self._over.set_result(None)  # the writer goes on at once with what is pending, and then ends
            await asyncio.wait({self._writer}, timeout=LAST_WRITE)
            if not self._writer.done():
                self._writer.cancel()
                self.log.warning("the database does not answer: the last progress is not written")
