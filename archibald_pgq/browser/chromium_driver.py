"""Browsers and contexts by Playwright.

Guarantees: nothing here waits for ever: a browser that does not do in time what it is told is ended by force; its end is seen also where
Playwright does not tell of it; Playwright's own process is started anew when it has ended. Must not: know whose a context is.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from collections.abc import Callable
from pathlib import Path

from playwright.async_api import Browser, BrowserContext, Page, Playwright, async_playwright

from archibald_pgq.browser import processes
from archibald_pgq.browser.chromium import HOW, find_chromium
from archibald_pgq.errors import BrowserDiedError, BrowserError

LAUNCHING, OPENING, CLOSING = 30.0, 30.0, 15.0
"""Seconds that a browser gets to start, to open a context, and to close one or itself."""

# Playwright raises errors of its own, the system's, and bare exceptions where its process has ended: so `Exception` below.

LEAVING = 5.0
"""Seconds that a page gets to become empty."""

# Shared memory is small in containers; a browser that is used by a program needs none of it.
ARGUMENTS = ("--disable-dev-shm-usage",)


class ChromiumDriver:
    """Launches Chromium."""

    def __init__(self, chromium: Path | None) -> None:
        """Find the executable.

        Raises:
            ConfigError: there is none.
        """
        self._chromium = find_chromium(chromium)
        self._playwright: Playwright | None = None
        self._helper: processes.Watched | None = None
        self._starting = asyncio.Lock()
        self._launching: set[asyncio.Task[ChromiumBrowser]] = set()
        self._browsers: list[ChromiumBrowser] = []
        self._groups: set[int] = set()

    async def launch(self) -> ChromiumBrowser:
        """Start a browser, and first Playwright's own process where it does not run.

        Raises:
            BrowserError: it does not start.
        """
        # Not cut by a cancellation: then nobody would know what was started.
        task = asyncio.create_task(self._launch(), name="launch a browser")
        self._launching.add(task)
        task.add_done_callback(self._launched)
        return await asyncio.shield(task)

    def _launched(self, task: asyncio.Task[ChromiumBrowser]) -> None:
        self._launching.discard(task)
        if not task.cancelled():
            task.exception()  # whoever waits for it is told; perhaps nobody does

    async def _launch(self) -> ChromiumBrowser:
        async with self._starting:
            self._browsers = [browser for browser in self._browsers if browser.alive]
            if self._helper is not None and not self._helper.alive:
                await self._stop()
            playwright = self._playwright = self._playwright or await _started()
        browser = None
        try:
            # Playwright keeps its own timeout, unless its process hangs.
            async with asyncio.timeout(LAUNCHING + 5):
                browser = await playwright.chromium.launch(
                    executable_path=self._chromium,
                    headless=True,
                    args=list(ARGUMENTS),
                    chromium_sandbox=os.geteuid() != 0,
                    env=_environment(),
                    # A worker lets its jobs end after a signal; it closes its browsers itself.
                    handle_sigint=False,
                    handle_sigterm=False,
                    handle_sighup=False,
                    timeout=LAUNCHING * 1000,
                )
                made = await self._watched(browser)
        except Exception as error:
            if browser is not None:
                await _closed(browser)
            raise BrowserError(f"{self._chromium} does not start as a browser: {_reason(error)}") from error
        finally:
            await self._stop_unless_used(playwright)
        return made

    async def _watched(self, browser: Browser) -> ChromiumBrowser:
        session = await browser.new_browser_cdp_session()
        told = await session.send("SystemInfo.getProcessInfo")
        await session.detach()
        own = processes.Watched(next(process["id"] for process in told["processInfo"] if process["type"] == "browser"))
        try:
            helper = processes.Watched(processes.child_above(own.pid))
        except OSError:
            own.close()
            raise
        self._helper = self._helper or processes.Watched(helper.pid)
        made = ChromiumBrowser(browser, own, helper)
        self._browsers.append(made)
        self._groups.add(made.group)
        return made

    async def _stop_unless_used(self, playwright: Playwright) -> None:
        """After a launch that failed, let the next one have another process of Playwright's: this one may be what is wrong."""
        async with self._starting:
            alone = self._launching <= {asyncio.current_task()}
            unused = alone and not any(browser.alive for browser in self._browsers)
            if unused and self._playwright is playwright:
                await self._stop()

    async def _stop(self) -> None:
        """End Playwright's process, by force if need be."""
        playwright, self._playwright = self._playwright, None
        helper, self._helper = self._helper, None
        if playwright is not None:
            with contextlib.suppress(Exception):
                async with asyncio.timeout(CLOSING):
                    await playwright.stop()
        if helper is not None:
            helper.kill()
            helper.close()

    def reap(self) -> bool:
        """See `Driver.reap`."""
        self._groups, lives = processes.reap(self._groups)
        return lives

    async def close(self) -> None:
        """See `Driver.close`."""
        if self._launching:
            await asyncio.wait(self._launching, timeout=CLOSING)
        async with self._starting:
            for browser in self._browsers:
                await browser.close()
            await self._stop()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LEAVING):
                while self.reap():  # noqa: ASYNC110  # what its processes leave behind ends a moment after a browser
                    await asyncio.sleep(0.01)


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
            raise BrowserError(f"a browser context could not be opened: {_reason(error)}") from error

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
            await _closed(self._browser)
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
                if self._page.is_closed():
                    self._page = await self._context.new_page()
                for page in self._context.pages:
                    if page is not self._page:
                        await page.close()
                await self._page.goto("about:blank")
        except Exception as error:
            raise BrowserError(f"a browser context cannot be kept: {_reason(error)}") from error

    async def close(self) -> None:
        """See `Context.close`."""
        if self._browser.alive:
            await self._browser.close_context(self._context)


async def _started() -> Playwright:
    try:
        async with asyncio.timeout(LAUNCHING):
            return await async_playwright().start()
    except Exception as error:
        raise BrowserError(f"Playwright does not start: {_reason(error)}") from error


async def _closed(browser: Browser) -> None:
    with contextlib.suppress(Exception):
        async with asyncio.timeout(CLOSING):
            await browser.close()


def _environment() -> dict[str, str | float | bool]:
    """Return this process's environment without what is secret in it: a browser runs whatever pages bring."""
    return {
        name: value
        for name, value in os.environ.items()
        if name != "DATABASE_URL" and not name.startswith(("ARCHIBALD_", "PG"))
    }


def _reason(error: BaseException) -> str:
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
