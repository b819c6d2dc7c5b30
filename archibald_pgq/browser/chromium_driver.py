"""Launches Chromium by Playwright.

Guarantees: a launch ends in time, and leaves no process that nobody knows of; Playwright's own process is started anew when it has ended.
Must not: use a browser.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path

from playwright.async_api import Browser, Playwright, async_playwright

from archibald_pgq.browser import processes
from archibald_pgq.browser.chromium import find_chromium
from archibald_pgq.browser.chromium_browser import CLOSING, ChromiumBrowser, closed, reason
from archibald_pgq.errors import BrowserError

LAUNCHING = 30.0
"""Seconds that a browser, or Playwright's own process, gets to start."""

REAPING = 5.0
"""Seconds that what its processes leave behind gets to end."""

# Playwright raises errors of its own, the system's, and bare exceptions where its process has ended: so `Exception` below.

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
                await closed(browser)
            raise BrowserError(f"{self._chromium} does not start as a browser: {reason(error)}") from error
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
            async with asyncio.timeout(REAPING):
                while self.reap():  # noqa: ASYNC110  # what its processes leave behind ends a moment after a browser
                    await asyncio.sleep(0.01)


async def _started() -> Playwright:
    try:
        async with asyncio.timeout(LAUNCHING):
            return await async_playwright().start()
    except Exception as error:
        raise BrowserError(f"Playwright does not start: {reason(error)}") from error


def _environment() -> dict[str, str | float | bool]:
    """Return this process's environment without what is secret in it: a browser runs whatever pages bring."""
    return {
        name: value
        for name, value in os.environ.items()
        if name != "DATABASE_URL" and not name.startswith(("ARCHIBALD_", "PG"))
    }
