"""A process that owns a pool: `python -m tests.browser.owner wait|reap|die`; it says `ready`, or what it is left with."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import sys
from typing import Any

import psutil

from archibald_pgq.browser import BrowserPool, PoolSettings

PR_SET_CHILD_SUBREAPER = 36


async def log_in(user_id: str, page: Any) -> None:
    """Without a site: only the cookie."""
    await page.context.add_cookies([{"name": "ASP.NET_SessionId", "value": user_id, "url": "http://127.0.0.1"}])


def say(text: str) -> None:
    """Tell whoever started this process."""
    print(text, flush=True)  # noqa: T201


async def main(what: str) -> None:
    """Own a pool until it is told otherwise."""
    if what == "reap":  # as process 1 is: what browsers leave behind becomes a child of this process
        assert ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
    pool = BrowserPool(PoolSettings(browsers=2, contexts=2), login=log_in)
    await pool.start()
    leases = [await pool.acquire(user_id, False, 30) for user_id in ("anna", "bob", "carl")]
    if what == "die":
        say("ready")
        raise SystemExit(3)
    if what == "wait":
        say("ready")
        await asyncio.Event().wait()
    browser: Any = pool._hosts[0].browser
    os.kill(browser.pid, signal.SIGKILL)
    for lease in leases:
        await lease.release(keep=not lease.died)
    await (await pool.acquire("dora", True, 30)).release(keep=True)
    await pool.close()
    left = [f"{child.name()} {child.status()}" for child in psutil.Process().children(recursive=True)]
    say(f"left: {left}")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
