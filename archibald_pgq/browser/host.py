"""The place of one browser: what is launched there, and launched again.

Guarantees: a browser that ends by itself is followed by another one, after a pause that grows while they fail; one that is ended with the
pool is not. Must not: know of contexts.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Protocol

from archibald_pgq.browser.driver import Browser, Driver
from archibald_pgq.browser.statistics import Counters
from archibald_pgq.errors import BrowserError

logger = logging.getLogger(__name__)

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
"""Seconds before the second of two launches, and at most before a later one."""

STABLE = 60.0
"""After a browser that ran for so many seconds the next one is launched at once."""


class Informed(Protocol):
    """Who is told whether a browser can be used."""

    def up(self, browser: int) -> None:
        """It can, from now on."""

    def down(self, browser: int) -> None:
        """It cannot any more."""


class Host:
    """One of a pool's browsers, by its number."""

    def __init__(self, number: int, driver: Driver, informed: Informed, counters: Counters) -> None:
        """Nothing runs yet."""
        self.number = number
        self.trouble: str | None = None
        """Why it cannot be launched, while that is so."""
        self._driver, self._informed, self._counters = driver, informed, counters
        self._browser: Browser | None = None
        self._launched_at = 0.0
        self._pause = 0.0
        self._life: asyncio.Task[None] | None = None
        self._woken = asyncio.Event()
        self._renewing = False

    @property
    def browser(self) -> Browser | None:
        """The browser, if it runs and may be used."""
        running = self._browser is not None and self._browser.alive and not self._renewing
        return self._browser if running else None

    async def start(self) -> None:
        """Launch the first browser.

        Raises:
            BrowserError: it does not start.
        """
        await self._launch()
        self._life = asyncio.create_task(self._live(), name=f"browser {self.number}")

    async def is_due(self, age: float, memory: int) -> bool:
        """Return whether the browser is older than `age` seconds, or takes more than `memory` bytes."""
        if self.browser is None:
            return False
        return asyncio.get_running_loop().time() - self._launched_at > age or await self.browser.memory() > memory

    def renew(self) -> None:
        """End the browser and launch another one; nobody uses it."""
        self._renewing = True
        self._informed.down(self.number)
        self._woken.set()

    async def close(self) -> None:
        """End the browser; none follows."""
        if self._life is not None:
            self._life.cancel()
            await asyncio.wait({self._life})
        if self._browser is not None:
            await self._browser.close()

    async def _live(self) -> None:
        while True:
            await self._woken.wait()
            self._woken.clear()
            browser = self._browser
            if browser is None or (browser.alive and not self._renewing):
                continue  # the end of a browser before this one
            if browser.alive:
                await browser.close()
                self._counters.recycled += 1
                self._pause = 0.0
            else:
                self._counters.deaths += 1
                self._informed.down(self.number)
                logger.warning("browser %d has died; another one is started", self.number)
            self._driver.reap()
            await self._relaunch()

    async def _relaunch(self) -> None:
        if asyncio.get_running_loop().time() - self._launched_at >= STABLE:
            self._pause = 0.0
        while True:
            await asyncio.sleep(self._pause)
            self._pause = min(max(2 * self._pause, FIRST_PAUSE), LONGEST_PAUSE)
            try:
                await self._launch()
            except BrowserError as error:
                self._counters.failed_launches += 1
                if self.trouble is None:
                    logger.warning("browser %d cannot be started, and is tried again: %s", self.number, error)
                self.trouble = str(error)
            else:
                self._counters.relaunches += 1
                return

    async def _launch(self) -> None:
        browser = await self._driver.launch()
        self._browser, self._renewing, self.trouble = browser, False, None
        self._launched_at = asyncio.get_running_loop().time()
        self._informed.up(self.number)
        browser.on_end(self._woken.set)
