"""What is the browser's own, with a real Chromium."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from aiohttp import web

from archibald_pgq.browser import BrowserPool, Lease, PoolSettings
from archibald_pgq.browser.chromium import find_chromium
from archibald_pgq.browser.processes import memory_of
from archibald_pgq.errors import ConfigError
from tests.chromium import needs_chromium
from tests.support import PATIENCE

pytestmark = needs_chromium


class Site:
    """A system with a login: its session cookie lives as long as a test says."""

    def __init__(self) -> None:
        self.url, self.logins, self.max_age = "", 0, 600

    async def login(self, request: web.Request) -> web.Response:
        self.logins += 1
        answer = web.Response(text="<h1>logged in</h1>", content_type="text/html")
        answer.set_cookie("ASP.NET_SessionId", request.query["user"], max_age=self.max_age)
        return answer

    async def who(self, request: web.Request) -> web.Response:
        return web.Response(
            text=f"<h1>{request.cookies.get('ASP.NET_SessionId', 'nobody')}</h1>", content_type="text/html"
        )


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    made = Site()
    app = web.Application()
    app.add_routes([web.get("/login", made.login), web.get("/", made.who)])
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    made.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield made
    await runner.cleanup()


@pytest.fixture
async def pool() -> AsyncIterator[BrowserPool]:
    async with BrowserPool(PoolSettings(browsers=2, contexts=2, login_budget=1000)) as made:
        yield made


async def acquire(pool: BrowserPool, site: Site, user: str) -> Lease:
    async def login(page: Any) -> None:
        await page.goto(f"{site.url}/login?user={user}")

    return await pool.acquire(user, urgent=False, patience=PATIENCE, login=login)


async def seen(lease: Lease, site: Site) -> str:
    await lease.page.goto(site.url)
    return await lease.page.inner_text("h1")


def browsers() -> list[psutil.Process]:
    """The browsers that this process has launched: of each the first of its processes."""
    found = {}
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if any(argument.startswith("--archibald-pgq=") for argument in process.cmdline()):
                found[process.pid] = process
    return [process for process in found.values() if process.ppid() not in found]


async def test_an_agents_context_stays_logged_in_and_agents_do_not_see_each_others_session(
    pool: BrowserPool, site: Site
) -> None:
    for _ in range(2):
        for user in ("alice", "bob"):
            lease = await acquire(pool, site, user)
            assert await seen(lease, site) == user
            await lease.release(keep=True)
    assert site.logins == 2
    assert pool.statistics().reuses == 2


async def test_a_session_that_the_system_ended_logs_in_again(pool: BrowserPool, site: Site) -> None:
    lease = await acquire(pool, site, "alice")
    await lease.context.clear_cookies()
    await lease.release(keep=True)
    lease = await acquire(pool, site, "alice")
    assert await seen(lease, site) == "alice"
    await lease.release(keep=True)
    assert site.logins == 2


async def test_a_browser_that_is_killed_fails_who_is_in_it_and_is_there_again(pool: BrowserPool, site: Site) -> None:
    lease = await acquire(pool, site, "alice")
    (process,) = browsers()
    waits = asyncio.create_task(lease.page.wait_for_selector("#never"))
    await asyncio.sleep(0)
    process.kill()
    with pytest.raises(Exception, match=r"closed|crashed"):
        await waits
    assert lease.died
    await lease.release(keep=True)
    lease = await acquire(pool, site, "alice")
    assert await seen(lease, site) == "alice"
    await lease.release(keep=True)
    found = pool.statistics()
    assert (found.deaths, found.launches, found.in_use) == (1, 3 if found.browsers == 2 else 2, 0)


async def test_nothing_is_left_of_a_pool_that_was_closed_though_a_context_was_in_use(site: Site) -> None:
    async with BrowserPool(PoolSettings(browsers=2, contexts=2)) as pool:
        leases = [await acquire(pool, site, user) for user in ("alice", "bob")]
        processes = browsers()
        assert len(processes) == 2
    gone, left = await asyncio.to_thread(psutil.wait_procs, processes, PATIENCE)
    assert left == []
    assert len(gone) == 2
    for lease in leases:
        await lease.release(keep=True)


async def test_no_browser_is_left_of_a_process_that_was_killed(tmp_path: Path) -> None:
    program = tmp_path / "owner.py"
    program.write_text(
        "import asyncio\n"
        "from archibald_pgq.browser import BrowserPool, PoolSettings\n"
        "async def main():\n"
        "    async with BrowserPool(PoolSettings(1, 2)) as pool:\n"
        "        async def login(page): await page.goto('about:blank')\n"
        "        await pool.acquire('alice', urgent=False, patience=30, login=login)\n"
        "        print('open', flush=True)\n"
        "        await asyncio.sleep(600)\n"
        "asyncio.run(main())\n"
    )
    owner = await asyncio.create_subprocess_exec(
        *(sys.executable, str(program)), stdout=asyncio.subprocess.PIPE, cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    assert owner.stdout is not None
    assert await owner.stdout.readline() == b"open\n"
    processes = psutil.Process(owner.pid).children(recursive=True)
    assert len(processes) > 3
    owner.send_signal(signal.SIGKILL)
    await owner.wait()
    _, left = await asyncio.to_thread(psutil.wait_procs, processes, PATIENCE)
    assert left == []


async def test_the_memory_of_a_browser_is_that_of_all_its_processes(pool: BrowserPool, site: Site) -> None:
    lease = await acquire(pool, site, "alice")
    (process,) = browsers()
    alone = process.memory_full_info().pss
    assert memory_of(process.pid) > alone > 10_000_000
    await lease.release(keep=True)


def test_chromium_is_found_by_itself_or_where_it_is_named(tmp_path: Path) -> None:
    found = find_chromium(None)
    assert os.access(found, os.X_OK)
    assert find_chromium(found) == found
    with pytest.raises(ConfigError, match="which is no program; name Chromium's"):
        find_chromium(tmp_path / "chromium")


def test_without_chromium_it_says_how_to_get_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("PLAYWRIGHT_BROWSERS_PATH", str(tmp_path))
    monkeypatch.setattr("archibald_pgq.browser.chromium.PLACES", ())
    monkeypatch.setattr("archibald_pgq.browser.chromium.HEADLESS_SHELL", tmp_path / "none")
    with pytest.raises(ConfigError, match=r"no Chromium was found .*apt-get install chromium"):
        find_chromium(None)
