"""Browsers through Playwright: launch one, know its processes, close it.

Guarantees: a browser ends with the process that launched it, however that ends; a close that hangs is given up and the process killed. Must
not: decide when.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from archibald_pgq.browser.chromium import find_chromium
from archibald_pgq.browser.processes import memory_of, pid_of
from archibald_pgq.errors import BrowserError

CLOSING = 5.0
"""Seconds that a browser or a context may take to close."""

LAUNCHING = 30.0


class RunningBrowser(Protocol):
    """A browser process."""

    def connected(self) -> bool:
        """False once it has ended."""

    async def new_context(self) -> Any:
        """Return a new Playwright context."""

    def memory(self) -> int:
        """Bytes that it takes with all its processes; 0 where that is not known."""

    async def close(self) -> None:
        """End it; does not raise."""


class Driver(Protocol):
    """What launches browsers."""

    async def start(self) -> None:
        """Get ready; raises ConfigError where no browser can be found."""

    async def launch(self, died: Callable[[], None]) -> RunningBrowser:
        """Launch one; `died` is called when it has ended, whoever ended it. Raises BrowserError."""

    async def stop(self) -> None:
        """End what `start` began; does not raise."""


class PlaywrightDriver:
    """Launches Chromium."""

    def __init__(self, chromium: Path | None) -> None:
        """Nothing is started yet."""
        self._given = chromium
        self._program: Path | None = None
        self._playwright: Any = None

    async def start(self) -> None:
        """Find Chromium and start Playwright.

        Raises:
            ConfigError: there is no Chromium.
        """
        from playwright.async_api import async_playwright

        self._program = find_chromium(self._given)
        self._playwright = await async_playwright().start()

    async def launch(self, died: Callable[[], None]) -> RunningBrowser:
        """Launch Chromium.

        Raises:
            BrowserError: it does not start.
        """
        from playwright.async_api import Error

        mark = f"--archibald-pgq={uuid.uuid4().hex}"  # nothing to Chromium; by it its process is found
        arguments = [mark, "--disable-dev-shm-usage"]
        if os.geteuid() == 0:
            arguments.append("--no-sandbox")  # which does not work for root
        try:
            browser = await self._playwright.chromium.launch(
                executable_path=str(self._program),
                headless=True,
                args=arguments,
                timeout=LAUNCHING * 1000,
                # a worker drains on these, with its browsers
                handle_sigint=False,
                handle_sigterm=False,
                handle_sighup=False,
            )
        except Error as error:
            first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise BrowserError(f"Chromium ({self._program}) does not start: {first}") from None
        browser.on("disconnected", lambda _: died())
        return _Chromium(browser, await asyncio.to_thread(pid_of, mark))

    async def stop(self) -> None:
        """Stop Playwright."""
        if self._playwright is not None:
            with contextlib.suppress(Exception):
                async with asyncio.timeout(CLOSING):
                    await self._playwright.stop()


class _Chromium:
    def __init__(self, browser: Any, pid: int | None) -> None:
        self._browser, self._pid = browser, pid

    def connected(self) -> bool:
        return bool(self._browser.is_connected())

    async def new_context(self) -> Any:
        return await self._browser.new_context()

    def memory(self) -> int:
        return memory_of(self._pid) if self._pid is not None else 0

    async def close(self) -> None:
        try:
            async with asyncio.timeout(CLOSING):
                await self._browser.close()
        except Exception:  # noqa: BLE001  # hangs, or has ended already: either way it must be gone
            if self._pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self._pid, signal.SIGKILL)
