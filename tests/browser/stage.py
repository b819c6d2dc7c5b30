"""Browsers that are only counted: a driver in memory, whose every step a test can hold, fail or end.

It does what the protocol of `archibald_pgq.browser.driver` says and nothing else; what a browser does is tested on a real one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from archibald_pgq.browser import BrowserPool, Lease, PoolSettings
from archibald_pgq.errors import BrowserDiedError, BrowserError


class Gate:
    """A step that a test can hold."""

    def __init__(self) -> None:
        self._open = asyncio.Event()
        self._open.set()
        self.waiting = 0
        self.passed = 0

    def hold(self) -> None:
        self._open.clear()

    def let_go(self) -> None:
        self._open.set()

    async def pass_through(self) -> None:
        self.waiting += 1
        try:
            await self._open.wait()
        finally:
            self.waiting -= 1
        self.passed += 1


class StageContext:
    def __init__(self, browser: StageBrowser) -> None:
        self.browser = browser
        self.crashed = False
        self.closed = False
        self.tidied = 0
        self.user_id: str | None = None
        self.valid = True

    @property
    def context(self) -> Any:
        return self

    @property
    def page(self) -> Any:
        return self

    @property
    def dead(self) -> bool:
        return self.crashed or not self.browser.alive

    async def tidy(self) -> None:
        await asyncio.sleep(0)
        if self.browser.driver.untidy:
            raise BrowserError("it does not tidy")
        self.tidied += 1

    async def close(self) -> None:
        await self.browser.driver.closing.pass_through()
        self.closed = True
        self.browser.contexts.discard(self)


class StageBrowser:
    def __init__(self, driver: StageDriver, number: int) -> None:
        self.driver, self.number = driver, number
        self.contexts: set[StageContext] = set()
        self.most = 0
        self.bytes = 0
        self.closed = False
        self._alive = True
        self._told: Callable[[], None] | None = None

    @property
    def alive(self) -> bool:
        return self._alive

    def on_end(self, told: Callable[[], None]) -> None:
        self._told = told
        if not self._alive:
            told()

    def die(self) -> None:
        self._alive = False
        self.contexts.clear()
        if self._told is not None:
            self._told()

    async def open(self) -> StageContext:
        context = StageContext(self)
        self.contexts.add(context)
        self.most = max(self.most, len(self.contexts))
        try:
            await self.driver.opening.pass_through()
        except BaseException:
            self.contexts.discard(context)
            raise
        if not self._alive:
            raise BrowserDiedError("it died")
        return context

    async def memory(self) -> int:
        return self.bytes

    async def close(self) -> None:
        self.closed = True
        self.die()


class StageDriver:
    def __init__(self) -> None:
        self.opening, self.closing, self.launching = Gate(), Gate(), Gate()
        self.browsers: list[StageBrowser] = []
        self.attempts: list[float] = []
        self.broken = False
        self.untidy = False
        self.closed = False

    async def launch(self) -> StageBrowser:
        self.attempts.append(asyncio.get_running_loop().time())
        await self.launching.pass_through()
        if self.broken:
            raise BrowserError("it does not start")
        self.browsers.append(StageBrowser(self, len(self.browsers)))
        return self.browsers[-1]

    @property
    def running(self) -> list[StageBrowser]:
        return [browser for browser in self.browsers if browser.alive]

    @property
    def contexts(self) -> int:
        return sum(len(browser.contexts) for browser in self.running)

    def reap(self) -> bool:
        return False

    async def close(self) -> None:
        self.closed = True
        for browser in self.running:
            await browser.close()


class Stage:
    """A pool on such browsers, with an app whose logins and sessions a test watches."""

    def __init__(self, **settings: Any) -> None:
        self.driver = StageDriver()
        self.logins: list[str] = []
        self.login, self.checking = Gate(), Gate()
        self.login_error: BaseException | None = None
        settings = {"browsers": 1, "contexts": 2, "login_budget": 1000, **settings}
        self.pool = BrowserPool(PoolSettings(**settings), login=self._log_in, valid=self._valid, driver=self.driver)

    async def _log_in(self, user_id: str, page: Any) -> None:
        self.logins.append(user_id)
        await self.login.pass_through()
        self._used(page)
        if self.login_error is not None:
            raise self.login_error
        page.user_id = user_id

    async def _valid(self, context: Any) -> bool:
        await self.checking.pass_through()
        self._used(context)
        return bool(context.valid)

    @staticmethod
    def _used(context: Any) -> None:
        if context.dead:
            raise RuntimeError("Target page, context or browser has been closed")

    async def __aenter__(self) -> Stage:
        await self.pool.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.pool.close()

    async def acquire(self, user_id: str, *, urgent: bool = False, timeout: float = 1000.0) -> Lease:  # noqa: ASYNC109  # the pool's
        return await self.pool.acquire(user_id, urgent, timeout)

    def acquiring(self, user_id: str, *, urgent: bool = False, timeout: float = 1000.0) -> asyncio.Task[Lease]:
        return asyncio.create_task(self.acquire(user_id, urgent=urgent, timeout=timeout))

    async def used(self, user_id: str, *, keep: bool = True) -> Any:
        """Acquire and release; return the context."""
        lease = await self.acquire(user_id)
        await lease.release(keep)
        return lease.context


def of(lease: Lease) -> StageContext:
    """Return the context of a lease."""
    context = lease._kept.context
    assert isinstance(context, StageContext)
    return context
