"""What a handler is given besides its data.

Guarantees: nothing here tells how often a job was requeued; progress is written at most twice a second and its last value always;
a section that must not be cut is not cut by a write that waits, for as long as sections may last.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager, suppress
from functools import cached_property
from typing import TYPE_CHECKING, Any

from archibald_pgq.domain.job import ClaimedJob
from archibald_pgq.domain.operations import JobClass
from archibald_pgq.domain.payload import json_bytes, to_json
from archibald_pgq.errors import ArchibaldError, ConfigError, InvalidJobError
from archibald_pgq.runtime.checkpoints import Checkpoints
from archibald_pgq.store import commands
from archibald_pgq.store.request import Ask

if TYPE_CHECKING:
    from playwright.async_api import BrowserContext, Page

    from archibald_pgq.runtime.tab import Tab


LONGEST_SECTION = 30.0
"""Seconds for which `uninterruptible` keeps a write of the agent waiting."""

MAX_STATE_BYTES = 65_536

PROGRESS_INTERVAL = 0.5
"""Seconds between two writes of one job's progress."""

LAST_WRITE = 2.0
"""Seconds that the last write may take."""

MAX_LABEL = 200

_LOGGER = logging.getLogger("archibald_pgq.job")


class _JobLog(logging.LoggerAdapter[logging.Logger]):
    """Puts the job in front of each line."""

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        extra = self.extra or {}
        return f"[{extra['kind']} {extra['job_id']} of {extra['user_id']}] {msg}", {**kwargs, "extra": extra}


def _nothing() -> None:
    pass


