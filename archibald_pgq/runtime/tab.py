"""The browser context of one run of one job: its page, and what it last showed.

Guarantees: a look at what it showed ends in time, whatever state the page is in. Must not: decide what becomes of the context.
"""

from __future__ import annotations

import asyncio
import logging
import tempfile
from collections.abc import Awaitable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from archibald_pgq.domain.job import ClaimedJob

if TYPE_CHECKING:
    from playwright.async_api import Page

    from archibald_pgq.browser import Lease

logger = logging.getLogger(__name__)

T = TypeVar("T")

LOOK = 3.0
"""Seconds that a screenshot, and a trace, may take."""


class Tab:
    """The context of one run of one job."""

    def __init__(self, lease: Lease, job: ClaimedJob) -> None:
        """Wrap what the pool gave."""
        self.lease, self.job = lease, job
        self._traced = False

    async def begin_trace(self) -> None:
        """Record what happens, for a run that fails."""
        await self.lease.context.tracing.start(screenshots=True, snapshots=True)
        self._traced = True

    async def page(self) -> Page:
        """Return the page, a new one where the handler has closed it."""
        if self.lease.page.is_closed():
            self.lease.page = await self.lease.context.new_page()
        return self.lease.page

    async def look(self) -> tuple[str | None, bytes | None, bytes | None]:
        """Return the page's address, a screenshot and the trace, as far as they can be had in time."""
        page = self.lease.page
        url = None if page.is_closed() else page.url
        screenshot = await _in_time(page.screenshot(timeout=LOOK * 1000)) if url is not None else None
        trace = await _in_time(self._end_trace()) if self._traced else None
        return url, screenshot, trace

    async def drop_trace(self) -> None:
        """End the recording, of which nothing is wanted: the next run of this context begins its own."""
        if self._traced and not self.lease.died:
            self._traced = False
            await _in_time(self.lease.context.tracing.stop())

    async def _end_trace(self) -> bytes:
        self._traced = False
        with tempfile.TemporaryDirectory(prefix="archibald-trace-") as folder:
            path = Path(folder) / "trace.zip"
            await self.lease.context.tracing.stop(path=path)
            return await asyncio.to_thread(path.read_bytes)


async def _in_time(taking: Awaitable[T]) -> T | None:
    """The page may be gone, or busy for ever; whatever it is, the job's outcome does not wait for it."""
    try:
        async with asyncio.timeout(LOOK):
            return await taking
    except Exception as error:  # noqa: BLE001  # Playwright's own errors, which the core does not know
        logger.debug("no evidence: %s", error)
        return None
