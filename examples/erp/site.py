"""The example ERP as a web application: sessions, pages, delays, and one thing at a time per login.

Owns: the routes and the sessions. Guarantees: a second simultaneous request or operation of a login gets 409 and is
counted (`/stats`); every error is JSON with one sentence under "error". Must not: know anything of a queue.

| status | meaning |
|---|---|
| 401 | no session, or one that ended: sign in again |
| 403 | wrong password |
| 404 | no such document |
| 409 | this login does something else at this moment |
| 422 | the ERP refuses what was asked |
"""

from __future__ import annotations

import asyncio
import json
import random
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from aiohttp import web

from . import pdf
from .ledger import BusyError, Ledger
from .records import PRICES, PRODUCTS, Books, Document, MissingError, RefusedError, check_lines, page_of

PASSWORD = "archibald"  # noqa: S105  # every login of the example has it
COOKIE = "ERP_SESSION"
SESSION_SECONDS = 20.0
"""A session ends after so much silence; not scaled by the speed, so that no session ends within an operation."""
Answer = Document | bytes


@dataclass
class Session:
    """One sign-in: whose it is, and until when it holds (seconds on the site's clock)."""

    login: str
    until: float


Page = Callable[[web.Request, Books], Awaitable[Answer]]


class Site:
    """The ERP's state and its pages; `application()` is what serves them."""

    def __init__(
        self,
        speed: float = 1.0,
        *,
        pause: Callable[[float], Awaitable[object]] = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Open an ERP whose delays are divided by `speed`; `pause` waits seconds, `clock` returns them."""
        self.ledger = Ledger()
        self._speed = speed
        self._pause = pause
        self._clock = clock
        # Seeded, so that two runs are alike.
        self._draw = random.Random(7)  # noqa: S311  # delays, no secret
        self._sessions: dict[str, Session] = {}
        self._books: dict[str, Books] = {}

    def application(self) -> web.Application:
        """Return the routes with their typical delays in seconds at speed 1."""
        application = web.Application(middlewares=[_errors_as_json])
        application.add_routes(
            [
                web.post("/login", self._login),
                web.get("/operation", self._operation),
                web.get("/stats", self._stats),
                web.get("/customers", self._page(0.35, self._customers)),
                web.post("/customers", self._page(0.6, self._add_customer)),
                web.get("/customers/{code}", self._page(0.25, self._customer)),
                web.put("/customers/{code}", self._page(0.6, self._change_customer)),
                web.get("/orders", self._page(0.35, self._orders)),
                web.post("/orders", self._page(0.8, self._add_order)),
                web.post("/orders/check", self._page(0.4, self._check_order)),
                web.get(r"/orders/{number:\d{1,9}}", self._page(0.25, self._order)),
                web.put(r"/orders/{number:\d{1,9}}", self._page(0.6, self._change_order)),
                web.delete(r"/orders/{number:\d{1,9}}", self._page(0.4, self._delete_order)),
                web.post(r"/orders/{number:\d{1,9}}/send", self._page(0.9, self._send_order)),
                web.get(r"/orders/{number:\d{1,9}}/articles", self._page(0.45, self._articles)),
                web.get("/ddt", self._page(0.35, self._ddt)),
                web.get("/ddt/{number}.pdf", self._page(0.5, self._ddt_pdf)),
                web.get("/invoices", self._page(0.35, self._invoices)),
                web.get("/invoices/{number}.pdf", self._page(0.5, self._invoice_pdf)),
                web.get("/products", self._page(0.3, self._products)),
                web.get("/prices", self._page(0.3, self._prices)),
            ]
        )
        return application

    # --- sessions and the rule of one thing at a time ---

    def _page(self, seconds: float, page: Page) -> Callable[[web.Request], Awaitable[web.Response]]:
        """Return the handler of a page behind the sign-in that takes about `seconds`."""

        async def serve(request: web.Request) -> web.Response:
            login = self._signed_in(request)
            with self.ledger.request(login):
                await self._slowly(seconds)
                answer = await page(request, self._books[login])
            if isinstance(answer, bytes):
                return web.Response(body=answer, content_type="application/pdf")
            return web.json_response(answer)

        return serve

    async def _slowly(self, seconds: float) -> None:
        await self._pause(seconds * self._draw.uniform(0.7, 1.3) / self._speed)

    def _signed_in(self, request: web.Request) -> str:
        """Return the login that the request's cookie stands for and prolong its session; 401 without one."""
        session = self._sessions.get(request.cookies.get(COOKIE, ""))
        if session is None or session.until < self._clock():
            raise web.HTTPUnauthorized(text="sign in first: there is no session, or it has ended")
        session.until = self._clock() + SESSION_SECONDS
        return session.login

    async def _login(self, request: web.Request) -> web.Response:
        form = await request.post()
        login, password = form.get("login"), form.get("password")
        if not isinstance(login, str) or not login or password != PASSWORD:
            raise web.HTTPForbidden(text="the login or its password is wrong")
        with self.ledger.request(login):
            await self._slowly(0.4)
        # A login has one session: signing in again ends the one before, as in the real ERP. Ended ones go with it.
        now = self._clock()
        self._sessions = {key: old for key, old in self._sessions.items() if old.login != login and old.until >= now}
        self.ledger.logins += 1
        self._books.setdefault(login, Books.of(login))
        key = secrets.token_urlsafe(16)
        self._sessions[key] = Session(login, now + SESSION_SECONDS)
        response = web.json_response({"login": login})
        response.set_cookie(COOKIE, key, httponly=True, samesite="Strict")
        return response

    async def _operation(self, request: web.Request) -> web.StreamResponse:
        """Keep an operation open as long as this WebSocket is; the other side closes it, or dies."""
        login = self._signed_in(request)
        with self.ledger.operation(login, request.query.get("name", "an operation")):
            # No autoclose: the operation is counted out before the other side hears of the end and begins the next.
            socket = web.WebSocketResponse(autoclose=False)
            await socket.prepare(request)
            await socket.receive()
        await socket.close()
        return socket

    async def _stats(self, request: web.Request) -> web.Response:
        return web.json_response(self.ledger.stats())

    # --- pages ---

    async def _customers(self, request: web.Request, books: Books) -> Answer:
        return page_of(list(books.customers.values()), _number_of_page(request))

    async def _customer(self, request: web.Request, books: Books) -> Answer:
        return books.customer(request.match_info["code"])

    async def _add_customer(self, request: web.Request, books: Books) -> Answer:
        return books.add_customer((await _body(request)).get("name"))

    async def _change_customer(self, request: web.Request, books: Books) -> Answer:
        customer = books.customer(request.match_info["code"])
        customer.update({**await _body(request), "code": customer["code"]})
        return customer

    async def _orders(self, request: web.Request, books: Books) -> Answer:
        return page_of(list(books.orders.values()), _number_of_page(request))

    async def _order(self, request: web.Request, books: Books) -> Answer:
        return books.order(int(request.match_info["number"]))

    async def _check_order(self, request: web.Request, books: Books) -> Answer:
        lines = check_lines((await _body(request)).get("lines"))
        return {"lines": lines, "euro": sum(line["euro"] for line in lines)}

    async def _add_order(self, request: web.Request, books: Books) -> Answer:
        body = await _body(request)
        return books.add_order(body.get("number"), str(body.get("customer")), body.get("lines"))

    async def _change_order(self, request: web.Request, books: Books) -> Answer:
        order = books.open_order(int(request.match_info["number"]))
        body = await _body(request)
        if "lines" in body:
            order["lines"] = check_lines(body["lines"])
        order["note"] = str(body.get("note", ""))
        return order

    async def _delete_order(self, request: web.Request, books: Books) -> Answer:
        order = books.open_order(int(request.match_info["number"]))
        return books.orders.pop(order["number"])

    async def _send_order(self, request: web.Request, books: Books) -> Answer:
        order = books.open_order(int(request.match_info["number"]))
        order["state"] = "sent"
        return order

    async def _articles(self, request: web.Request, books: Books) -> Answer:
        return page_of(books.order(int(request.match_info["number"]))["lines"], _number_of_page(request))

    async def _ddt(self, request: web.Request, books: Books) -> Answer:
        return page_of(list(books.ddt.values()), _number_of_page(request))

    async def _ddt_pdf(self, request: web.Request, books: Books) -> Answer:
        return _printed("DDT", request.match_info["number"], books.ddt)

    async def _invoices(self, request: web.Request, books: Books) -> Answer:
        return page_of(list(books.invoices.values()), _number_of_page(request))

    async def _invoice_pdf(self, request: web.Request, books: Books) -> Answer:
        return _printed("Invoice", request.match_info["number"], books.invoices)

    async def _products(self, request: web.Request, books: Books) -> Answer:
        return page_of(PRODUCTS, _number_of_page(request))

    async def _prices(self, request: web.Request, books: Books) -> Answer:
        return page_of(PRICES, _number_of_page(request))


def _printed(title: str, number: str, documents: dict[str, Document]) -> bytes:
    if number not in documents:
        raise MissingError(f"there is no {title} {number}")
    return pdf.document([f"{title} {number}", f"Order {documents[number]['order']}"])


def _number_of_page(request: web.Request) -> int:
    text = request.query.get("page", "1")
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 10_000:  # a bound on nonsense
        raise RefusedError(f"page is {text!r}; it must be a whole number from 1")
    return int(text)


async def _body(request: web.Request) -> Document:
    try:
        body = await request.json()
    except json.JSONDecodeError:
        raise RefusedError("the request's body is no JSON") from None
    if not isinstance(body, dict):
        raise RefusedError("the request's body must be a JSON object")
    return body


@web.middleware
async def _errors_as_json(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Turn every refusal into its status and one sentence."""
    try:
        return await handler(request)
    except web.HTTPException as error:
        return web.json_response({"error": error.text}, status=error.status)
    except MissingError as error:
        return web.json_response({"error": str(error)}, status=404)
    except BusyError as error:
        return web.json_response({"error": str(error)}, status=409)
    except RefusedError as error:
        return web.json_response({"error": str(error)}, status=422)


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
