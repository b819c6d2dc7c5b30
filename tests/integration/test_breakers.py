"""Circuit breakers: what keeps failing is left alone for a while, and nothing is spent by it."""

from __future__ import annotations

import asyncio
import json
import re
from datetime import datetime
from typing import Any

import pytest

from archibald_pgq import Archibald, JobContext, LoginRefusedError, UnreachableError
from archibald_pgq.domain.explanation import Reason
from archibald_pgq.domain.outcome import Outcome
from archibald_pgq.runtime import maintenance
from archibald_pgq.store import breakers
from archibald_pgq.store.client import Client
from tests.commands import call, together
from tests.hand import hand
from tests.support import PATIENCE, Look, working

PAUSE = """
SELECT extract(epoch FROM a.paused_until - b.failed_at)::float8
  FROM archibald.agents a JOIN archibald.breakers b USING (user_id) WHERE b.kind = ''
"""
OVER = "UPDATE archibald.agents SET paused_until = clock_timestamp() WHERE paused_until < '9999-01-01'"


class Erp:
    """A system that fails as often as a test says."""

    def __init__(self, app: Archibald, failures: int, error: Exception) -> None:
        self.left, self.error, self.runs = failures, error, 0
        app.operation("order", job_class="write")(self.handle)
        app.operation("read", job_class="read")(self.handle)

    async def handle(self, ctx: JobContext, data: dict[str, Any]) -> str:
        self.runs += 1
        if self.left:
            self.left -= 1
            raise self.error
        return "done"


async def test_after_three_outages_in_a_row_an_agent_is_paused_then_probed_and_nothing_is_spent(
    app: Archibald, look: Look
) -> None:
    erp = Erp(app, 5, UnreachableError("the ERP does not answer"))
    async with working(app):
        first = await app.enqueue("order", user_id="alice")
        second = await app.enqueue("order", user_id="alice")
        for failures, seconds in ((3, 300), (4, 600), (5, 1200)):
            await look.until(
                "SELECT count(*) = 1 FROM archibald.breakers WHERE failures = %s AND open_until > now()", failures
            )
            await look.until("SELECT state = 'idle' FROM archibald.agents WHERE user_id = 'alice'")
            assert await look.value(PAUSE) == pytest.approx(seconds, abs=1)
            assert erp.runs == failures  # the probe was one job
            await look.rows(OVER)
        assert [await job.wait(PATIENCE) for job in (first, second)] == ["done"] * 2
    assert await look.rows("SELECT attempt, losses, error FROM archibald.job_history ORDER BY id") == [(1, 0, None)] * 2
    assert await look.rows("SELECT * FROM archibald.breakers") == []
    assert erp.runs == 7


async def test_other_agents_go_on_beside_a_paused_one(app: Archibald, look: Look) -> None:
    @app.operation("order")
    async def handle(ctx: JobContext, data: dict[str, Any]) -> None:
        if ctx.user_id == "alice":
            raise UnreachableError("the ERP does not answer")

    async with working(app):
        await app.enqueue("order", user_id="alice")
        await look.until("SELECT EXISTS (SELECT FROM archibald.agents WHERE paused_reason LIKE 'breaker: 3 failures%')")
        await (await app.enqueue("order", user_id="bob")).wait(PATIENCE)


async def test_a_success_begins_the_count_anew(app: Archibald, look: Look) -> None:
    erp = Erp(app, 2, UnreachableError("the ERP does not answer"))
    async with working(app):
        for _ in range(3):
            erp.left = 2
            await (await app.enqueue("order", user_id="alice")).wait(PATIENCE)
            await look.until("SELECT NOT EXISTS (SELECT FROM archibald.breakers)")
    assert erp.runs == 9