class JobContext:
    """The job that a handler runs.

    Attributes:
        user_id: the agent.
        job_id: the job.
        kind: the operation.
        attempt: the number of this attempt; 1 is the first.
        state: what an earlier run of this sync saved, or None.
    """

    def __init__(self, job: ClaimedJob, worker_id: int, ask: Ask) -> None:
        """Made by the executor, one for each run."""
        self.user_id = job.user_id
        self.job_id = job.job_id
        self.kind = job.kind
        self.attempt = job.attempt
        self.state = job.saved_state
        self.told = False
        """Told to stop, and its task is cancelled; set by the executor."""
        self.asked = False
        """Asked to make room for a write of its agent; set by the executor."""
        self.section_ended: Callable[[], None] = _nothing
        """Called when a section that must not be cut has ended; set by the executor."""
        self.tab: Tab | None = None
        """The browser's, of a kind that needs one; set by the executor."""
        self._job = job
        self._sections = 0
        self._section_since = 0.0
        self._worker_id, self._ask = worker_id, ask
        self._pending: tuple[int, str | None] | None = None
        self._writer: asyncio.Task[None] | None = None
        self._over: asyncio.Event | None = None

    @cached_property
    def log(self) -> logging.LoggerAdapter[logging.Logger]:
        """A logger that names the job in each line."""
        return _JobLog(_LOGGER, {"kind": self.kind, "job_id": self.job_id, "user_id": self.user_id})

    @property
    def cancelled(self) -> bool:
        """True once the job must stop.

        After a timeout, a cancel or a shutdown the task is cancelled at the same moment. A sync that must make room for a write of its
        agent sees it some seconds before (ARCHIBALD_PREEMPT_GRACE), so that it can stop where it likes.
        """
        return self.told or (self.asked and not self.in_section)

    def raise_if_cancelled(self) -> None:
        """Stop here if the job must stop.

        Raises:
            asyncio.CancelledError: it must; let it through.
        """
        if self.cancelled:
            raise asyncio.CancelledError("the job was asked to stop")

    @property
    def in_section(self) -> bool:
        """True within `uninterruptible`, for as long as sections may last."""
        return self._sections > 0 and time.monotonic() - self._section_since < LONGEST_SECTION

    @asynccontextmanager
    async def uninterruptible(self) -> AsyncIterator[None]:
        """A section that a waiting write of the same agent does not cut, such as a form that is being saved; for at most 30 s.

        A timeout, a cancel and a shutdown do cut it.
        """
        if self._sections == 0:
            self._section_since = time.monotonic()
        self._sections += 1
        try:
            yield
        finally:
            self._sections -= 1
            if self._sections == 0:
                self.section_ended()

    async def save(self, state: Any) -> None:
        """Keep what this sync has reached, a JSON value of up to 64 KB; a later run of the job finds it as `ctx.state`.

        For the progress of a sync, which may also do a part again. Written when this returns.

        Raises:
            InvalidJobError: the job is no sync, or the state is no JSON or too large.
            JobStateError: the job is no longer this worker's. DatabaseError: the database cannot be used.
        """
        if self._job.policy.job_class is not JobClass.SYNC:
            raise InvalidJobError(f"{self.kind} is no sync; only a sync can save a state")
        text = to_json(state, "state")
        if json_bytes(text) > MAX_STATE_BYTES:
            raise InvalidJobError(f"the state is over {MAX_STATE_BYTES} bytes as JSON; keep large data elsewhere")
        await self._ask(commands.save_state(self._job, self._worker_id, text))
        self.state = state

    async def page(self) -> Page:
        """Return a page of the agent's browser context, logged in; a new one where the last one was closed.

        Raises:
            ConfigError: the kind is registered without `needs_browser=True`.
        """
        return await self._own_tab().page()

    @property
    def browser_context(self) -> BrowserContext:
        """The agent's browser context, for more than one page, or for cookies; raises as `page` does."""
        return self._own_tab().lease.context

    def _own_tab(self) -> Tab:
        if self.tab is None:
            raise ConfigError(f"{self.kind} has no browser; register it with needs_browser=True")
        return self.tab

    @cached_property
    def _checkpoints(self) -> Checkpoints:
        return Checkpoints(self._job, self._worker_id, self._ask)

    async def once(
        self,
        step: str,
        act: Callable[[], Awaitable[Any]],
        *,
        key: str | None = None,
        verify: Callable[[], Awaitable[Any]] | None = None,
        settle: float = 0.0,
    ) -> Any:
        """Run `act` once, whatever happens to this job, and return its result, a JSON value; a later run gets that result instead.

        That the step begins is committed before `act` is called, and its result when it has returned. A run that ends in between (a crash,
        a timeout, an error of `act`) leaves the step unknown: the next run of the job asks `verify` whether it happened, and without
        `verify` ends as `needs_review`. Declare a write whose effects all lie in steps as `idempotent`, so that it is run again by itself.

        Args:
            step: its name, 1 to 200 characters.
            act: has the effect; takes no arguments.
            key: of an entity, such as an order's number: the step is then done once for all jobs of this user and kind that name it,
                until `forget`, or until ARCHIBALD_RETENTION_DAYS have passed. None: once for this job, and for who retries it.
            verify: looks whether the effect is there, and returns the step's result, or None where it is not.
            settle: seconds from the step's begin until its effect is there or will never be; `verify` is not asked before.

        Raises:
            InvalidJobError: a name is not allowed, or the result is no JSON (the step counts as done, with no result).
            StepUnknownError: the step is unknown and there is no `verify`; let it through.
            JobStateError: the job is no longer this worker's.
            NotPermittedError, SchemaError: the database refuses. Where it cannot be reached this waits, as long as the job may run.
        """
        return await self._checkpoints.once(step, act, key, verify, settle)

    async def forget(self, key: str) -> None:
        """Forget the steps of `key`, of this user and kind: a later job may do them anew.

        For when what they did is recorded elsewhere, and that is committed.

        Raises:
            InvalidJobError: the key is not allowed. JobStateError: the job is no longer this worker's.
            NotPermittedError, SchemaError: see `once`.
        """
        await self._checkpoints.forget(key)

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
            self._over = self._over or asyncio.Event()
            self._writer = asyncio.create_task(self._write_pending(self._over))

    async def _write_pending(self, over: asyncio.Event) -> None:
        while self._pending is not None:
            await self._write_last()
            with suppress(TimeoutError):
                await asyncio.wait_for(over.wait(), PROGRESS_INTERVAL)

    async def _write_last(self) -> None:
        if self._pending is None:
            return
        (percent, label), self._pending = self._pending, None
        try:
            await self._ask(commands.progress(self.job_id, self._worker_id, percent, label))
        except ArchibaldError as error:
            # Progress is for looking at: the job goes on without it.
            self.log.warning("progress could not be written: %s", error)

    async def finish(self) -> None:
        """Write what is still unwritten; called by the executor once the handler has ended.

        Not at any price: the job's outcome waits for this, and its agent too.
        """
        # It refers to the run, which refers to this: payloads are freed with their job, and not when the garbage collector looks.
        self.section_ended = _nothing
        if self._writer is not None and self._over is not None:
            self._over.set()  # the writer goes on at once with what is pending, and then ends
            await asyncio.wait({self._writer}, timeout=LAST_WRITE)
            if not self._writer.done():
                self._writer.cancel()
                self.log.warning("the database does not answer: the last progress is not written")
