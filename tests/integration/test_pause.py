"""A paused agent: its queued jobs wait and keep their places, the running one ends, and nobody else is affected."""

from __future__ import annotations

import pytest

from archibald_pgq import Archibald, Doing, InvalidJobError, UnknownAgentError
from archibald_pgq.domain.outcome import Outcome
from tests.hand import hand
from tests.support import Look, Stage, looking, working


async def test_a_paused_agents_jobs_wait_and_go_on_in_their_order_when_it_is_resumed(app: Archibald) -> None:
    stage = Stage(hold=False)
    stage.register(app, "submit-order")
    first = await app.enqueue("submit-order", user_id="alice", data={"n": 1})
    await app.pause_agent("alice", reason="on holiday")
    second = await app.enqueue("submit-order", user_id="alice", data={"n": 2})
    async with working(app):
        assert await (await app.enqueue("submit-order", user_id="bob")).wait(timeout=20)
        assert [(await job.record()).state for job in (first, second)] == ["queued", "queued"]
        assert await app.resume_agent("alice") is True
        await second.wait(timeout=20)
    assert stage.started == [("bob", {}), ("alice", {"n": 1}), ("alice", {"n": 2})]


async def test_the_running_job_of_a_paused_agent_ends_and_no_other_starts(
    app: Archibald, database: str, look: Look
) -> None:
    for n in range(2):
        await app.enqueue("submit-order", user_id="alice", data={"n": n})
    async with hand(database) as worker:
        running = await worker.claim_one()
        await app.pause_agent("alice")
        (agent,) = await app.agents()
        assert (agent.doing, agent.job_id, agent.waiting, agent.paused, agent.paused_until) == (
            Doing.RUNNING,
            running.job_id,
            1,
            True,
            None,
        )
        await worker.settle(running)
        assert await look.job(running.job_id, "state") == ("completed",)
        assert await worker.claim() == []
        (agent,) = await app.agents()
        assert (agent.doing, agent.job_id, agent.waiting, agent.paused) == (Doing.PAUSED, None, 1, True)


@pytest.mark.parametrize("event", ["retry", "go_back", "taken over", "enqueue", "cancel", "unlock"])
async def test_nothing_that_touches_a_paused_agents_lane_lets_it_go_on(
    app: Archibald, database: str, look: Look, event: str
) -> None:
    job = await app.enqueue("sync-customers", user_id="alice")
    other = await app.enqueue("sync-orders", user_id="alice")
    async with hand(database) as worker, hand(database) as lost, looking(database) as outside:
        if event in {"retry", "go_back"}:
            claimed = await worker.claim_one()
            await app.pause_agent("alice")
            await worker.settle(claimed, Outcome.retry("no", 0) if event == "retry" else Outcome.gone_back())
        elif event == "taken over":
            await lost.claim_one()
            await app.pause_agent("alice")
            await look.rows("UPDATE archibald.workers SET beat = now() - interval '1 h' WHERE id = %s", lost.worker_id)
            await look.rows("SELECT archibald.fence_stale_workers(%s)", worker.worker_id)
            await look.rows("SELECT archibald.end_lost_backends()")
            pid = lost.connection.info.backend_pid
            await look.until("SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = %s)", pid)
            assert len(await look.rows("SELECT archibald.release_fenced_lanes(10, 3)")) == 1
        elif event == "unlock":
            await outside.value("SELECT archibald.try_lock_agent('alice')")
            await worker.claim()
            await app.pause_agent("alice")
            await outside.value("SELECT archibald.unlock_agent('alice')")
        else:
            await app.pause_agent("alice")
            if event == "enqueue":
                await app.enqueue("submit-order", user_id="alice")
            else:
                await app.cancel(other.id)
        assert await worker.claim() == []
        await app.resume_agent("alice")
        claimed = await worker.claim_one()
        assert claimed.user_id == "alice"
        assert claimed.job_id == job.id or event == "enqueue"


async def test_a_pause_lasts_until_somebody_ends_it_and_one_with_an_end_ends_by_itself(
    app: Archibald, database: str, look: Look
) -> None:
    await app.enqueue("submit-order", user_id="alice")
    async with hand(database) as worker:
        assert await look.value("SELECT archibald.pause_agent('alice', 'for an hour', now() + interval '1 h')")
        assert await worker.claim() == []
        (agent,) = await app.agents()
        assert (agent.paused_reason, agent.paused_until) == (
            "for an hour",
            await look.value("SELECT paused_until FROM archibald.agents"),
        )
        # an hour passes
        await look.rows("UPDATE archibald.agents SET paused_until = now()")
        assert (await worker.claim_one()).user_id == "alice"
        assert await look.rows("SELECT paused_until, paused_reason FROM archibald.agents") == [(None, None)]


async def test_resuming_wakes_a_worker(app: Archibald, database: str) -> None:
    await app.enqueue("submit-order", user_id="alice")
    await app.pause_agent("alice")
    async with looking(database) as listener:
        await listener.rows("LISTEN archibald")
        await app.resume_agent("alice")
        assert await listener.heard() == "wake"


async def test_pausing_again_changes_the_reason_and_resuming_again_does_nothing(app: Archibald) -> None:
    await app.enqueue("submit-order", user_id="alice")
    await app.pause_agent("alice", reason="one")
    await app.pause_agent("alice", reason="two")
    (agent,) = await app.agents()
    assert (agent.paused_reason, agent.doing) == ("two", Doing.PAUSED)
    assert await app.resume_agent("alice") is True
    assert await app.resume_agent("alice") is False
    (agent,) = await app.agents()
    assert (agent.paused, agent.paused_reason, agent.doing) == (False, None, Doing.WAITING)


async def test_an_agent_that_never_had_a_job_is_said_to_be_unknown(app: Archibald, look: Look) -> None:
    with pytest.raises(UnknownAgentError, match="there is no agent 'alcie'"):
        await app.pause_agent("alcie")
    with pytest.raises(UnknownAgentError, match="there is no agent 'alcie'"):
        await app.resume_agent("alcie")
    assert await look.value("SELECT count(*) FROM archibald.agents") == 0
    # one whose first job no worker has adopted yet is known
    await app.enqueue("submit-order", user_id="alice")
    assert await app.resume_agent("alice") is False
    await app.pause_agent("alice")


async def test_what_is_no_agent_or_no_reason_is_refused(app: Archibald) -> None:
    await app.enqueue("submit-order", user_id="alice")
    for user_id, reason, sentence in (
        ("", None, "user_id must be a text of 1 to 200"),
        ("alice", "", "reason must be a text of 1 to 500"),
        ("alice", "x" * 501, "reason must be a text of 1 to 500"),
        ("alice", "a\x00b", "reason holds a NUL"),
    ):
        with pytest.raises(InvalidJobError, match=sentence):
            await app.pause_agent(user_id, reason=reason)


@pytest.mark.parametrize("when", ["infinity", "-infinity", "10000-01-01"])
async def test_a_pause_until_a_time_that_nobody_can_calculate_with_is_refused(
    app: Archibald, look: Look, when: str
) -> None:
    await app.enqueue("submit-order", user_id="alice")
    with pytest.raises(Exception, match="a pause must end at a time in the years 1 to 9999"):
        await look.value("SELECT archibald.pause_agent('alice', NULL, %s::timestamptz)", when)
