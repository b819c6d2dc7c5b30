"""The example ERP as a web site: its routes, their delays, and one thing at a time per login.

Owns: the routes. Guarantees: a second simultaneous request or operation of a login gets 409 and is counted (`/stats`);
who is not signed in, or no longer, is sent to the login page and nothing was done; every refusal is a page with one
sentence; what `faults` says is wrong is wrong from the next request on. Must not: know anything of a queue.

| status | meaning |
|---|---|
| 302 | to `/login`: there is no session, or it has ended |
| 303 | a posted form was done: the result is there |
| 400 | a posted form without this session's token |
| 404 | no such page or document |
| 409 | this login does something else at this moment |
| 422 | the ERP refuses what was asked; a form is shown again with the reason |
| 503 | the ERP is out of order, see `faults.py` |
"""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from http import HTTPStatus
from urllib.parse import quote

from aiohttp import web

from . import admin, forms, pages
from .faults import SILENT, Faults
from .ledger import BusyError, Ledger
from .records import Books, MissingError, RefusedError
from .sessions import PASSWORD, SESSION_COOKIE, Session, Sessions, name, new_key
from .visit import TOKEN_FIELD, Visit, read_fields, see, show

Page = Callable[[Visit], web.Response]
_REFUSALS = (MissingError, BusyError, RefusedError, web.HTTPError)
_STATUS = {MissingError: 404, BusyError: 409, RefusedError: 422}
_SENTENCES = {404: "there is no such page", 405: "that cannot be done with this page", 413: "that is too long"}
_NEVER_DOWN = {"/stats", admin.PATH}


