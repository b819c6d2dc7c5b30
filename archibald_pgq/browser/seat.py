"""A place for one browser: launched when it is first needed, and again after it has died.

Guarantees: one launch at a time; after one that failed the next one waits, longer each time; a browser that was ended on purpose is not
taken for dead. Must not: know whose contexts it has.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

from archibald_pgq.browser.driver import Driver, RunningBrowser
from archibald_pgq.browser.statistics import Counters
from archibald_pgq.errors import BrowserDiedError, BrowserError

logger = logging.getLogger(__name__)

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
"""Seconds between launches that fail."""


class Changed(Protocol):
    """What a seat tells its pool."""

    def __call__(self, seat: Seat, *, died: bool) -> None:
        """Its browser has ended by itself, or can be had again."""


class Seat:
    """The place of one browser."""

    def __init__(
        self, number: int, driver: Driver, counters: Counters, clock: Callable[[], float], changed: Changed
    ) -> None:
        """Empty."""
        self.contexts = 0
        """Open ones, and those that are being opened."""
        self.shut = False
        """Nothing is launched any more."""
        self._number, self._driver, self._counters, self._clock, self._changed = (
            number,
            driver,
            counters,
            clock,
            changed,
        )
        self._browser: RunningBrowser | None = None
        self._launched_at = 0.0
        self._launching = asyncio.Lock()
        self._down = False
        self._revival: asyncio.Task[None] | None = None

    @property
    def usable(self) -> bool:
        """True unless its browser has died and is not there again."""
        return not self._down and not self.shut

    @property
    def running(self) -> bool:
        """True while there is a browser."""
        return self._browser is not None

    @property
    def age(self) -> float:
        """Seconds since its browser was launched."""
        return self._clock() - self._launched_at

    def memory(self) -> int:
        """Bytes that its browser takes."""
        return 0 if self._browser is None else self._browser.memory()

    async def browser(self) -> RunningBrowser:
        """Return the browser, launched if there is none.

        Raises:
            BrowserError: it does not start, or no more is launched.
        """
        async with self._launching:
            if self.shut:
                raise BrowserError("the browsers of this process are closed")
            if self._browser is None:
                self._browser = await self._launch()
            return self._browser

    async def _launch(self) -> RunningBrowser:
        mine: list[RunningBrowser] = []
        try:
            browser = await self._driver.launch(lambda: self._ended(mine))
        except BrowserError:
            self._go_down()
            raise
        mine.append(browser)
        self._counters.launches += 1
        self._launched_at = self._clock()
        if not browser.connected():
            raise BrowserDiedError(f"browser {self._number} ended as soon as it was started")
        return browser

    def _ended(self, mine: list[RunningBrowser]) -> None:
        if self.shut or not mine or self._browser is not mine[0]:
            return  # ended on purpose
        self._browser = None
        self._counters.deaths += 1
        logger.warning("browser %d has died with %d contexts; it is started anew", self._number, self.contexts)
        self._go_down()

    def _go_down(self) -> None:
        if not self._down:
            self._down = True
            self._changed(self, died=True)
            self._revival = asyncio.get_running_loop().create_task(
                self._revive(), name=f"browser {self._number} is started anew"
            )

    async def _revive(self) -> None:
        pause = FIRST_PAUSE
        while not self.shut:
            try:
                async with self._launching:
                    if self._browser is None:
                        self._browser = await self._launch()
                break
            except BrowserError as error:
                logger.warning(
                    "browser %d cannot be started, the next attempt is in %.1f s: %s", self._number, pause, error
                )
                await asyncio.sleep(pause)
                pause = min(pause * 2, LONGEST_PAUSE)
        self._down = False
        self._changed(self, died=False)

    async def end(self) -> None:
        """End the browser on purpose."""
        if self._revival is not None:
            self._revival.cancel()
            await asyncio.gather(self._revival, return_exceptions=True)
            self._revival, self._down = None, False
        async with self._launching:
            browser, self._browser = self._browser, None
        if browser is not None:
            await browser.close()
