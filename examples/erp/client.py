"""The one client of the example ERP that all handlers share.

Owns: the cookies of every login, and the server of its own that stands in when no ERP is named. Guarantees: a login
stays signed in from one operation to the next and signs in again when the ERP has ended its session; an operation
leaves no connection open. Must not: know of jobs or of a queue.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any

import aiohttp

from .records import Document
from .site import PASSWORD, Site, serving

LONGEST_ANSWER = aiohttp.ClientTimeout(total=100)


class ErpError(Exception):
    """The ERP refused something or cannot be reached; the text is one sentence."""


class SignedOutError(ErpError):
    """The ERP knows no session for the cookie."""


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
    async def operation(self, login: str, name: str) -> AsyncIterator[Desk]:
        """Sign `login` in where needed and open the operation `name` in the ERP while the block lasts.

        Raises:
            ErpError: the ERP refuses, or cannot be reached.
        """
        jar = self._cookies.setdefault(login, aiohttp.CookieJar(unsafe=True))  # unsafe: the host is an IP address
        async with aiohttp.ClientSession(await self.url(), cookie_jar=jar, timeout=LONGEST_ANSWER) as http:
            desk = Desk(http, login)
            try:
                socket = await desk.announce(name)
            except SignedOutError:
                await desk.sign_in()
                socket = await desk.announce(name)
            try:
                yield desk
            finally:
                await socket.close()


class Desk:
    """One login at work: the requests of one operation, one after the other."""

    def __init__(self, http: aiohttp.ClientSession, login: str) -> None:
        """Work for `login` over `http`, which keeps its cookie."""
        self._http = http
        self._login = login

    async def sign_in(self) -> None:
        """Sign in anew; the cookie is kept for this and later operations."""
        await self._ask("POST", "/login", data={"login": self._login, "password": PASSWORD})

    async def announce(self, name: str) -> aiohttp.ClientWebSocketResponse:
        """Open an operation; it lasts until the returned socket is closed.

        Raises:
            SignedOutError: sign in first.
            ErpError: another operation of this login is open, or the ERP cannot be reached.
        """
        try:
            return await self._http.ws_connect(
                "/operation", params={"name": name}, timeout=aiohttp.ClientWSTimeout(ws_close=2.0)
            )
        except aiohttp.WSServerHandshakeError as error:
            if error.status == HTTPStatus.UNAUTHORIZED:
                raise SignedOutError(f"{self._login} is not signed in") from None
            raise ErpError(f"the ERP refused to begin {name} for {self._login} ({error.status})") from None
        except aiohttp.ClientError as error:
            raise ErpError(f"the ERP cannot be reached: {error}") from error

    async def get(self, path: str, page: int = 1) -> Document:
        """Return a document, or a page of a list, as JSON; raises ErpError."""
        answer: Document = await self._signed_in("GET", path, params={"page": str(page)})
        return answer

    async def post(self, path: str, body: Document) -> Document:
        """Create or do something; raises ErpError."""
        answer: Document = await self._signed_in("POST", path, json=body)
        return answer

    async def put(self, path: str, body: Document) -> Document:
        """Change a document; raises ErpError."""
        answer: Document = await self._signed_in("PUT", path, json=body)
        return answer

    async def delete(self, path: str) -> Document:
        """Delete a document; raises ErpError."""
        answer: Document = await self._signed_in("DELETE", path)
        return answer

    async def pdf(self, path: str) -> bytes:
        """Return a PDF's bytes; raises ErpError, also where the answer is no PDF."""
        content = await self._signed_in("GET", path)
        if not isinstance(content, bytes) or not content.startswith(b"%PDF-"):
            raise ErpError(f"the ERP sent no PDF for {path}")
        return content

    async def _signed_in(self, method: str, path: str, **options: Any) -> Any:
        try:
            return await self._ask(method, path, **options)
        except SignedOutError:
            await self.sign_in()
            return await self._ask(method, path, **options)

    async def _ask(self, method: str, path: str, **options: Any) -> Any:
        """Return the answer: bytes for a PDF, else what its JSON holds."""
        try:
            async with self._http.request(method, path, **options) as answer:
                if answer.content_type == "application/pdf":
                    return await answer.read()
                content = await answer.json()
        except aiohttp.ClientError as error:
            raise ErpError(f"the ERP did not answer {method} {path}: {error}") from error
        if answer.status == HTTPStatus.UNAUTHORIZED:
            raise SignedOutError(f"{self._login} is not signed in")
        if answer.status >= HTTPStatus.BAD_REQUEST:
            raise ErpError(f"the ERP refused {method} {path}: {content['error']} ({answer.status})")
        return content


async def _serve_own(ready: asyncio.Future[str]) -> None:
    """Serve an ERP until cancelled; `ready` gets its URL, or why there is none."""
    try:
        async with serving(Site()) as url:
            ready.set_result(url)
            await asyncio.get_running_loop().create_future()
    except OSError as error:
        ready.set_exception(error)
