"""The HTTP client of the example ERP that all handlers share: it uses the pages as a browser would, without one.

Owns: the cookies of every login, and the server of its own that stands in when no ERP is named. Guarantees: a login
stays signed in from one operation to the next; where the ERP has ended its session, which shows only in the login page
that comes instead of what was asked for, it signs in again and repeats what was asked; a form is posted again only
when the ERP sent the first one to the login page, so that nothing is done twice; an operation leaves no connection open.
Must not: know of jobs or of a queue.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import TypeVar

import aiohttp

from .desk import LOGIN, LONGEST_ANSWER, SignedOutError, Values, checked_pdf, refusal
from .scraper import ErpError, Page, UnreachableError
from .sessions import PASSWORD

T = TypeVar("T")


@dataclass(frozen=True)
class Answer:
    """What came back: a page, a file, or where to look for the result of a form (`see`)."""

    content: bytes
    content_type: str
    see: str | None


class Erp:
    """The ERP at `url`, else at `ERP_URL` of the environment, else one of its own on the loopback interface."""

    def __init__(self, url: str | None = None) -> None:
        """Connect nothing yet."""
        self._given = url
        self._cookies: dict[str, aiohttp.CookieJar] = {}
        self._own: asyncio.Task[None] | None = None
        self._own_url: asyncio.Future[str] | None = None

    async def url(self) -> str:
        """Return the ERP's address; the first call starts the server of its own if none is named.

        Raises:
            OSError: the server of its own cannot listen.
        """
        named = self._given or os.environ.get("ERP_URL")
        if named:
            return named.rstrip("/")
        if self._own_url is None or self._own is None or self._own.done():
            self._own_url = asyncio.get_running_loop().create_future()
            # A task of the loop: asyncio.run cancels it at the end, which closes the server. Nobody has to remember it.
            self._own = asyncio.create_task(_serve_own(self._own_url), name="example ERP")
        return await asyncio.shield(self._own_url)

    @asynccontextmanager
    async def operation(self, login: str, name: str) -> AsyncIterator[HttpDesk]:
        """Sign `login` in where needed and open the operation `name` in the ERP while the block lasts.

        Raises:
            ErpError: the ERP refuses, or cannot be reached.
        """
        jar = self._cookies.setdefault(login, aiohttp.CookieJar(unsafe=True))  # unsafe: the host is an IP address
        patience = aiohttp.ClientTimeout(total=LONGEST_ANSWER)
        async with aiohttp.ClientSession(await self.url(), cookie_jar=jar, timeout=patience) as http:
            desk = HttpDesk(http, login)
            socket = await desk.announce(name)
            try:
                yield desk
            finally:
                await socket.close()


class HttpDesk:
    """A desk whose pages are fetched over HTTP; see `Desk` for what its methods promise."""

    def __init__(self, http: aiohttp.ClientSession, login: str) -> None:
        """Work for `login` over `http`, which keeps its cookies."""
        self._http = http
        self._login = login

    async def announce(self, name: str) -> aiohttp.ClientWebSocketResponse:
        """Open an operation; it lasts until the returned socket is closed.

        Raises:
            ErpError: another operation of this login is open, or the ERP cannot be reached.
        """
        return await self._signed_in(lambda: self._connect(name))

    async def open(self, path: str) -> Page:
        """Return a page; raises ErpError."""
        answer = await self._signed_in(lambda: self._ask("GET", path))
        return _page(path, answer)

    async def grid(self, path: str) -> AsyncIterator[Page]:
        """Yield the pages of a grid, from the first one and along the links to the next; raises ErpError."""
        following: str | None = path
        while following is not None:
            page = await self.open(following)
            yield page
            following = page.next

    async def submit(self, path: str, action: str, values: Values | None = None, shown: Page | None = None) -> Page:
        """Fill the form at `path` with `values`, press its button `action`, and return the page that comes of it.

        Raises:
            ErpError: the ERP refuses, or the page has no such form.
        """

        async def fill_and_post(page: Page | None = None) -> Answer:
            form = (page or await self.open(path)).form(action)
            return await self._ask("POST", form.action, form.filled(values or {}))

        try:
            answer = await fill_and_post(shown)
        except SignedOutError:
            # Nothing was done. A new session needs the form's new token, so its page is opened anew.
            await self._sign_in()
            answer = await fill_and_post()
        # The form is done. If the session ends now, only this page is asked for again, never the form.
        return await self.open(answer.see) if answer.see else _page(path, answer)

    async def pdf(self, path: str) -> bytes:
        """Return a PDF's bytes; raises ErpError, also where the answer is no PDF."""
        answer = await self._signed_in(lambda: self._ask("GET", path))
        return checked_pdf(path, answer.content_type, answer.content)

    async def _signed_in(self, ask: Callable[[], Awaitable[T]]) -> T:
        """Do `ask`; where the ERP shows the login page instead, sign in and do it once more."""
        try:
            return await ask()
        except SignedOutError:
            await self._sign_in()
            return await ask()

    async def _sign_in(self) -> None:
        """Fill the login page's form; the cookies are kept for this and later operations.

        Raises:
            LoginRefusedError: the ERP does not take the password.
        """
        form = _page(LOGIN, await self._ask("GET", LOGIN)).form("sign-in")
        await self._ask("POST", form.action, form.filled({"login": self._login, "password": PASSWORD}))

    async def _connect(self, name: str) -> aiohttp.ClientWebSocketResponse:
        try:
            return await self._http.ws_connect(
                "/operation", params={"name": name}, timeout=aiohttp.ClientWSTimeout(ws_close=2.0)
            )
        except aiohttp.WSServerHandshakeError as error:
            if error.request_info.url.path == LOGIN:
                raise SignedOutError(self._login) from None
            kind = UnreachableError if error.status == HTTPStatus.SERVICE_UNAVAILABLE else ErpError
            raise kind(f"the ERP refused to begin {name} for {self._login} ({error.status})") from None
        except (aiohttp.ClientError, TimeoutError) as error:
            raise UnreachableError(f"the ERP cannot be reached: {str(error) or 'it took too long'}") from error

    async def _ask(self, method: str, path: str, data: Sequence[tuple[str, str]] | None = None) -> Answer:
        """Send one request and follow nothing: where it leads to is the news of a posted form.

        Raises:
            SignedOutError: the ERP leads to the login page; it has done nothing.
            ErpError: it refuses, or cannot be reached.
        """
        try:
            async with self._http.request(method, path, data=data, allow_redirects=False) as answer:
                content = await answer.read()
        except (aiohttp.ClientError, TimeoutError) as error:
            why = str(error) or "it took too long"
            raise UnreachableError(f"the ERP did not answer {method} {path}: {why}") from error
        see = answer.headers.get("Location")
        if answer.status == HTTPStatus.FOUND and see is not None and see.partition("?")[0] == LOGIN:
            raise SignedOutError(self._login)
        if answer.status >= HTTPStatus.BAD_REQUEST:
            sentence = Page(path, content.decode(errors="replace")).message or answer.reason or "it does not say why"
            raise refusal(method, path, answer.status, sentence)
        return Answer(content, answer.content_type, see)


def _page(path: str, answer: Answer) -> Page:
    if answer.content_type != "text/html" or answer.see is not None:
        raise ErpError(f"the ERP sent no page for {path}")
    return Page(path, answer.content.decode(errors="replace"))


async def _serve_own(ready: asyncio.Future[str]) -> None:
    """Serve an ERP until cancelled; `ready` gets its URL, or why there is none."""
    from .site import Site, serving  # not needed where an ERP is named

    try:
        async with serving(Site()) as url:
            ready.set_result(url)
            await asyncio.get_running_loop().create_future()
    except OSError as error:
        ready.set_exception(error)
