"""What somebody who uses a context has in hand.

Guarantees: it is released once, however often that is asked; a release goes on to its end though whoever asked for it is cancelled. Must
not: decide what becomes of the context.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from archibald_pgq.browser.kept import Kept

if TYPE_CHECKING:
    from playwright.async_api import BrowserContext, Page


class Lease:
    """The context of one agent, in use until it is released.

    Attributes:
        user_id: the agent.
        context: Playwright's context.
        page: a page of it; logged in. It shows whatever the login or its user left there, or nothing.
    """

    def __init__(self, kept: Kept, release: Callable[[bool], Coroutine[Any, Any, None]]) -> None:
        """Made by `BrowserPool.acquire`."""
        self.user_id = kept.user_id
        self.context: BrowserContext = kept.context.context
        self.page: Page = kept.context.page
        self._kept, self._release = kept, release
        self._died = False
        self._released: asyncio.Task[None] | None = None

    @property
    def died(self) -> bool:
        """True if the browser or a page of the context ended under its user: what failed with that passes on another one."""
        self._died = self._died or self._kept.died
        return self._died

    async def release(self, keep: bool) -> None:
        """Give it back.

        Args:
            keep: True: the agent's next lease may have the same context; False: it is closed, as after a failure or a cancellation.
        """
        if self._released is None:
            self._died = self.died
            self._released = asyncio.create_task(
                self._release(keep), name=f"release the browser context of {self.user_id}"
            )
        await asyncio.shield(self._released)
