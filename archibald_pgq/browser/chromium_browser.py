"""One browser by Playwright, and its contexts.

Guarantees: nothing here waits for ever: a browser that does not do in time what it is told is ended by force; its end is seen also where
Playwright does not tell of it. Must not: launch one, or know whose a context is.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Callable

from playwright.async_api import Browser, BrowserContext, Page

from archibald_pgq.browser import processes
from archibald_pgq.browser.chromium import HOW
from archibald_pgq.errors import BrowserDiedError, BrowserError

OPENING, CLOSING = 30.0, 15.0
"""Seconds that a browser gets to open a context, and to close one or itself."""

LEAVING = 5.0
"""Seconds that a context gets to become empty."""

# Playwright raises errors of its own, the system's, and bare exceptions where its process has ended: so `Exception` below.


class ChromiumBrowser:
    """One browser: its own process, and Playwright's, without which it is of no use."""

    def __init__(self, browser: Browser, own: processes.Watched, helper: processes.Watched) -> None:
        """Watch it."""
        self.pid, self.group = own.pid, own.group
        self._browser, self._own, self._helper = browser, own, helper
        self._told: Callable[[], None] | None = None
        self._ended = False
        browser.on("disconnected", lambda _: self._end())
        # Playwright does not tell of the end of its own process.
        own.on_end(self._end)
        helper.on_end(self._end)

    @property
    def alive(self) -> bool:
        """See `Browser.alive`."""
        if not self._ended and not (self._browser.is_connected() and self._own.alive and self._helper.alive):
            self._end()
        return not self._ended

    def on_end(self, told: Callable[[], None]) -> None:
        """See `Browser.on_end`."""
        self._told = told
        if self._ended:
            told()

    def _end(self) -> None:
        if not self._ended:
            self._ended = True
            self._own.kill_group()  # it may have lost its connection only
            self._own.close()
            self._helper.close()
            if self._told is not None:
                self._told()

    async def open(self) -> ChromiumContext:
        """See `Browser.open`."""
        context = None
        try:
            async with asyncio.timeout(OPENING):
                context = await self._browser.new_context()
                return ChromiumContext(self, context, await context.new_page())
        except TimeoutError as error:
            self._end()
            raise BrowserDiedError(f"a browser opened no context within {OPENING:g} s, and was ended") from error
        except Exception as error:
            if context is not None:
                await self.close_context(context)
            if not self.alive:
                raise BrowserDiedError("the browser ended while it opened a context") from error
            raise BrowserError(f"a browser context could not be opened: {reason(error)}") from error

    async def close_context(self, context: BrowserContext) -> None:
        """Close a context; a browser that cannot do that is ended."""
        try:
            async with asyncio.timeout(CLOSING):
                await context.close()
        except Exception:  # noqa: BLE001
            self._end()

    async def memory(self) -> int:
        """See `Browser.memory`."""
        return await asyncio.to_thread(processes.memory_of, self.pid) if self.alive else 0

    async def close(self) -> None:
        """See `Browser.close`."""
        if not self._ended:
            await closed(self._browser)
            self._end()


class ChromiumContext:
    """One context."""

    def __init__(self, browser: ChromiumBrowser, context: BrowserContext, page: Page) -> None:
        """With its first page."""
        self._browser, self._context, self._page = browser, context, page
        self._crashed = False
        for one in context.pages:
            one.on("crash", self._crash)
        context.on("page", lambda one: one.on("crash", self._crash))

    @property
    def context(self) -> BrowserContext:
        """See `Context.context`."""
        return self._context

    @property
    def page(self) -> Page:
        """See `Context.page`."""
        return self._page

    @property
    def dead(self) -> bool:
        """See `Context.dead`."""
        return self._crashed or not self._browser.alive

    def _crash(self, _: Page) -> None:
        self._crashed = True

    async def tidy(self) -> None:
        """See `Context.tidy`."""
        try:
            async with asyncio.timeout(LEAVING):
                # A new page and none of the old ones: what listens and what is routed there was the last user's.
                used = self._context.pages
                self._page = await self._context.new_page()
                for page in used:
                    await page.close()
                await self._context.unroute_all()
        except Exception as error:
            raise BrowserError(f"a browser context cannot be kept: {reason(error)}") from error

    async def close(self) -> None:
        """See `Context.close`."""
        if self._browser.alive:
            await self._browser.close_context(self._context)


async def closed(browser: Browser) -> None:
    """Close one, or leave it to others."""
    with contextlib.suppress(Exception):
        async with asyncio.timeout(CLOSING):
            await browser.close()


def reason(error: BaseException) -> str:
    """Return the one line of Playwright's that says why; the others may hold what was typed into a page."""
    text = str(error)
    if "No usable sandbox" in text or "SUID sandbox helper" in text:
        return "it finds no sandbox; allow unprivileged user namespaces (with Docker, by a seccomp profile), or run as root in a container"
    if found := re.search(r"error while loading shared libraries: ([\w.+-]+)", text):
        return f"the library {found[1]} is missing; {HOW}"
    if found := re.search(r"process did exit: exitCode=(\w+), signal=(\w+)", text):
        how = f"exit code {found[1]}" if found[2] == "null" else found[2]
        said = re.findall(r"\]\[err\] (.+)", text)
        return f"it ended at once, by {how}" + (f", and said last: {said[-1][:200]}" if said else "")
    return text.strip().split("\n", 1)[0] or type(error).__name__
