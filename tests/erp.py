"""The example ERP for tests: a browser without a screen, delays that wait for a sign, a session that gets lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import aiohttp
from archibald_pgq.examples.erp.scraper import Page
from archibald_pgq.examples.erp.sessions import PASSWORD
from archibald_pgq.examples.erp.site import Site, serving

FAST = 1000.0
"""A speed at which the delays are of no account."""


class Gate:
    """Stands in for the ERP's delays: a request that comes waits until the gate is opened."""

    def __init__(self) -> None:
        self.entered = asyncio.Queue[float]()
        self.left = asyncio.Queue[bool]()
        self.open = asyncio.Event()

    async def __call__(self, seconds: float) -> None:
        self.entered.put_nowait(seconds)
        try:
            await self.open.wait()
        finally:
            self.left.put_nowait(True)


class Reply(NamedTuple):
    """One answer, no redirect followed."""

    status: int
    to: str
    html: str
    cookies: Mapping[str, Any]

    @property
    def page(self) -> Page:
        return Page("", self.html)


async def reply(http: aiohttp.ClientSession, method: str, path: str, data: object = None) -> Reply:
    async with http.request(method, path, data=data, allow_redirects=False) as answer:
        text = await answer.text(errors="replace")
        return Reply(answer.status, answer.headers.get("Location", ""), text, answer.cookies)


async def get(http: aiohttp.ClientSession, path: str) -> Reply:
    return await reply(http, "GET", path)


async def post(
    http: aiohttp.ClientSession, path: str, action: str, values: Mapping[str, str | Sequence[str]] | None = None
) -> Reply:
    """Fill the form at `path` and press its button `action`, as a person would."""
    form = (await get(http, path)).page.form(action)
    return await reply(http, "POST", form.action, form.filled(values or {}))


async def stats(http: aiohttp.ClientSession) -> dict[str, int]:
    async with http.get("/stats") as answer:
        numbers: dict[str, int] = await answer.json()
        return numbers


@asynccontextmanager
async def browser(url: str) -> AsyncIterator[aiohttp.ClientSession]:
    """Somebody with cookies who is not signed in."""
    async with aiohttp.ClientSession(url, cookie_jar=aiohttp.CookieJar(unsafe=True)) as http:
        yield http


async def sign_in(http: aiohttp.ClientSession, login: str) -> Reply:
    return await post(http, "/login", "sign-in", {"login": login, "password": PASSWORD})


@asynccontextmanager
async def signed_in(url: str, login: str) -> AsyncIterator[aiohttp.ClientSession]:
    async with browser(url) as http:
        assert (await sign_in(http, login)).status == 303
        yield http


@asynccontextmanager
async def gated(*logins: str) -> AsyncIterator[tuple[Site, Gate, list[aiohttp.ClientSession]]]:
    """An ERP whose requests wait from now on, and a signed-in session for each login."""
    gate = Gate()
    gate.open.set()
    site = Site(pause=gate)
    async with serving(site) as url:
        sessions = [signed_in(url, login) for login in logins]
        entered = [await session.__aenter__() for session in sessions]
        gate.open.clear()
        gate.entered = asyncio.Queue()
        gate.left = asyncio.Queue()
        try:
            yield site, gate, entered
        finally:
            gate.open.set()
            for session in sessions:
                await session.__aexit__(None, None, None)
