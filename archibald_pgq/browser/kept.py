"""One context from its opening to its close.

Guarantees: a context whose opening was given up is closed as soon as it is open; closing is done once, and is not cut by a cancellation of
whoever waits for it. Must not: choose a browser.
"""

from __future__ import annotations

import asyncio

from archibald_pgq.browser.driver import Browser, Context


class Kept:
    """A context of one agent."""

    def __init__(self, user_id: str, browser: Browser) -> None:
        """Begin to open it."""
        self.user_id = user_id
        self.since = 0.0
        """When its login was done, in the loop's seconds."""
        self._browser = browser
        self._opening = asyncio.create_task(browser.open(), name=f"open a browser context for {user_id}")
        self._closing: asyncio.Task[None] | None = None

    async def opened(self) -> Context:
        """Wait until it is open.

        Raises:
            BrowserError: it could not be opened.
        """
        return await asyncio.shield(self._opening)

    @property
    def context(self) -> Context:
        """What was opened."""
        return self._opening.result()

    @property
    def dead(self) -> bool:
        """True once it cannot be used any more."""
        if not self._browser.alive or self._closing is not None:
            return True
        return self._opening.done() and (self._opening.exception() is not None or self.context.dead)

    @property
    def died(self) -> bool:
        """True if that is nobody's intention."""
        return self._closing is None and self.dead

    async def close(self) -> None:
        """Close it, if need be after its opening. Raises nothing of its own."""
        if self._closing is None:
            self._closing = asyncio.create_task(self._close(), name=f"close the browser context of {self.user_id}")
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        try:
            context = await self._opening
        except Exception:  # noqa: BLE001  # told to whoever waits for the opening; there is nothing to close
            return
        await context.close()