async def test_a_worker_learns_of_an_outage_that_another_one_met(
    app: Archibald, database: str, look: Look, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a success in it begins the count anew."""
    monkeypatch.setattr(maintenance, "SERVED", 0.0)
    Erp(app, 0, UnreachableError())
    client = Client(database)
    try:
        async with hand(database, ["read"]) as worker:
            await app.enqueue("read", user_id="alice")
            job = await worker.claim_one()
            await client.ask(breakers.outage(job, worker.worker_id, "gone"))
            await worker.settle(job)
    finally:
        await client.close()
    async with working(app):
        async with asyncio.timeout(PATIENCE):
            while await look.value("SELECT EXISTS (SELECT FROM archibald.breakers)"):
                await (await app.enqueue("read", user_id="alice")).wait(PATIENCE)


async def test_a_refused_login_pauses_its_agent_until_somebody_resumes_it(app: Archibald, look: Look) -> None:
    erp = Erp(app, 1, LoginRefusedError("the ERP refuses alice's password"))
    async with working(app):
        job = await app.enqueue("order", user_id="alice")
        await look.until(
            "SELECT EXISTS (SELECT FROM archibald.agents WHERE paused_until > now() + interval '1000 years')"
        )
        await look.until_state(job.id, "queued")
        (agent,) = await app.agents()
        assert agent.paused_reason == "login refused: the ERP refuses alice's password"
        assert await app.resume_agent("alice")
        assert await job.wait(PATIENCE) == "done"
    assert (await job.record()).attempt == 1
    assert erp.runs == 2


async def test_a_breaker_leaves_a_persons_longer_pause_as_it_is(app: Archibald, database: str, look: Look) -> None:
    client = Client(database)
    try:
        async with hand(database) as worker:
            await app.enqueue("submit-order", user_id="alice")
            job = await worker.claim_one()
            await app.pause_agent("alice", reason="on holiday")
            for _ in range(3):
                await client.ask(breakers.outage(job, worker.worker_id, "gone"))
    finally:
        await client.close()
    assert await look.rows("SELECT paused_reason FROM archibald.agents") == [("on holiday",)]


@pytest.mark.parametrize("note", ["outage", "login_refused", "sync_failed"])
async def test_who_lost_the_job_moves_no_breaker(app: Archibald, database: str, look: Look, note: str) -> None:
    client = Client(database)
    try:
        async with hand(database) as worker:
            await app.enqueue("sync-orders", user_id="alice")
            job = await worker.claim_one()
            await look.rows("UPDATE archibald.agents SET epoch = epoch + 1")
            for _ in range(3):
                await client.ask(getattr(breakers, note)(job, worker.worker_id, "late"))
    finally:
        await client.close()
    assert await look.rows("SELECT * FROM archibald.breakers") == []
    assert await look.rows("SELECT paused_until FROM archibald.agents") == [(None,)]


# -- syncs that fail


async def failed_syncs(app: Archibald, look: Look, outcomes: str) -> None:
    """Run a sync of alice so often: f fails, c completes."""
    for outcome in outcomes:
        job = await app.enqueue("sync", user_id="alice", data={"fail": outcome == "f"})
        await look.until_state(job.id, "failed" if outcome == "f" else "completed")


def declare(app: Archibald) -> None:
    @app.operation("sync", job_class="sync")
    async def sync(ctx: JobContext, data: dict[str, Any]) -> None:
        if data["fail"]:
            raise ValueError("no such page")

    @app.operation("other", job_class="sync")
    async def other(ctx: JobContext, data: dict[str, Any]) -> None:
        pass


@pytest.mark.parametrize(
    ("outcomes", "seconds"), [("ff", None), ("fcff", None), ("fff", 7200), ("cfff", 7200), ("ffcffcff", 86400)]
)
async def test_a_sync_of_an_agent_that_keeps_failing_is_left_alone_and_the_agents_other_jobs_are_not(
    app: Archibald, look: Look, outcomes: str, seconds: int | None
) -> None:
    declare(app)
    async with working(app):
        await failed_syncs(app, look, outcomes)
        later = await app.enqueue("sync", user_id="alice", data={"fail": False})
        await (await app.enqueue("other", user_id="alice")).wait(PATIENCE)
        await (await app.enqueue("sync", user_id="bob", data={"fail": False})).wait(PATIENCE)
        if seconds is None:
            await later.wait(PATIENCE)
            return
        assert await look.value(
            "SELECT extract(epoch FROM run_after - created_at)::float8 FROM archibald.jobs WHERE id = %s AND NOT due",
            later.id,
        ) == pytest.approx(seconds, abs=PATIENCE)
        await look.rows("UPDATE archibald.jobs SET run_after = now() WHERE id = %s", later.id)
        await later.wait(PATIENCE)


async def test_whoever_looks_is_told_that_a_sync_is_left_alone_until_when_and_why(
    app: Archibald, database: str, look: Look
) -> None:
    declare(app)
    async with working(app):
        await failed_syncs(app, look, "fff")
        waits = await app.enqueue("sync", user_id="alice", data={"fail": False})
        found = await app.explain(waits.id)
    assert (found.reason, found.until) == (
        Reason.LEFT_ALONE,
        await look.value("SELECT open_until FROM archibald.breakers"),
    )
    assert "sync failed 3 times for alice, the last time with: ValueError: no such page" in found.sentence
    shown, as_json = together([call("agents", *how, database=database) for how in ((), ("--json",))])
    assert re.search(r"alice +delayed .* due in .*; sync left alone until .*: ValueError: no such page", shown.out)
    (agent,) = json.loads(as_json.out)
    assert [(each["kind"], each["failures"]) for each in agent["left_alone"]] == [("sync", 3)]
    assert datetime.fromisoformat(agent["left_alone"][0]["until"]) == found.until


async def test_who_resumes_the_agent_has_its_syncs_tried_again(app: Archibald, look: Look) -> None:
    declare(app)
    async with working(app):
        await failed_syncs(app, look, "fff")
        later = await app.enqueue("sync", user_id="alice", data={"fail": False})
        assert await app.resume_agent("alice")
        await later.wait(PATIENCE)
    assert await look.rows("SELECT * FROM archibald.breakers") == []


async def test_a_sync_that_waits_when_the_breaker_opens_waits_on_in_its_place(
    app: Archibald, database: str, look: Look
) -> None:
    client = Client(database)
    declare(app)
    try:
        async with working(app):
            await failed_syncs(app, look, "ff")
        async with hand(database, ["sync", "other"]) as worker:
            await app.enqueue("sync", user_id="alice", data={"fail": True})
            job = await worker.claim_one()
            waits = await app.enqueue("sync", user_id="alice", data={"fail": False})
            assert await client.ask(breakers.sync_failed(job, worker.worker_id, "again")) == 7200
            await worker.settle(job, Outcome.failed("again"))
            assert await worker.claim() == []
    finally:
        await client.close()
    assert await look.job(waits.id, "state", "attempt", "wait_reason") == ("queued", 0, "delay")
