"""A tab of a real browser on the ERP: it goes to pages, fills forms, presses buttons, and reads what is shown then.

Owns: all that is done with a Playwright page. Guarantees: what it shows is the same `Page` as over HTTP, taken from the
DOM; what goes wrong is one sentence, and the login page in the place of another is a `SignedOutError`; a button sends
its form once. A browser that has ended is not the ERP's fault: that is Playwright's own error. Must not: sign in, or
ask for anything a second time.

Once, because a browser would not keep to it: where a connection that was used before is closed without an answer,
Chromium sends the request again, also a posted form. After a save that crashed that is a second order. So a posted form
is taken from the browser on its way out and sent by Playwright's client, with the browser's headers and cookies; that
client repeats nothing. Its answer goes to the browser, which shows it or goes to where it leads.

A PDF is asked for by the same client. A browser without a screen has no viewer whose content could be read, and as a
download it would be a file to be found and removed.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from http import HTTPStatus
from itertools import zip_longest
from urllib.parse import urljoin

from playwright.async_api import APIResponse, Error, Response, Route
from playwright.async_api import Page as BrowserPage
from playwright.async_api import TimeoutError as TookTooLongError

from .desk import LOGIN, LONGEST_ANSWER, SignedOutError, Values, refusal
from .scraper import ErpError, Page, UnreachableError


class DoneError(SignedOutError):
    """A form was done, but the session had ended when its result, which is at `path`, was to be shown."""

    def __init__(self, login: str, path: str) -> None:
        """Say whose session it was."""
        super().__init__(login)
        self.path = path


class Tab:
    """The ERP at `url` in a browser's page, for `login`; `shown` is what stands on the screen, if it is a page of it."""

    def __init__(self, page: BrowserPage, url: str, login: str, patience: float = LONGEST_ANSWER) -> None:
        """Use `page`; an answer is waited for `patience` seconds."""
        self.page = page
        self.login = login
        self.patience = patience * 1000
        self.shown: Page | None = None
        self._url = url
        self._settled = True

    async def goto(self, path: str) -> Page:
        """Go to a page by its address."""
        for _ in range(5):
            if self._settled:
                break
            # The browser's own page about a failure may still be on its way, and would interrupt the way to another.
            with suppress(Error):
                await self.page.goto("about:blank")
                self._settled = True
        with self._in_words(f"GET {path}"):
            answer = await self.page.goto(self._url + path, timeout=self.patience)
            # Just behind an answer without content, Playwright may lose sight of the request, and say nothing of the page that came.
            answer = answer or await self.page.goto(self._url + path, timeout=self.patience)
            return await self._show(answer, path == LOGIN)

    async def follow(self, link: str) -> Page:
        """Click the link that the selector `link` finds."""
        return await self._act(f"the link {link}", partial(self.page.locator(link).click, no_wait_after=True))

    async def fill(self, action: str, values: Values) -> None:
        """Type `values` into the form with the button `action`; fields of a list that are left over become empty."""
        form = self.page.locator("form", has=self.page.locator(f'button[value="{action}"]'))
        with self._in_words(f"the form with the button {action}"):
            for name, value in values.items():
                fields = form.locator(f'[name="{name}"]')
                typed = [value] if isinstance(value, str) else value
                stands = await fields.evaluate_all("fields => fields.map(field => field.value)")
                for place, (before, text) in enumerate(zip_longest(stands, typed, fillvalue="")):
                    if text != before:
                        await fields.nth(place).fill(text)

    async def press(self, action: str) -> Page:
        """Press the button `action` of the page that is shown.

        Raises:
            DoneError: the form was done, but its result is not shown.
            SignedOutError: nothing was done.
        """
        assert self.shown is not None  # noqa: S101  # who presses a button has looked at it
        to = self._url + self.shown.form(action).action
        what = f"POST {to.removeprefix(self._url)}"
        sent: asyncio.Future[tuple[Route, APIResponse]] = asyncio.get_running_loop().create_future()
        with self._in_words(what):
            await self.page.route(lambda url: url == to, partial(self._send, sent), times=1)
            # By the keyboard: a field's list of proposals keeps Chromium from a click of the mouse for seconds.
            await self.page.locator(f'form button[value="{action}"]').press("Enter", no_wait_after=True)
            route, answer = await asyncio.wait_for(sent, self.patience / 1000)
        if (leads := answer.headers.get("location")) is None:
            return await self._act(what, partial(route.fulfill, response=answer))
        # Gone to by its address: after a redirect that was handed to it, Playwright may name the wrong request.
        with self._in_words(what):
            await route.fulfill(status=HTTPStatus.NO_CONTENT)
        leads = urljoin(self._url, leads).removeprefix(self._url)
        if leads.partition("?")[0] == LOGIN:
            raise SignedOutError(self.login)
        try:
            return await self.goto(leads)
        except SignedOutError:
            raise DoneError(self.login, leads) from None

    async def _send(self, sent: asyncio.Future[tuple[Route, APIResponse]], route: Route) -> None:
        """Send the form that the browser is about to send; `sent` gets the answer, or what went wrong."""
        try:
            answer = await route.fetch(max_redirects=0, timeout=self.patience)
        except Error as error:
            with suppress(Error):  # the browser may be gone; else it stays where it is
                await route.fulfill(status=HTTPStatus.NO_CONTENT)
            if not sent.done():
                sent.set_exception(error)
        else:
            if not sent.done():
                sent.set_result((route, answer))

    async def fetch(self, path: str) -> tuple[str, bytes]:
        """Return what is at an address without showing it: its type and its content."""
        with self._in_words(f"GET {path}"):
            request = self.page.context.request
            answer = await request.get(self._url + path, max_redirects=0, timeout=self.patience)
            content = await answer.body()
            await answer.dispose()
        if answer.status == HTTPStatus.FOUND and answer.headers.get("location", "").partition("?")[0] == LOGIN:
            raise SignedOutError(self.login)
        if answer.status >= HTTPStatus.BAD_REQUEST:
            sentence = Page(path, content.decode(errors="replace")).message or answer.status_text
            raise refusal("GET", path, answer.status, sentence)
        return answer.headers.get("content-type", "").partition(";")[0], content

    async def _act(self, what: str, act: Callable[[], Awaitable[None]]) -> Page:
        """Do what leads to another page."""
        with self._in_words(what):
            async with self.page.expect_navigation(timeout=self.patience) as arriving:
                await act()
            return await self._show(await arriving.value)

    async def _show(self, answer: Response | None, login_is_meant: bool = False) -> Page:
        """Return what stands on the screen now that `answer` has come."""
        self.shown = None
        if answer is None:
            raise UnreachableError("the browser stayed where it was")
        path, html = answer.url.removeprefix(self._url), await self.page.content()
        if answer.status >= HTTPStatus.BAD_REQUEST:
            raise refusal(answer.request.method, path, answer.status, Page(path, html).message or answer.status_text)
        if path.partition("?")[0] == LOGIN and not login_is_meant:
            raise SignedOutError(self.login)
        if not answer.headers.get("content-type", "").startswith("text/html"):
            raise ErpError(f"the ERP sent no page for {path}")
        self.shown = Page(path, html)
        return self.shown

    @contextmanager
    def _in_words(self, what: str) -> Iterator[None]:
        try:
            yield
        except (Error, TimeoutError) as error:
            if self.page.is_closed():
                raise
            self._settled = False
            why = "it took too long"
            if isinstance(error, Error) and not isinstance(error, TookTooLongError):
                code = re.search(r"net::(ERR_\w+)", error.message)
                why = code[1] if code else error.message.partition("\n")[0]
            raise UnreachableError(f"the ERP did not answer {what}: {why}") from error
