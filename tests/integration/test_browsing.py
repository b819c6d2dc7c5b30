"""Operations that drive a browser: a real worker, a real Chromium, and a context of the job's agent."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import re
import sys
from collections.abc import AsyncIterator
from typing import Any

import psutil
import pytest
from aiohttp import web

from archibald_pgq import (
    Archibald,
    ConfigError,
    JobContext,
    JobFailedError,
    LoginRefusedError,
)
from archibald_pgq.browser import PoolStatistics
from tests.chromium import needs_chromium
from tests.commands import call, together
from tests.support import PATIENCE, Look, working

pytestmark = needs_chromium


class System:
    """What the agents log in to."""

    def __init__(self) -> None:
        self.url, self.logins, self.password = "", 0, "right"
        self.in_use: set[str] = set()

    async def login(self, request: web.Request) -> web.Response:
        self.logins += 1
        if self.password != "right":
            return web.Response(status=403, text="refused")
        answer = web.Response(text="<h1>welcome</h1>", content_type="text/html")
        answer.set_cookie("ASP.NET_SessionId", request.query["user"])
        return answer

    async def page(self, request: web.Request) -> web.Response:
        return web.Response(
            text=f"<h1>{request.cookies.get('ASP.NET_SessionId', 'nobody')}</h1>", content_type="text/html"
        )


@pytest.fixture
async def system() -> AsyncIterator[System]:
    made = System()
    app = web.Application()
    app.add_routes([web.get("/login", made.login), web.get("/", made.page)])
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    made.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield made
    await runner.cleanup()


@pytest.fixture
async def driving(app: Archibald, system: System) -> Archibald:
    """An app whose operations look at the system's page; what a job's data says goes wrong there."""

    @app.login
    async def login(ctx: JobContext, page: Any) -> None:
        answer = await page.goto(f"{system.url}/login?user={ctx.user_id}")
        if answer.status == 403:
            raise LoginRefusedError(f"the system refuses the password of {ctx.user_id}")

    async def look(ctx: JobContext, data: dict[str, Any]) -> str:
        page = await ctx.page()
        await page.goto(system.url)
        match data.get("then"):
            case "fail":
                raise ValueError("nothing there")
            case "die":
                _kill_browsers()
                await page.wait_for_selector("#never")
            case "wait":
                await asyncio.sleep(600)
            case "close":
                await page.close()
                page = await ctx.page()
                await page.goto(system.url)
        assert len(ctx.browser_context.pages) == 1
        return str(await page.inner_text("h1"))

    app.operation("look", job_class="read", needs_browser=True)(look)
    app.operation("save", job_class="write", needs_browser=True)(look)
    app.operation("browse", job_class="sync", needs_browser=True)(look)

    @app.operation("plain", job_class="read")
    async def plain(ctx: JobContext, data: dict[str, Any]) -> None:
        await ctx.page()

    return app


def _kill_browsers() -> None:
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # an earlier one may be about to go
            if "chrom" in process.name():
                process.kill()


async def test_a_handler_gets_a_page_of_its_agent_logged_in_and_the_next_job_the_same_context(
    driving: Archibald, system: System
) -> None:
    async with working(driving):
        for user in ("alice", "alice", "bob"):
            assert await (await driving.enqueue("look", user_id=user)).wait(PATIENCE) == user
        assert await (await driving.enqueue("look", user_id="bob", data={"then": "close"})).wait(PATIENCE) == "bob"
    assert system.logins == 2


async def test_a_kind_that_needs_no_browser_has_none(driving: Archibald, system: System) -> None:
    async with working(driving):
        with pytest.raises(JobFailedError, match="plain has no browser; register it with needs_browser=True"):
            await (await driving.enqueue("plain", user_id="alice")).wait(PATIENCE)
    assert system.logins == 0


async def test_what_a_failed_job_saw_is_kept_and_its_context_is_not(
    driving: Archibald, system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ARCHIBALD_BROWSER_TRACE", "1")
    async with working(driving):
        failed = await driving.enqueue("look", user_id="alice", data={"then": "fail"})
        with pytest.raises(JobFailedError, match="nothing there"):
            await failed.wait(PATIENCE)
        (found,) = await driving.evidence(failed.id)
        assert (found.job_id, found.attempt, found.url) == (failed.id, 1, f"{system.url}/")
        assert found.screenshot is not None
        assert found.screenshot.startswith(b"\x89PNG")
        assert found.trace is not None
        assert found.trace.startswith(b"PK")
        done = await driving.enqueue("look", user_id="alice")
        await done.wait(PATIENCE)
        assert await driving.evidence(done.id) == []
    assert system.logins == 2


@pytest.mark.parametrize("how", ["cancel", "preempt"])
async def test_a_context_in_which_a_job_was_cut_off_is_closed(
    driving: Archibald, system: System, look: Look, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ARCHIBALD_PREEMPT_GRACE", "0")
    async with working(driving):
        job = await driving.enqueue("browse", user_id="alice", data={"then": "wait"})
        await look.until_state(job.id, "running")
        async with asyncio.timeout(PATIENCE):
            while not system.logins:  # noqa: ASYNC110  # the browser comes to it
                await asyncio.sleep(0.01)
        if how == "preempt":
            assert await (await driving.enqueue("save", user_id="alice")).wait(PATIENCE) == "alice"
        assert await driving.cancel(job.id) in {"requested", "cancelled"}
        await look.until_state(job.id, "cancelled")
        await (await driving.enqueue("look", user_id="alice")).wait(PATIENCE)
    assert system.logins >= 2


async def test_a_job_whose_browser_dies_has_not_failed_by_itself_and_fails_only_when_that_goes_on(
    driving: Archibald, look: Look
) -> None:
    async with working(driving):
        job = await driving.enqueue("look", user_id="alice", data={"then": "die"})
        with pytest.raises(JobFailedError, match="its browser died 3 times"):
            await job.wait(PATIENCE)
        assert (await job.record()).attempt == 1
        assert await (await driving.enqueue("look", user_id="alice")).wait(PATIENCE) == "alice"


async def test_a_write_whose_browser_dies_is_for_a_person(driving: Archibald, look: Look) -> None:
    async with working(driving):
        job = await driving.enqueue("save", user_id="alice", data={"then": "die"})
        await look.until_state(job.id, "needs_review")
    assert (await look.job(job.id, "error"))[0].startswith("its browser died")


async def test_a_refused_login_pauses_the_agent_and_the_job_keeps_its_place(
    driving: Archibald, system: System, look: Look
) -> None:
    system.password = "wrong"
    async with working(driving):
        job = await driving.enqueue("save", user_id="alice")
        await look.until("SELECT EXISTS (SELECT FROM archibald.agents WHERE paused_reason LIKE 'login refused%')")
        await look.until_state(job.id, "queued")
        system.password = "right"
        await driving.resume_agent("alice")
        assert await job.wait(PATIENCE) == "alice"
    assert (await job.record()).attempt == 1
    assert system.logins == 2


async def test_a_system_that_cannot_be_reached_by_a_login_is_an_outage(
    driving: Archibald, system: System, look: Look
) -> None:
    there, system.url = system.url, "http://127.0.0.1:9"
    async with working(driving):
        job = await driving.enqueue("save", user_id="alice")
        await look.until("SELECT EXISTS (SELECT FROM archibald.agents WHERE paused_reason LIKE 'breaker: 3 failures%')")
        system.url = there
        await driving.resume_agent("alice")
        assert await job.wait(PATIENCE) == "alice"
    assert (await job.record()).attempt == 1


async def test_whoever_looks_sees_what_a_workers_browsers_are_doing(
    driving: Archibald, database: str, look: Look
) -> None:
    async with working(driving):
        job = await driving.enqueue("look", user_id="alice", data={"then": "wait"})
        await look.until("SELECT browsers ->> 'in_use' = '1' FROM archibald.workers")
        shown, as_json = await asyncio.to_thread(
            together, [call("workers", *how, database=database) for how in ((), ("--json",))]
        )
        assert re.search(r"jobs +browsers +contexts +started", shown.out)
        assert re.search(r" 1/10 +3/3 +1/15 ", shown.out)
        await driving.cancel(job.id)
        await look.until("SELECT browsers ->> 'closed_by_failure' = '1' FROM archibald.workers")
    (worker,) = json.loads(as_json.out)
    assert set(worker["browsers"]) == {field.name for field in dataclasses.fields(PoolStatistics)}
    assert (worker["browsers"]["logins"], worker["browsers"]["contexts"]) == (1, 1)


async def test_all_browsers_end_with_the_worker(driving: Archibald) -> None:
    async with working(driving):
        await (await driving.enqueue("look", user_id="alice")).wait(PATIENCE)
        processes = _of_chromium()
        assert len(processes) > 3
    _, left = await asyncio.to_thread(psutil.wait_procs, processes, PATIENCE)
    assert left == []


def _of_chromium() -> list[psutil.Process]:
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if "chrom" in process.name():
                found.append(process)
    return found


async def test_a_worker_with_too_few_contexts_for_its_consumers_does_not_start(
    driving: Archibald, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ARCHIBALD_BROWSERS", "2")
    with pytest.raises(
        ConfigError, match="WORKER_CONCURRENCY is 10, but with one of 2 browsers down there are 5 contexts"
    ):
        await driving.worker()


async def test_without_playwright_it_says_what_to_install(driving: Archibald, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "playwright", None)
    with pytest.raises(ConfigError, match=r"pip install 'archibald-pgq\[browser\]'"):
        await driving.worker()
