"""The pool: which context an agent gets, from which browser, and what becomes of both.

Guarantees: a context is marked as in use before anybody sees it, and while it is nobody takes it away; what is being opened counts; the
browser with the fewest contexts gets the next one; full, the one that was used least recently makes room. A browser that ends by itself is
launched anew, one that was ended on purpose is not. Must not: know why a context is wanted.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from archibald_pgq.browser.budget import LoginBudget
from archibald_pgq.browser.driver import CLOSING, Driver, PlaywrightDriver
from archibald_pgq.browser.lease import Kept, Lease
from archibald_pgq.browser.seat import Seat
from archibald_pgq.browser.session import asp_net_session
from archibald_pgq.browser.settings import PoolSettings
from archibald_pgq.browser.slots import Slots
from archibald_pgq.browser.statistics import Counters, PoolStatistics
from archibald_pgq.errors import BrowserDiedError, BrowserSaturatedError

if TYPE_CHECKING:
    from playwright.async_api import BrowserContext, Page

logger = logging.getLogger(__name__)

Valid = Callable[["BrowserContext"], Awaitable[bool]]
LogIn = Callable[["Page"], Awaitable[None]]


NO_ROOM = 0.05
"""Seconds until who was given a place in a browser that then died asks for another one."""


class _NoRoomError(Exception):
    """There are fewer contexts than places, for a moment."""


class BrowserPool:
    """The browsers of a process, and one context for each agent that had one lately."""

    def __init__(
        self,
        settings: PoolSettings,
        *,
        valid: Valid | None = None,
        driver: Driver | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare.

        Args:
            settings: its bounds.
            valid: says whether a kept context is still logged in; None: by its ASP.NET cookies.
            driver: launches browsers; None: Chromium, through Playwright.
            clock: in seconds; for the age of contexts and browsers.
        """
        self._settings, self._valid, self._clock = settings, valid or asp_net_session, clock
        self._driver = driver or PlaywrightDriver(settings.chromium)
        self._counters = Counters()
        self._slots = Slots(settings.browsers * settings.contexts)
        self._budget = LoginBudget(settings.login_budget, clock)
        self._seats = [
            Seat(number, self._driver, self._counters, clock, changed=self._seat_changed)
            for number in range(settings.browsers)
        ]
        self._kept: dict[str, Kept] = {}

    async def start(self) -> None:
        """Launch the first browser, so that what is wrong with it shows now; the others follow when they are needed.

        Raises:
            ConfigError: there is no Chromium. BrowserError: it does not start.
        """
        try:
            await self._driver.start()
            await self._seats[0].browser()
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Close all contexts and browsers, also those in use; nothing is launched any more."""
        for seat in self._seats:
            seat.shut = True
        await asyncio.gather(*(seat.end() for seat in self._seats))
        self._kept.clear()
        await self._driver.stop()

    async def __aenter__(self) -> BrowserPool:
        """Start."""
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close."""
        await self.close()

    @property
    def capacity(self) -> int:
        """Contexts that can be had: fewer while a browser is down."""
        return self._slots.capacity

    def statistics(self) -> PoolStatistics:
        """Return what it did and has."""
        return PoolStatistics(
            browsers=sum(seat.running for seat in self._seats),
            capacity=self._slots.capacity,
            contexts=len(self._kept),
            in_use=len(self._slots.taken),
            waiting=self._slots.waiting,
            **asdict(self._counters),
        )

    # -- a context for an agent

    async def acquire(self, user_id: str, *, urgent: bool, patience: float, login: LogIn) -> Lease:
        """Wait for a context of this agent, logged in.

        Args:
            user_id: the agent; who has its context lets others that ask for it wait.
            urgent: goes before all that are not.
            patience: seconds that it waits for its turn.
            login: called with the page of a new context, to log in there.

        Raises:
            BrowserSaturatedError: it was not its turn in time.
            BrowserError: no browser starts. BrowserDiedError: it ended meanwhile. Whatever `login` raises.
        """
        deadline = time.monotonic() + patience
        while True:
            try:
                await self._slots.take(user_id, urgent=urgent, patience=deadline - time.monotonic())
            except TimeoutError:
                self._counters.saturations += 1
                raise BrowserSaturatedError(
                    f"no browser context was free for {user_id} within {patience:g} s: "
                    f"{len(self._slots.taken)} of {self.capacity} are in use"
                ) from None
            try:
                return Lease(self._take_back, await self._still_valid(user_id) or await self._open(user_id, login))
            except _NoRoomError:
                self._slots.free(user_id)
                await asyncio.sleep(NO_ROOM)
            except BaseException:
                self._slots.free(user_id)
                raise

    async def _still_valid(self, user_id: str) -> Kept | None:
        """Return the agent's kept context if it can be used again; close it if not."""
        kept = self._kept.get(user_id)
        if kept is None:
            return None
        kept.in_use = True  # before anything is awaited: from here on nobody evicts it
        try:
            if (
                self._clock() - kept.opened_at < self._settings.max_age
                and await self._valid(kept.context)
                and kept.alive
            ):
                if kept.page.is_closed():
                    kept.page = await kept.context.new_page()
                self._counters.reuses += 1
                return kept
        except Exception as error:  # noqa: BLE001  # the app's rule, or a browser that has just ended: either way it is not known to be valid
            logger.debug("the context of %s cannot be used again: %s", user_id, error)
        except BaseException:
            kept.in_use = False
            raise
        self._counters.expired += 1
        await self._close(kept)
        return None

    async def _open(self, user_id: str, login: LogIn) -> Kept:
        seat = await self._room()
        browser = context = None
        try:
            browser = await seat.browser()
            context = await browser.new_context()
            page = await context.new_page()
            await self._budget.spend()
            self._counters.logins += 1
            await login(page)
            if not browser.connected():
                raise BrowserDiedError(f"the browser of {user_id} ended while it logged in")
        except BaseException as error:
            seat.contexts -= 1
            if context is not None:
                await _closed(context)
            if browser is not None and not browser.connected() and isinstance(error, Exception):
                raise BrowserDiedError(f"the browser of {user_id} ended while its context was opened") from error
            raise
        now = self._clock()
        kept = self._kept[user_id] = Kept(user_id, seat, context, page, opened_at=now, used_at=now)
        return kept

    async def _room(self) -> Seat:
        """Return the browser with the fewest contexts, one more counted; where all are full, the least recently used one makes room."""
        usable = [seat for seat in self._seats if seat.usable]
        seat = min(usable or self._seats, key=lambda seat: seat.contexts)
        if seat.contexts < self._settings.contexts:
            seat.contexts += 1
            return seat
        idle = [kept for kept in self._kept.values() if not kept.in_use]
        if not idle:  # a browser has died since this place was given
            raise _NoRoomError
        oldest = min(idle, key=lambda kept: kept.used_at)
        self._counters.evictions += 1
        del self._kept[oldest.user_id]
        try:
            await _closed(oldest.context)  # it counts on as the new one, so that nobody else takes this room
        except BaseException:
            oldest.seat.contexts -= 1
            raise
        return oldest.seat

    async def _take_back(self, kept: Kept, keep: bool) -> None:
        try:
            if keep and kept.alive:
                await _tidied(kept)
                kept.used_at, kept.in_use = self._clock(), False
            else:
                self._counters.closed_after_failure += kept.alive
                await self._close(kept)
        finally:
            self._slots.free(kept.user_id)
        await self._recycle(kept.seat)

    async def _close(self, kept: Kept) -> None:
        if self._kept.get(kept.user_id) is kept:
            del self._kept[kept.user_id]
            kept.in_use = True  # nobody evicts it a second time
            if kept.alive:
                try:
                    await _closed(kept.context)
                finally:
                    kept.seat.contexts -= 1  # not before: while it closes it is there

    # -- browsers

    async def _recycle(self, seat: Seat) -> None:
        """End a browser that is too old or too large, if nobody uses it."""
        kept = [kept for kept in self._kept.values() if kept.seat is seat]
        if any(one.in_use for one in kept) or len(kept) < seat.contexts or not seat.running:
            return
        if (
            seat.age < self._settings.browser_age
            and await asyncio.to_thread(seat.memory) < self._settings.browser_bytes
        ):
            return
        if any(one.in_use for one in kept) or seat.contexts > len(kept):
            return  # somebody has come meanwhile
        for one in kept:
            del self._kept[one.user_id]
            seat.contexts -= 1
        self._counters.recycled += 1
        await seat.end()

    def _seat_changed(self, seat: Seat, *, died: bool) -> None:
        """A browser has ended by itself, or can be had again."""
        if died:
            for kept in [kept for kept in self._kept.values() if kept.seat is seat]:
                kept.alive = False
                seat.contexts -= 1
                del self._kept[kept.user_id]
        self._slots.capacity = sum(seat.usable for seat in self._seats) * self._settings.contexts


async def _tidied(kept: Kept) -> None:
    """Close the pages that were opened besides."""
    for page in kept.context.pages:
        if page is not kept.page:
            await _closed(page)


async def _closed(context: Any) -> None:
    """Close a context or a page; one that cannot be closed goes with its browser."""
    with contextlib.suppress(Exception):
        async with asyncio.timeout(CLOSING):
            await context.close()
