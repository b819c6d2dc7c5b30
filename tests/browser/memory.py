"""Browsers in memory, for the pool's own rules: they open and close at once, or when a test lets them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from archibald_pgq.errors import BrowserError


class MemoryPage:
    def __init__(self, context: MemoryContext) -> None:
        self.context, self.closed = context, False

    def is_closed(self) -> bool:
        return self.closed

    async def close(self) -> None:
        self.closed = True


class MemoryContext:
    def __init__(self, browser: MemoryBrowser) -> None:
        self.browser, self.closed = browser, False
        self.pages: list[MemoryPage] = []

    async def new_page(self) -> MemoryPage:
        self.pages.append(MemoryPage(self))
        return self.pages[-1]

    async def close(self) -> None:
        await asyncio.sleep(0)
        self.closed = True
        self.browser.open -= 1


class MemoryBrowser:
    def __init__(self, driver: MemoryDriver, died: Callable[[], None]) -> None:
        self.driver, self.alive, self.open, self.bytes = driver, True, 0, 0
        self._died = died

    def connected(self) -> bool:
        return self.alive

    async def new_context(self) -> MemoryContext:
        self.open += 1
        self.driver.most_open = max(self.driver.most_open, sum(browser.open for browser in self.driver.running()))
        self.driver.most_in_one = max(self.driver.most_in_one, self.open)
        await asyncio.sleep(0)
        if not self.alive:
            raise ConnectionError("the browser has ended")
        return MemoryContext(self)

    def memory(self) -> int:
        return self.bytes

    def die(self) -> None:
        """End by itself."""
        self.alive = False
        self._died()

    async def close(self) -> None:
        if self.alive:
            self.die()  # Playwright tells of this end too


class MemoryDriver:
    def __init__(self) -> None:
        self.launched: list[MemoryBrowser] = []
        self.refuses = 0
        """So many launches fail."""
        self.most_open = self.most_in_one = 0
        self.started = False

    def running(self) -> list[MemoryBrowser]:
        return [browser for browser in self.launched if browser.alive]

    async def start(self) -> None:
        self.started = True

    async def launch(self, died: Callable[[], None]) -> Any:
        await asyncio.sleep(0)
        if self.refuses:
            self.refuses -= 1
            raise BrowserError("it does not start")
        self.launched.append(MemoryBrowser(self, died))
        return self.launched[-1]

    async def stop(self) -> None:
        self.started = False
