"""A small site with sessions as ASP.NET has them, and the processes that a browser consists of."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

import psutil
from aiohttp import web

SESSION = "ASP.NET_SessionId"
PATIENCE = 30.0
"""Seconds after which what never comes true fails a test."""


class Site:
    """Who has logged in, and who asked for the page."""

    def __init__(self) -> None:
        self.url = ""
        self.logins: list[str] = []
        self.asked: asyncio.Queue[str] = asyncio.Queue()

    async def login(self, request: web.Request) -> web.Response:
        user_id = request.query["user"]
        self.logins.append(user_id)
        answer = web.Response(text=f"<title>{user_id}</title>", content_type="text/html")
        answer.set_cookie(SESSION, user_id, httponly=True)
        return answer

    async def home(self, request: web.Request) -> web.Response:
        user_id = request.cookies.get(SESSION, "nobody")
        self.asked.put_nowait(user_id)
        return web.Response(
            text=f"<title>{user_id}</title><script>setInterval(() => fetch('/tick'), 20)</script>",
            content_type="text/html",
        )

    async def tick(self, request: web.Request) -> web.Response:
        self.asked.put_nowait("tick")
        return web.Response()

    async def logout(self, request: web.Request) -> web.Response:
        answer = web.Response(text="<title>out</title>", content_type="text/html")
        answer.del_cookie(SESSION)
        return answer


@contextlib.asynccontextmanager
async def serving() -> AsyncIterator[Site]:
    """Serve the site."""
    site, app = Site(), web.Application()
    app.add_routes([web.get(f"/{name}", getattr(site, name)) for name in ("login", "home", "tick", "logout")])
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        site.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield site
    finally:
        await runner.cleanup()


def family(pid: int, mark: str | None = None) -> list[int]:
    """Return the descendants of a process, and those that inherited this variable of the environment."""
    found = {child.pid for child in psutil.Process(pid).children(recursive=True)}
    if mark is not None:
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if mark.encode() in (folder / "environ").read_bytes() and int(folder.name) != pid:
                    found.add(int(folder.name))
    return sorted(found)


async def until_ended(pids: Iterable[int]) -> None:
    """Wait until these processes have ended; whether somebody has taken note of it is process 1's matter."""
    loop = asyncio.get_running_loop()
    for pid in pids:
        try:
            handle = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        poll = select.poll()
        poll.register(handle, select.POLLIN)
        try:
            assert await loop.run_in_executor(None, poll.poll, PATIENCE * 1000), f"{_name(pid)} goes on"
        finally:
            os.close(handle)


def _name(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()[:200]
