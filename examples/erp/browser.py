"""The ERP in a real browser: the desk of one login at work in a Playwright page, for the same handlers as over HTTP.

Owns: signing in, and the page that announces the operation. Guarantees: where the login page comes instead of what was
asked for, it signs in and asks again; a form is posted again only when the ERP sent the first one to the login page;
the operation lasts as long as the block, and no longer than the browser context. Must not: open or close a context, or
know of jobs.

The ERP counts an operation as long as a WebSocket is open (`/operation`). One that is held by the page at work would
end with its next navigation, one that is held by the worker would outlive the browser. So it is held by a second page
of the same context, which stays where it is: a worker that is killed takes its browser along, and whatever ends the
context ends the operation. That no login has two requests at once is counted by the ERP besides, whoever sends them.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import TypeVar
from urllib.parse import quote

from playwright.async_api import Error
from playwright.async_api import Page as BrowserPage

from .desk import LOGIN, LONGEST_ANSWER, SignedOutError, Values, checked_pdf
from .scraper import ErpError, Page
from .sessions import PASSWORD
from .tab import DoneError, Tab

T = TypeVar("T")
LAST_WORDS = 2000.0
"""Milliseconds for ending an operation properly; after that its page is just closed."""


async def sign_in(tab: Tab) -> None:
    """Fill the login page's form; all pages of the context are signed in then.

    Raises:
        LoginRefusedError: the ERP does not take the password.
        ErpError: it refuses otherwise, or cannot be reached.
    """
    await tab.goto(LOGIN)
    await tab.fill("sign-in", {"login": tab.login, "password": PASSWORD})
    with suppress(DoneError):  # the session has ended already, which is for the next who asks for something to find
        await tab.press("sign-in")


@asynccontextmanager
async def desk_in(
    page: BrowserPage, user_id: str, url: str, name: str = "an operation", patience: float = LONGEST_ANSWER
) -> AsyncIterator[BrowserDesk]:
    """Open the operation `name` in the ERP at `url` while the block lasts, and yield the desk of `user_id` in `page`.

    Raises:
        ErpError: the ERP refuses, or cannot be reached.
    """
    beside = Tab(await page.context.new_page(), url, user_id, patience)
    try:
        await _signed_in(beside, lambda: _begin(beside, name))
        yield BrowserDesk(Tab(page, url, user_id, patience))
    finally:
        with suppress(Error):  # the browser may have ended
            await beside.page.locator("#end").click(timeout=LAST_WORDS)
            # The next operation may begin only when the ERP has counted this one out.
            await beside.page.locator("#state", has_text="over").wait_for(timeout=LAST_WORDS)
        with suppress(Error):
            await beside.page.close()


async def _begin(beside: Tab, name: str) -> None:
    """Show the page that announces the operation, and wait for what the ERP says to it."""
    path = f"/operation?name={quote(name, safe='')}"
    await beside.goto(path)
    state = beside.page.locator("#state", has_text=re.compile("open|refused"))
    if await state.inner_text(timeout=beside.patience) == "refused":
        await beside.fetch(path)  # a script is not told why; if the session has ended, this says so
        raise ErpError(f"the ERP refused to begin {name} for {beside.login}")


async def _signed_in(tab: Tab, ask: Callable[[], Awaitable[T]]) -> T:
    """Do `ask`; where the ERP shows the login page instead, sign in and do it once more."""
    try:
        return await ask()
    except SignedOutError:
        await sign_in(tab)
        return await ask()


class BrowserDesk:
    """A desk whose pages are on the screen of a browser; see `Desk` for what its methods promise."""

    def __init__(self, tab: Tab) -> None:
        """Work in `tab`."""
        self._tab = tab

    async def open(self, path: str) -> Page:
        """Return a page; raises ErpError."""
        return await _signed_in(self._tab, lambda: self._tab.goto(path))

    async def grid(self, path: str) -> AsyncIterator[Page]:
        """Yield the pages of a grid, from the first one and along the links to the next; raises ErpError."""
        page = await self.open(path)
        yield page
        while following := page.next:
            page = await self._follow(page, following)
            yield page

    async def _follow(self, page: Page, following: str) -> Page:
        if page is self._tab.shown:
            try:
                return await self._tab.follow('#pager a[rel="next"]')
            except SignedOutError:
                await sign_in(self._tab)
        return await self.open(following)

    async def submit(self, path: str, action: str, values: Values | None = None, shown: Page | None = None) -> Page:
        """Fill the form at `path` with `values`, press its button `action`, and return the page that comes of it.

        Raises:
            ErpError: the ERP refuses, or the page has no such form.
        """
        try:
            try:
                return await self._fill_and_press(path, action, values or {}, shown)
            except DoneError:
                raise
            except SignedOutError:
                # Nothing was done. A new session needs the form's new token, so its page is opened anew.
                await sign_in(self._tab)
                return await self._fill_and_press(path, action, values or {})
        except DoneError as done:
            return await self.open(done.path)

    async def _fill_and_press(self, path: str, action: str, values: Values, shown: Page | None = None) -> Page:
        tab = self._tab
        page = shown if shown is not None and shown is tab.shown else await self.open(path)
        page.form(action).check(values)
        # A person, too, has only the fields that are there.
        while any(len(page.form(action).fields[name]) < len(value) for name, value in _lists(values)):
            page = await tab.press("more")
        await tab.fill(action, values)
        return await tab.press(action)

    async def pdf(self, path: str) -> bytes:
        """Return a PDF's bytes; raises ErpError, also where the answer is no PDF."""
        return checked_pdf(path, *await _signed_in(self._tab, lambda: self._tab.fetch(path)))


def _lists(values: Values) -> list[tuple[str, list[str]]]:
    return [(name, list(value)) for name, value in values.items() if not isinstance(value, str)]
