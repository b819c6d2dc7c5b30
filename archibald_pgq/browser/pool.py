"""The pool: gives each agent a context of its own, logged in, and keeps it for the next time.

Guarantees: a context is used by one caller at a time; there are never more than there is room for, those that are being opened or closed
counted; who gives up leaves nothing behind; no more logins start than the budget allows. Must not: know what a context is used for.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any

from archibald_pgq.browser.budget import LoginBudget
from archibald_pgq.browser.chromium import require_playwright
from archibald_pgq.browser.driver import Driver
from archibald_pgq.browser.host import Host
from archibald_pgq.browser.kept import Kept
from archibald_pgq.browser.lease import Lease
from archibald_pgq.browser.session import AspNetSession
from archibald_pgq.browser.settings import PoolSettings
from archibald_pgq.browser.slots import Place, Slots
from archibald_pgq.browser.statistics import Counters, PoolStatistics
from archibald_pgq.errors import (
    ArchibaldError,
    BrowserDiedError,
    BrowserError,
    BrowserSaturatedError,
    LoginError,
)

if TYPE_CHECKING:
    from playwright.async_api import BrowserContext, Page

Login = Callable[[str, "Page"], Awaitable[None]]
"""Logs an agent in, in an empty context: `await login(user_id, page)`."""

Valid = Callable[["BrowserContext"], Awaitable[bool] | bool]
"""Says whether a context is logged in; asked after each login and before a context is used again."""

LOOK_EVERY = 60.0
"""Seconds between two looks at the age and memory of browsers."""

CLOSED = "the browsers of this process are closed"

logger = logging.getLogger(__name__)


class BrowserPool:
    """Browsers and their contexts; `async with` starts and closes it."""

    def __init__(
        self, settings: PoolSettings, *, login: Login, valid: Valid | None = None, driver: Driver | None = None
    ) -> None:
        """Prepare; nothing is started.

        Args:
            settings: its bounds.
            login: the app's.
            valid: default: ASP.NET session cookies are there, and none has expired.
            driver: what launches browsers; default: Chromium, by Playwright.
        """
        self._settings, self._login, self._valid, self._driver = settings, login, valid or AspNetSession(), driver
        self._slots: Slots[Kept] = Slots(settings.browsers, settings.contexts)
        self._budget = LoginBudget(settings.login_budget)
        self._counters = Counters()
        self._hosts: list[Host] = []
        self._opening = 0
        self._works: set[asyncio.Task[None]] = set()
        self._look = asyncio.Event()
        self._looking: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None

    async def __aenter__(self) -> BrowserPool:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def start(self) -> None:
        """Launch all browsers.

        Raises:
            ConfigError: Playwright or Chromium is missing. BrowserError: a browser does not start; those that did are closed.
        """
        driver = self._driver = self._driver or _chromium_driver(self._settings)
        self._hosts = [Host(number, driver, self._slots, self._counters) for number in range(self._settings.browsers)]
        try:
            # All are waited for, also where one fails.
            for outcome in await asyncio.gather(*(host.start() for host in self._hosts), return_exceptions=True):
                if outcome is not None:
                    raise outcome
        except BaseException:
            await self.close()
            raise
        self._looking = asyncio.create_task(self._keep_looking(), name="looks at browsers")

    async def close(self) -> None:
        """End all browsers, also under those who use them, and start none; who waits gets a `BrowserError`."""
        if self._closing is None:
            self._closing = asyncio.create_task(self._close(), name="close the browsers")
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        self._slots.close(CLOSED)
        self._budget.close(CLOSED)
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.wait({self._looking})
        await asyncio.gather(*(host.close() for host in self._hosts))
        if self._driver is not None:
            await self._driver.close()
        if self._works:
            await asyncio.wait(self._works)

    @property
    def capacity(self) -> int:
        """Contexts that can be had now, in use or not: fewer while a browser is down."""
        return self._slots.capacity

    def statistics(self) -> PoolStatistics:
        """Return what there is and what has been done."""
        counters = self._counters
        return PoolStatistics(
            browsers=self._settings.browsers,
            browsers_alive=sum(host.browser is not None for host in self._hosts),
            capacity=self._slots.capacity,
            contexts=self._slots.taken,
            in_use=self._slots.busy - self._opening,
            opening=self._opening,
            idle=self._slots.idle,
            waiting=self._slots.waiting,
            waiting_for_login=self._budget.waiting,
            **{name: getattr(counters, name) for name in Counters.__slots__},
        )

    async def acquire(self, user_id: str, urgent: bool, timeout: float) -> Lease:  # noqa: ASYNC109  # its own error says what was waited for
        """Return the agent's context, logged in, and in use until the lease is released.

        Args:
            user_id: the agent; while its context is in use, a second call waits for it.
            urgent: goes before all that are not.
            timeout: seconds that it waits for its turn, and for a login to be allowed; what follows is bounded by the caller.

        Raises:
            BrowserSaturatedError: it has waited for so long.
            BrowserDiedError: the browser ended meanwhile; another call may have another one.
            LoginError: the login failed. BrowserError: no context can be opened, or the pool is closed.
        """
        deadline = asyncio.get_running_loop().time() + timeout
        place = await self._place(user_id, urgent, timeout, deadline)
        self._opening += 1
        try:
            kept = await self._logged_in(place, urgent, timeout, deadline)
        except BaseException as error:
            died = place.lost or (place.content is not None and place.content.died)
            await self._to_the_end(self._dropped(place))
            if self._closing is not None and isinstance(error, Exception):
                raise BrowserError(CLOSED) from error
            if died and isinstance(error, Exception) and not isinstance(error, BrowserSaturatedError):
                raise BrowserDiedError(f"the browser ended while the context of {user_id} was prepared") from error
            raise
        finally:
            self._opening -= 1
        return Lease(kept, lambda keep: self._release(place, kept, keep))

    async def _place(self, user_id: str, urgent: bool, patience: float, deadline: float) -> Place[Kept]:
        if self._closing is not None:
            raise BrowserError(CLOSED)
        try:
            async with asyncio.timeout_at(deadline):
                return await self._slots.take(user_id, urgent=urgent)
        except TimeoutError:
            self._counters.saturations += 1
            raise BrowserSaturatedError(self._why_not(user_id, patience)) from None

    def _why_not(self, user_id: str, patience: float) -> str:
        if self._slots.is_busy(user_id):
            return f"the browser context of {user_id} was in use for {patience:g} s"
        if self._slots.capacity == 0:
            trouble = next((host.trouble for host in self._hosts if host.trouble is not None), "they are started anew")
            return (
                f"no browser ran at the end of the {patience:g} s for which {user_id} waited for a context: {trouble}"
            )
        return (
            f"no browser context came free for {user_id} within {patience:g} s, all {self._slots.capacity} are in use; "
            "try again later, or raise ARCHIBALD_BROWSERS or ARCHIBALD_BROWSER_CONTEXTS"
        )

    async def _logged_in(self, place: Place[Kept], urgent: bool, patience: float, deadline: float) -> Kept:
        """Return what is in the place, or what comes into it."""
        user_id = place.user_id
        if place.content is not None:
            if await self._reusable(place.content, user_id):
                self._counters.reuses += 1
                return place.content
            await place.content.close()
            place.content = None
        try:
            # With the place in hand, but before anything is opened in it.
            async with asyncio.timeout_at(deadline):
                await self._budget.spend(user_id, urgent=urgent)
        except TimeoutError:
            self._counters.saturations += 1
            raise BrowserSaturatedError(
                f"no login was left for {user_id} within {patience:g} s; ARCHIBALD_LOGIN_BUDGET allows "
                f"{self._settings.login_budget} a minute"
            ) from None
        browser = self._hosts[place.browser].browser if self._slots.move(place) else None
        if browser is None:
            raise BrowserDiedError(f"the browser ended in which {user_id} was to have a context")
        kept = place.content = Kept(user_id, browser)
        page = (await kept.opened()).page
        self._counters.logins += 1
        try:
            await self._login(user_id, page)
            if not await self._is_valid(kept):
                raise LoginError(
                    f"the login of {user_id} left no valid session; where it is no ASP.NET one, give the pool a rule of your own"
                )
        except Exception as error:
            self._counters.failed_logins += 1
            if isinstance(error, ArchibaldError):
                raise
            # Further lines of Playwright's hold what was typed, passwords too.
            reason = str(error).strip().split("\n", 1)[0]
            raise LoginError(f"the login of {user_id} failed: {type(error).__name__}: {reason}") from error
        kept.since = asyncio.get_running_loop().time()
        return kept

    async def _reusable(self, kept: Kept, user_id: str) -> bool:
        if kept.user_id != user_id:
            self._counters.evictions += 1
            return False
        if kept.dead:
            return False
        if asyncio.get_running_loop().time() - kept.since >= self._settings.max_age:
            self._counters.expired += 1
            return False
        valid = await self._is_valid(kept)
        self._counters.invalid += not valid
        return valid

    async def _is_valid(self, kept: Kept) -> bool:
        answer = self._valid(kept.context.context)
        return bool(await answer if inspect.isawaitable(answer) else answer)

    async def _release(self, place: Place[Kept], kept: Kept, keep: bool) -> None:
        if keep and not kept.dead and await self._tidy(kept):
            self._slots.keep(place)
        else:
            self._counters.closed_by_failure += 1
            await self._dropped(place)
        self._look.set()

    async def _tidy(self, kept: Kept) -> bool:
        try:
            await kept.context.tidy()
        except Exception as error:  # noqa: BLE001  # whatever it is: the place must come free
            logger.info("the browser context of %s is closed: %s", kept.user_id, error)
            return False
        return not kept.dead

    async def _dropped(self, place: Place[Kept]) -> None:
        try:
            if place.content is not None:
                await place.content.close()
        finally:
            place.content = None
            self._slots.drop(place)

    async def _to_the_end(self, work: Coroutine[Any, Any, None]) -> None:
        """Do something that goes on though the caller is cancelled."""
        task = asyncio.create_task(work)
        self._works.add(task)
        task.add_done_callback(self._works.discard)
        await asyncio.shield(task)

    async def _keep_looking(self) -> None:
        """Have browsers that are too old or too large started anew, one at a time, when nobody uses them."""
        while True:
            try:
                async with asyncio.timeout(LOOK_EVERY):
                    await self._look.wait()
            except TimeoutError:
                for host in self._hosts:
                    if await host.is_due(self._settings.browser_age, self._settings.browser_memory):
                        self._slots.avoided.add(host.number)
                if self._driver is not None:
                    self._driver.reap()
            self._look.clear()
            if any(host.browser is None for host in self._hosts):
                continue
            for host in self._hosts:
                if host.number in self._slots.avoided and self._slots.unused(host.number):
                    host.renew()
                    break


def _chromium_driver(settings: PoolSettings) -> Driver:
    require_playwright()
    from archibald_pgq.browser.chromium_driver import ChromiumDriver

    return ChromiumDriver(settings.chromium)
