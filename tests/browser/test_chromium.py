"""The pool on real browsers: sessions, ends of every kind, and what is left of processes."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from playwright.async_api import Error

from archibald_pgq.browser import BrowserPool, Lease, PoolSettings, chromium_browser
from archibald_pgq.browser.chromium_browser import ChromiumBrowser
from archibald_pgq.errors import BrowserError, LoginError
from tests.browser.site import PATIENCE, SESSION, Site, family, serving, until_ended
from tests.chromium import needs_chromium

pytestmark = needs_chromium


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    async with serving() as made:
        yield made


@pytest.fixture
async def pool(site: Site) -> AsyncIterator[BrowserPool]:
    async def log_in(user_id: str, page: Any) -> None:
        await page.goto(f"{site.url}/login?user={user_id}")

    async with BrowserPool(PoolSettings(browsers=2, contexts=2), login=log_in) as made:
        yield made


def browser_of(lease: Lease) -> ChromiumBrowser:
    browser = lease._kept._browser
    assert isinstance(browser, ChromiumBrowser)
    return browser


def opened(pool: BrowserPool) -> int:
    """The contexts that the browsers themselves have."""
    return sum(len(host.browser._browser.contexts) for host in pool._hosts if isinstance(host.browser, ChromiumBrowser))


async def acquire(pool: BrowserPool, user_id: str) -> Lease:
    return await pool.acquire(user_id, False, PATIENCE)


async def test_an_agent_stays_logged_in_and_nobody_sees_anothers_session(pool: BrowserPool, site: Site) -> None:
    for _ in range(2):
        for user_id in ("anna", "bob"):
            lease = await acquire(pool, user_id)
            await lease.page.goto(f"{site.url}/home")
            assert await lease.page.title() == user_id
            await lease.release(keep=True)
    assert site.logins == ["anna", "bob"]
    assert opened(pool) == pool.statistics().contexts == 2


async def test_an_agent_whose_session_cookie_the_site_took_away_logs_in_again(pool: BrowserPool, site: Site) -> None:
    lease = await acquire(pool, "anna")
    await lease.page.goto(f"{site.url}/logout")
    await lease.release(keep=True)
    lease = await acquire(pool, "anna")
    assert [cookie["name"] for cookie in await lease.context.cookies()] == [SESSION]
    assert site.logins == ["anna", "anna"]
    assert opened(pool) == 1


async def test_a_login_that_leaves_no_session_cookie_is_an_error(site: Site) -> None:
    async def log_in(user_id: str, page: Any) -> None:
        await page.goto(f"{site.url}/logout")

    async with BrowserPool(PoolSettings(browsers=1), login=log_in) as pool:
        with pytest.raises(LoginError, match="the login of anna left no valid session"):
            await acquire(pool, "anna")
        assert opened(pool) == 0


async def test_a_kept_context_asks_the_site_for_nothing_and_has_one_page(pool: BrowserPool, site: Site) -> None:
    lease = await acquire(pool, "anna")
    await lease.page.goto(f"{site.url}/home")
    while await site.asked.get() != "tick":
        pass
    await lease.context.new_page()
    await lease.release(keep=True)
    assert [page.url for page in lease.context.pages] == ["about:blank"]
    again = await acquire(pool, "anna")
    assert again.context is lease.context
    await again.page.close()
    await again.release(keep=True)
    third = await acquire(pool, "anna")
    assert not third.page.is_closed()
    assert site.logins == ["anna"]


async def test_nothing_that_a_user_had_listen_or_routed_in_a_kept_context_is_there_for_the_next(
    pool: BrowserPool, site: Site
) -> None:
    async def mine(route: Any) -> None:
        await route.fulfill(body="mine")

    heard: list[str] = []
    lease = await acquire(pool, "anna")
    await lease.page.route("**/home", mine)
    await lease.context.route("**/home", mine)
    lease.page.on("request", lambda request: heard.append(request.url))
    await lease.page.goto(f"{site.url}/home")
    assert await lease.page.inner_text("body") == "mine"
    await lease.release(keep=True)
    again = await acquire(pool, "anna")
    await again.page.goto(f"{site.url}/home")
    assert again.context is lease.context
    assert await again.page.title() == "anna"
    assert heard == [f"{site.url}/home"]


async def test_an_acquire_that_is_cancelled_at_any_moment_leaves_no_context_in_the_browser(
    pool: BrowserPool, site: Site
) -> None:
    for turns in range(0, 60, 3):
        task = asyncio.create_task(acquire(pool, f"u{turns}"))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task})
        assert opened(pool) == pool.statistics().contexts == 0
    lease = await acquire(pool, "anna")
    await lease.release(keep=False)
    assert opened(pool) == 0


def _kill_browser(browser: ChromiumBrowser) -> None:
    os.kill(browser.pid, signal.SIGKILL)


def _kill_playwright(browser: ChromiumBrowser) -> None:
    os.kill(browser._helper.pid, signal.SIGKILL)


def _crash_pages(browser: ChromiumBrowser) -> None:
    for child in psutil.Process(browser.pid).children(recursive=True):
        if "--type=renderer" in child.cmdline():
            child.kill()


@pytest.mark.parametrize(
    ("strike", "others_die", "browsers_die"),
    [(_kill_browser, False, 1), (_kill_playwright, True, 2), (_crash_pages, False, 0)],
)
async def test_who_works_in_a_browser_that_dies_sees_that_it_died_and_another_takes_its_place(
    pool: BrowserPool, site: Site, strike: Callable[[ChromiumBrowser], None], others_die: bool, browsers_die: int
) -> None:
    anna, bob = await acquire(pool, "anna"), await acquire(pool, "bob")
    assert browser_of(anna) is not browser_of(bob)

    async def work(lease: Lease) -> bool:
        with pytest.raises(Error):
            await lease.page.wait_for_function("() => false", timeout=PATIENCE * 1000)
        return lease.died

    works = [asyncio.create_task(work(lease)) for lease in (anna, bob)]
    await anna.page.evaluate("1")
    await bob.page.evaluate("1")
    strike(browser_of(anna))
    assert await works[0]
    if others_die:
        assert await works[1]
    else:
        assert not bob.died
        await bob.page.evaluate("1")
        works[1].cancel()
    await asyncio.wait(works)
    await anna.release(keep=True)
    await bob.release(keep=True)
    again = await acquire(pool, "anna")
    assert not again.died
    assert again.context is not anna.context
    await again.page.goto(f"{site.url}/home")
    assert await again.page.title() == "anna"
    async with asyncio.timeout(PATIENCE):
        while pool.capacity < 4:  # noqa: ASYNC110  # it tells nobody
            await asyncio.sleep(0.01)
    statistics = pool.statistics()
    assert (statistics.deaths, statistics.relaunches, statistics.failed_launches) == (browsers_die, browsers_die, 0)
    if browsers_die:
        await until_ended([browser_of(anna).pid])


async def test_a_browser_that_hangs_is_ended_and_replaced(pool: BrowserPool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chromium_browser, "CLOSING", 0.2)
    lease = await acquire(pool, "anna")
    pid = browser_of(lease).pid
    os.kill(pid, signal.SIGSTOP)
    await lease.release(keep=False)
    await until_ended([pid])
    assert not (await acquire(pool, "anna")).died


async def test_a_browser_that_opens_no_context_is_ended(pool: BrowserPool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chromium_browser, "OPENING", 0.2)
    pids = [host.browser.pid for host in pool._hosts if isinstance(host.browser, ChromiumBrowser)]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    with pytest.raises(BrowserError, match=r"opened no context within 0.2 s|browser ended while the context of anna"):
        await acquire(pool, "anna")
    await until_ended(pids[:1])
    for pid in pids[1:]:
        os.kill(pid, signal.SIGCONT)


async def test_nothing_is_left_of_a_pool_that_was_closed_though_a_context_was_in_use(site: Site) -> None:
    async def log_in(user_id: str, page: Any) -> None:
        await page.goto(f"{site.url}/login?user={user_id}")

    others = family(os.getpid())  # what other tests of this run have started
    mark = f"ARCHIBALD_MARK={uuid.uuid4()}"
    pool = BrowserPool(PoolSettings(browsers=2), login=log_in)
    await pool.start()
    await acquire(pool, "anna")
    pids = set(family(os.getpid(), mark)).difference(others)
    assert len(pids) > 5
    await pool.close()
    await until_ended(pids)
    assert set(family(os.getpid())) <= set(others)


async def _owner(what: str, mark: str) -> asyncio.subprocess.Process:
    name, _, value = mark.partition("=")
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.browser.owner",
        what,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env={**os.environ, name: value},
    )


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
async def test_no_process_is_left_after_its_owner_was_ended_by_a_signal(number: signal.Signals) -> None:
    mark = f"POOL_MARK={uuid.uuid4()}"
    owner = await _owner("wait", mark)
    assert owner.stdout is not None
    assert await owner.stdout.readline() == b"ready\n"
    pids = family(owner.pid, mark)
    assert len(pids) > 8
    owner.send_signal(number)
    await owner.wait()
    await until_ended(pids)


async def test_no_process_is_left_after_its_owner_ended_without_closing_the_pool() -> None:
    mark = f"POOL_MARK={uuid.uuid4()}"
    owner = await _owner("die", mark)
    assert owner.stdout is not None
    assert await owner.stdout.readline() == b"ready\n"
    pids = family(owner.pid, mark)
    assert await owner.wait() == 3
    await until_ended(pids)


async def test_no_zombie_is_left_where_the_owner_is_process_1() -> None:
    owner = await _owner("reap", f"POOL_MARK={uuid.uuid4()}")
    output, _ = await owner.communicate()
    assert output == b"left: []\n"


async def test_the_memory_of_a_browser_is_that_of_all_its_processes(pool: BrowserPool) -> None:
    lease = await acquire(pool, "anna")
    browser = browser_of(lease)
    own = psutil.Process(browser.pid).memory_full_info().pss
    assert await browser.memory() > own
    await lease.page.evaluate("() => { window.kept = new Uint8Array(100_000_000).fill(7); return 1 }")
    before = own
    assert await browser.memory() > before + 100_000_000


async def test_a_browser_has_a_sandbox_unless_the_owner_is_root_and_no_secrets(
    monkeypatch: pytest.MonkeyPatch, site: Site
) -> None:
    monkeypatch.setenv("ARCHIBALD_DATABASE_URL", "postgresql://u:geheim@db/x")
    monkeypatch.setenv("PGPASSWORD", "geheim")

    async def log_in(user_id: str, page: Any) -> None:
        await page.goto(f"{site.url}/login?user={user_id}")

    async with BrowserPool(PoolSettings(browsers=1), login=log_in) as pool:
        process = psutil.Process(browser_of(await acquire(pool, "anna")).pid)
        assert ("--no-sandbox" in process.cmdline()) == (os.geteuid() == 0)
        assert "geheim" not in str(process.environ())
        assert "PATH" in process.environ()


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (
            "echo 'x: error while loading shared libraries: libnss3.so: cannot open' >&2; exit 127",
            r"the library libnss3.so is missing; install one \(`apt-get install .*",
        ),
        (
            "echo 'what is --headless?' >&2; exit 2",
            "it ended at once, by exit code 2, and said last: what is --headless\\?",
        ),
        ("exit 0", "it ended at once, by exit code 0"),
        ("kill -ABRT $$", "it ended at once, by SIGABRT"),
    ],
)
async def test_what_is_no_browser_is_told_in_one_sentence_and_nothing_stays(
    tmp_path: Path, script: str, reason: str
) -> None:
    program = tmp_path / "chromium"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    others = family(os.getpid())
    pool = BrowserPool(PoolSettings(browsers=2, chromium=program), login=lambda *_: asyncio.sleep(0))
    with pytest.raises(BrowserError) as caught:
        await pool.start()
    assert re.fullmatch(f"{program} does not start as a browser: {reason}", str(caught.value))
    assert set(family(os.getpid())) <= set(others)