class Site:
    """The ERP's state and its pages; `application()` is what serves them.

    Attributes:
        ledger: who does what, and the orders that were placed.
        sessions: who is signed in.
        books: the documents by login.
        faults: what is wrong with it; may be replaced at any time.
    """

    def __init__(
        self,
        speed: float = 1.0,
        *,
        unique_numbers: bool = True,
        faults_by_post: bool = False,
        pause: Callable[[float], Awaitable[object]] = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Open an ERP whose delays are divided by `speed`; `pause` waits seconds, `clock` returns them.

        `unique_numbers`: an order's number that is taken is refused, else the order gets the next free one.
        `faults_by_post`: `POST /admin/faults` replaces `faults`.
        """
        self.ledger = Ledger()
        self.sessions = Sessions(clock)
        self.faults = Faults()
        self._unique_numbers = unique_numbers
        self._faults_by_post = faults_by_post
        self._speed = speed
        self._pause = pause
        # Seeded, so that two runs are alike.
        self._draw = random.Random(7)  # noqa: S311  # delays, no secret
        self.books: dict[str, Books] = {}

    def application(self) -> web.Application:
        """Return the routes with their typical delays in seconds at speed 1."""
        application = web.Application(middlewares=[self._refusals_as_pages])
        if self._faults_by_post:
            application.add_routes([admin.route(self._switch)])
        order = r"/orders/{number:[1-9][0-9]{0,8}}"
        application.add_routes(
            [
                web.get("/login", self._login_page),
                web.post("/login", self._login),
                web.get("/operation", self._operation),
                web.get("/stats", self._stats),
                web.get("/", self._page(0.15, pages.menu)),
                web.get("/customers", self._page(0.35, pages.customers)),
                web.get("/customers/new", self._page(0.15, forms.new_customer)),
                web.post("/customers/new", self._page(0.3, forms.add_customer)),
                web.get("/customers/{code}", self._page(0.15, pages.customer)),
                web.get("/customers/{code}/edit", self._page(0.2, forms.edit_customer)),
                web.post("/customers/{code}/edit", self._page(0.5, forms.change_customer)),
                web.get("/orders", self._page(0.35, pages.orders)),
                web.get("/orders/new", self._page(0.15, forms.new_order)),
                web.post("/orders/new", self._page(0.5, forms.add_order)),
                web.get(order, self._page(0.15, pages.order)),
                web.post(order, self._page(0.6, forms.act_on_order)),
                web.get(f"{order}/edit", self._page(0.2, forms.edit_order)),
                web.post(f"{order}/edit", self._page(0.5, forms.change_order)),
                web.get(f"{order}/articles", self._page(0.45, pages.articles)),
                web.get("/ddt", self._page(0.35, pages.ddt)),
                web.get("/ddt/{number}.pdf", self._page(0.5, pages.ddt_pdf)),
                web.get("/invoices", self._page(0.35, pages.invoices)),
                web.get("/invoices/{number}.pdf", self._page(0.5, pages.invoice_pdf)),
                web.get("/products", self._page(0.3, pages.products)),
                web.get("/prices", self._page(0.3, pages.prices)),
            ]
        )
        return application

    def _page(self, seconds: float, page: Page) -> Callable[[web.Request], Awaitable[web.Response]]:
        """Return the handler of a page behind the sign-in that takes about `seconds`."""

        async def serve(request: web.Request) -> web.Response:
            session = self.sessions.of(request)
            if session is None:
                return _to_login(request)
            try:
                with self.ledger.request(session.login):
                    fields = await self._posted(request, session.key)
                    await self._slowly(seconds)
                    # In one go from here on: a client that goes away leaves nothing half done.
                    token = self.sessions.token(session.key)
                    visit = Visit(request, session.login, self.books[session.login], token, fields)
                    answer = page(visit)
                    for reference in visit.placed:
                        await self._saved(request, session.login, reference)
            except _REFUSALS as error:
                answer = self._refusal(error, session)
            self.sessions.prolong(session, answer)
            return answer

        return serve

    async def _saved(self, request: web.Request, login: str, reference: str) -> None:
        """Count an order that stands in the books now; what befalls the answer does not change that."""
        self.ledger.place(login, reference)
        fault = self.faults.of_saved(login, reference)
        if fault.seconds:
            await self._pause(fault.seconds)
        if fault.lost:
            _hang_up(request)

    async def _slowly(self, seconds: float) -> None:
        await self._pause(seconds * self._draw.uniform(0.7, 1.3) / self._speed)

    async def _posted(self, request: web.Request, key: str) -> dict[str, list[str]]:
        """Return what a posted form holds; nothing where none was posted.

        Raises:
            web.HTTPBadRequest: the form is not one that this visitor was shown.
        """
        if request.method != "POST":
            return {}
        fields = await read_fields(request)
        if not self.sessions.is_token(key, fields.get(TOKEN_FIELD, [""])[0]):
            raise web.HTTPBadRequest(text="this form is not from your session: open its page again and fill it in anew")
        return fields

    # --- signing in ---

    async def _login_page(self, request: web.Request) -> web.Response:
        return self._show_login(request.cookies.get(SESSION_COOKIE) or new_key(), request.query.get("ReturnUrl", ""))

    def _show_login(self, key: str, back: str, login: str = "", error: str = "") -> web.Response:
        values = {"login": "", "token": self.sessions.token(key), "back": back, "typed": login, "error": error}
        answer = show("login.html", values, HTTPStatus.UNPROCESSABLE_ENTITY if error else HTTPStatus.OK)
        name(answer, key)
        return answer

    async def _login(self, request: web.Request) -> web.Response:
        key = request.cookies.get(SESSION_COOKIE, "")
        fields = await self._posted(request, key)
        login, password, back = (fields.get(field, [""])[0] for field in ("login", "password", "ReturnUrl"))
        if not login or password != PASSWORD or login in self.faults.refused:
            return self._show_login(key, back, login, "the login or its password is wrong")
        with self.ledger.request(login):
            await self._slowly(0.4)
            self.ledger.logins += 1
            if login not in self.books:
                self.books[login] = Books.of(login, unique_numbers=self._unique_numbers)
            answer = see(_inside(back))
            self.sessions.prolong(self.sessions.begin(login), answer)
        return answer

    # --- operations, and what no browser asks for ---

    async def _operation(self, request: web.Request) -> web.StreamResponse:
        """Keep an operation open as long as this WebSocket is; the other side closes it, or dies."""
        if "Upgrade" not in request.headers:  # a browser asks for the page that opens the WebSocket
            return await self._page(0.0, pages.operation)(request)
        session = self.sessions.of(request)
        if session is None:
            return _to_login(request)
        with self.ledger.operation(session.login, request.query.get("name", "an operation")):
            # No autoclose: the operation is counted out before the other side hears of the end and begins the next.
            socket = web.WebSocketResponse(autoclose=False)
            self.sessions.prolong(session, socket)
            try:
                await socket.prepare(request)
            except ConnectionResetError:  # it has died already
                return web.Response()
            await socket.receive()
        await socket.close()
        return socket

    async def _stats(self, request: web.Request) -> web.Response:
        return web.json_response(self.ledger.stats())

    def _switch(self, faults: Faults) -> None:
        self.faults = faults

    # --- refusals ---

    def _refusal(self, error: Exception, session: Session | None) -> web.Response:
        """Return the page that says why not, with the menu for who is signed in."""
        if isinstance(error, web.HTTPError):
            status, sentence = error.status, _SENTENCES.get(error.status, error.text)
        else:
            status, sentence = _STATUS[type(error)], str(error)
        login, token = (session.login, self.sessions.token(session.key)) if session else ("", "")
        answer = show("refusal.html", {"login": login, "token": token, "error": sentence}, status)
        if isinstance(error, web.HTTPMethodNotAllowed):
            answer.headers["Allow"] = error.headers["Allow"]
        return answer

    @web.middleware
    async def _refusals_as_pages(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """Do so outside of the pages, too: for a wrong address, at the sign-in, for an operation, and while it is down."""
        try:
            if self.faults.down and request.path not in _NEVER_DOWN:
                if self.faults.down == SILENT:
                    _hang_up(request)
                raise web.HTTPServiceUnavailable(text="the ERP is out of order")
            return await handler(request)
        except _REFUSALS as error:
            return self._refusal(error, self.sessions.of(request))


def _to_login(request: web.Request) -> web.Response:
    """Return what somebody gets who is not signed in. A form that was posted is lost; its page is where they return."""
    to = f"/login?ReturnUrl={quote(request.path_qs, safe='/')}"
    return web.Response(status=HTTPStatus.FOUND, headers={"Location": to})


def _hang_up(request: web.Request) -> None:
    """Close the connection at once; whatever is answered then goes nowhere."""
    if request.transport is not None:
        request.transport.abort()


def _inside(back: str) -> str:
    """Return where to go after the sign-in: a path of this site, whatever address somebody put into a link."""
    return back if re.fullmatch(r"/(?![/\\])[\x21-\x7e]*", back) else "/"


@asynccontextmanager
async def serving(site: Site, port: int = 0) -> AsyncIterator[str]:
    """Serve the site on the loopback interface while the block lasts, and yield its URL; port 0 takes a free one.

    Raises:
        OSError: the port is taken or not allowed.
    """
    # handler_cancellation: a request whose client is gone is over, so that a killed worker's login is free again.
    runner = web.AppRunner(site.application(), access_log=None, handler_cancellation=True, shutdown_timeout=1.0)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", port).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()
