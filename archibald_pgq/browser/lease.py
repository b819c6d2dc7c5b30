"""A context, as the pool keeps it and as somebody has it.

Guarantees: it is given back once, also where who has it is cancelled meanwhile. Must not: decide what becomes of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from archibald_pgq.browser.seat import Seat

if TYPE_CHECKING:
    from playwright.async_api import BrowserContext, Page


@dataclass(slots=True, eq=False)
class Kept:
    """A context of an agent."""

    user_id: str
    seat: Seat
    context: Any
    page: Any
    opened_at: float
    used_at: float
    in_use: bool = True
    alive: bool = True


TakeBack = Callable[[Kept, bool], Coroutine[Any, Any, None]]
"""Takes a context back, to be kept or to be closed."""


class Lease:
    """A context that somebody has; `page` is logged in, and may be replaced by another one of the same context."""

    def __init__(self, take_back: TakeBack, kept: Kept) -> None:
        """Made by `BrowserPool.acquire`."""
        self._take_back, self._kept = take_back, kept
        self.context: BrowserContext = kept.context
        self.page: Page = kept.page
        self._released = False

    @property
    def died(self) -> bool:
        """True once its browser has ended by itself: whatever fails here fails because of that."""
        return not self._kept.alive

    async def release(self, *, keep: bool) -> None:
        """Give it back, to be kept for the agent or closed; done also if the caller is cancelled meanwhile. A second call does nothing."""
        if not self._released:
            self._released = True
            self._kept.page = self.page
            await asyncio.shield(asyncio.ensure_future(self._take_back(self._kept, keep)))
