"""What a pool needs of browsers; `chromium_driver.py` and `chromium_browser.py` have it from Playwright.

Must not: import Playwright.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from playwright.async_api import BrowserContext, Page


class Context(Protocol):
    """An open context with one page."""

    @property
    def context(self) -> BrowserContext:
        """Playwright's."""

    @property
    def page(self) -> Page:
        """Its page."""

    @property
    def dead(self) -> bool:
        """True once it cannot be used any more, for its browser or a page of it has crashed."""

    async def tidy(self) -> None:
        """Leave one open page, a new one, so that nothing of the old ones goes on by itself; and no route of the context's.

        Raises:
            BrowserError: that did not work.
        """

    async def close(self) -> None:
        """Close it. Raises nothing; if it does not close, its browser is ended."""


class Browser(Protocol):
    """A browser that runs."""

    @property
    def alive(self) -> bool:
        """False once it has ended, at whatever moment one looks."""

    def on_end(self, told: Callable[[], None]) -> None:
        """Have this called once when it has ended, for whatever reason; at once if it has."""

    async def open(self) -> Context:
        """Open a context with a page.

        Raises:
            BrowserDiedError: it ended meanwhile. BrowserError: it could not.
        """

    async def memory(self) -> int:
        """Return the bytes that it takes with all its processes; 0 where that cannot be known."""

    async def close(self) -> None:
        """End it, by force if need be. Raises nothing."""


class Driver(Protocol):
    """What launches browsers."""

    async def launch(self) -> Browser:
        """Start a browser.

        Raises:
            BrowserError: it does not start.
        """

    def reap(self) -> bool:
        """Take note of the ends of browsers' processes that are this process's children by now, so that none stays as a zombie.

        Returns:
            True if some of these processes live.
        """

    async def close(self) -> None:
        """End everything that was launched. Raises nothing."""
