"""Who goes first among agents: people before syncs, with consumers kept for them; then the longest wait, also of a sync."""

from __future__ import annotations

import pytest

from archibald_pgq import Archibald, NewJob
from archibald_pgq.store.turn import Want, take_turn
from tests.commands import command
from tests.hand import Hand, hand
from tests.support import Look, Stage, working


async def claimed(worker: Hand, want: Want) -> list[str]:
    """The agents whose jobs are claimed, in order."""
    turn = (await take_turn(worker.connection, worker.worker_id, [], want, look=True)).read()
    return [job.user_id for job in turn.claimed]


# -- reserved consumers


@pytest.mark.parametrize(
    ("consumers", "reserved", "syncs_at_once"), [("1", None, 1), ("2", "1", 1), ("10", None, 8), ("10", "0", 10)]
)
async def test_syncs_take_no_reserved_consumer_and_people_take_all(  # noqa: PLR0917  # pytest calls it by keyword
    app: Archibald,
    look: Look,
    monkeypatch: pytest.MonkeyPatch,
    consumers: str,
    reserved: str | None,
    syncs_at_once: int,
) -> None:
    monkeypatch.setenv("WORKER_CONCURRENCY", consumers)
    if reserved is not None:
        monkeypatch.setenv("ARCHIBALD_RESERVED_CONSUMERS", reserved)
    syncs, people = Stage(), Stage()
    syncs.register(app, "sync-orders")
    people.register(app, "download-ddt-pdf", "submit-order")
    await app.enqueue_many([NewJob("sync-orders", user_id=f"sync-{n}") for n in range(12)])
    async with working(app):
        await syncs.until_started(syncs_at_once)
        # writes of idle agents start at once on what was kept for them
        free = int(consumers) - syncs_at_once
        await app.enqueue_many([NewJob("submit-order", user_id=f"person-{n}") for n in range(free)])
        await people.until_started(free)
        assert len(syncs.started) == syncs_at_once
        # a consumer that becomes free goes to a person first, also one that a sync had
        await app.enqueue("download-ddt-pdf", user_id="reader")
        await syncs.let_go(syncs.users()[0])
        await people.until_started(free + 1)
        assert len(syncs.started) == syncs_at_once
        assert syncs.most_at_once == syncs_at_once
        await people.let_go()
        await syncs.let_go()
        await look.until("SELECT count(*) = 0 FROM archibald.jobs")
    assert syncs.most_at_once <= syncs_at_once


async def test_people_use_every_consumer_when_no_sync_runs(app: Archibald, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKER_CONCURRENCY", "4")
    monkeypatch.setenv("ARCHIBALD_RESERVED_CONSUMERS", "3")
    people = Stage()
    people.register(app, "submit-order", "download-ddt-pdf")
    async with working(app):
        kinds = ("submit-order", "download-ddt-pdf")
        await app.enqueue_many([NewJob(kinds[n % 2], user_id=f"person-{n}") for n in range(4)])
        await people.until_started(4)
        await people.let_go()


async def test_ready_syncs_that_no_consumer_may_take_make_no_tight_loop(
    database: str, app: Archibald, look: Look
) -> None:
    await app.enqueue_many([NewJob("sync-orders", user_id=f"sync-{n}") for n in range(3)])
    async with hand(database) as worker:
        assert await claimed(worker, Want(5, 2, 0)) == ["sync-0", "sync-1"]
        # The only things to come are the look at the syncs that have just begun, and the one after a look that took long.
        await look.until("SELECT max(doubt_at) <= now() FROM archibald.agents")
        comes: float | None = 0.0
        for _ in range(20):
            turn = (await take_turn(worker.connection, worker.worker_id, [], Want(3, 0, 0), look=True)).read()
            assert turn.claimed == []
            comes = turn.next_in
            if comes is None:
                break
        assert comes is None


async def test_a_hint_that_is_old_lets_no_sync_past_the_limit(database: str, app: Archibald, look: Look) -> None:
    await app.enqueue("sync-orders", user_id="alice")
    async with hand(database) as worker:
        assert await claimed(worker, Want(1, 0, 0)) == []
        await look.rows("UPDATE archibald.agents SET head_is_sync = false")
        assert await claimed(worker, Want(1, 0, 0)) == []
        assert await look.rows("SELECT state, head_is_sync FROM archibald.agents") == [("ready", True)]


@pytest.mark.parametrize(("reserved", "concurrency"), [("10", ""), ("3", "3"), ("5", "2")])
def test_a_reserve_that_leaves_no_consumer_for_syncs_is_refused(database: str, reserved: str, concurrency: str) -> None:
    ended = command(
        "run",
        "nowhere:app",
        database=database,
        env={"ARCHIBALD_RESERVED_CONSUMERS": reserved, "WORKER_CONCURRENCY": concurrency},
    )
    assert ended.refused() == (
        f"ARCHIBALD_RESERVED_CONSUMERS is {reserved}; it must be less than WORKER_CONCURRENCY, which is "
        f"{concurrency or 10}, or no sync would ever run"
    )


# -- ageing

AGE = "UPDATE archibald.agents SET head_waiting_since = now() - %s * interval '1 s' WHERE user_id = %s"


async def test_a_sync_that_waited_too_long_is_no_longer_overtaken_by_other_agents(
    database: str, app: Archibald, look: Look
) -> None:
    await app.enqueue_many([NewJob("sync-prices", user_id=f"old-{n}") for n in range(3)])
    await app.enqueue_many([NewJob("submit-order", user_id=f"new-{n}") for n in range(8)])
    async with hand(database, max_wait=60) as worker:
        assert await claimed(worker, Want(0, 0, 0)) == []
        for n, age in enumerate((61, 300, 59)):
            await look.rows(AGE, age, f"old-{n}")
        # the oldest first, as many as the turn may take of them, and the rest by priority
        assert await claimed(worker, Want(4, 4, 1)) == ["old-1", "new-0", "new-1", "new-2"]
        assert await claimed(worker, Want(4, 4, 1)) == ["old-0", "new-3", "new-4", "new-5"]
        # old-2 has not waited long enough
        assert await claimed(worker, Want(2, 2, 2)) == ["new-6", "new-7"]


async def test_an_aged_sync_takes_no_reserved_consumer(database: str, app: Archibald, look: Look) -> None:
    await app.enqueue("sync-prices", user_id="old")
    await app.enqueue("submit-order", user_id="new")
    async with hand(database, max_wait=60) as worker:
        assert await claimed(worker, Want(0, 0, 0)) == []
        await look.rows(AGE, 300, "old")
        assert await claimed(worker, Want(2, 0, 1)) == ["new"]
        assert await claimed(worker, Want(2, 1, 1)) == ["old"]


async def test_aged_syncs_get_at_most_one_in_four_of_the_places(
    app: Archibald, look: Look, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An outage of an hour does not put syncs before people."""
    monkeypatch.setenv("WORKER_CONCURRENCY", "1")
    monkeypatch.setenv("ARCHIBALD_MAX_WAIT", "60")
    await app.enqueue_many(
        [NewJob("sync-prices", user_id=f"sync-{n}") for n in range(40)]
        + [NewJob("submit-order", user_id=f"write-{n}") for n in range(40)]
    )
    await look.rows("UPDATE archibald.jobs SET waiting_since = now() - interval '1 h'")
    stage = Stage(hold=False)
    stage.register(app, "sync-prices", "submit-order")
    async with working(app):
        await look.until("SELECT count(*) = 0 FROM archibald.jobs")
    last_write = max(place for place, user in enumerate(stage.users()) if user.startswith("write"))
    early = stage.users()[: last_write + 1]
    syncs = sum(user.startswith("sync") for user in early)
    # fewer where a slow machine lets the look for what woke rest: then a job that waits unseen may be a person's
    assert len(early) // 8 <= syncs <= len(early) // 4 + 1


# -- turn taking


async def test_an_agent_with_many_jobs_goes_behind_one_with_a_single_job_of_the_same_priority(
    app: Archibald, monkeypatch: pytest.MonkeyPatch, look: Look
) -> None:
    monkeypatch.setenv("WORKER_CONCURRENCY", "1")
    stage = Stage(hold=False)
    stage.register(app, "submit-order")
    await app.enqueue_many([NewJob("submit-order", user_id="hot") for _ in range(1000)])
    await app.enqueue("submit-order", user_id="light")
    async with working(app):
        await stage.until_started(3)
        assert sorted(stage.users()[:3]) == ["hot", "hot", "light"]
        await look.rows("SELECT archibald.pause_agent('hot')")


async def test_an_agent_goes_straight_on_when_no_other_waits(app: Archibald, look: Look) -> None:
    stage = Stage(hold=False)
    stage.register(app, "submit-order")
    await app.enqueue_many([NewJob("submit-order", user_id="only", data={"n": n}) for n in range(100)])
    async with working(app):
        await look.until("SELECT count(*) = 0 FROM archibald.jobs")
    assert [data["n"] for _, data in stage.started] == list(range(100))


async def test_within_an_agent_no_sync_runs_while_a_write_of_it_is_due(app: Archibald, look: Look) -> None:
    stage = Stage(hold=False)
    stage.register(app, "submit-order", "sync-orders", "sync-customers")
    await app.enqueue("sync-orders", user_id="alice", data={"n": 1})
    await app.enqueue("sync-customers", user_id="alice", data={"n": 2})
    await app.enqueue_many([NewJob("submit-order", user_id="alice", data={"n": n}) for n in range(3, 6)])
    async with working(app):
        await look.until("SELECT count(*) = 0 FROM archibald.jobs")
    assert [data["n"] for _, data in stage.started] == [3, 4, 5, 2, 1]


async def test_a_turn_for_which_others_wait_takes_in_few_of_one_agents_new_jobs(
    app: Archibald, database: str, look: Look
) -> None:
    """Else each turn for the light agents takes as long as adopting hundreds of the hot one's jobs."""
    adopted = "SELECT count(*) FROM archibald.jobs WHERE NOT wake AND user_id = 'hot'"
    async with hand(database) as worker:
        # not by enqueue_many, which makes the lane of an agent with several jobs
        await look.rows(
            "INSERT INTO archibald.jobs (user_id, kind) SELECT 'hot', 'submit-order' FROM generate_series(1, 2000)"
        )
        await app.enqueue_many([NewJob("submit-order", user_id=f"light-{n}") for n in range(9)])
        (*_, last) = (await worker.turn(want=10)).claimed
        assert await look.value("SELECT count(*) FROM archibald.jobs WHERE state = 'running'") == 10
        assert await look.value(adopted) == 20
        await worker.settle(last)
        await worker.turn(want=1, look=True)
        assert await look.value(adopted) == 40
        await worker.turn(look=True)  # nobody waits for this one
        assert await look.value(adopted) == 540


@pytest.mark.parametrize("known", [False, True])
async def test_the_new_jobs_of_one_agent_hide_no_other_agents_however_many_they_are(
    app: Archibald, database: str, look: Look, known: bool
) -> None:
    if known:
        for user in ("hot", "light"):
            await app.cancel((await app.enqueue("submit-order", user_id=user)).id)
    async with hand(database) as worker:
        for _ in range(5):  # wherever a look happens to begin
            await app.enqueue_many([NewJob("submit-order", user_id="hot")] * 2000)
            await app.enqueue("submit-order", user_id="light")
            assert sorted(await claimed(worker, Want(10, 10, 0))) == ["hot", "light"]
            await look.rows("TRUNCATE archibald.jobs")
            await look.rows("UPDATE archibald.agents SET state = 'idle', worker_id = NULL, turn_job_ids = '{}'")
            await look.rows("SELECT pg_advisory_unlock_all()")
            await worker.connection.execute("SELECT pg_advisory_unlock_all()")


async def test_while_the_look_for_what_woke_rests_no_sync_takes_a_persons_place(look: Look, database: str) -> None:
    """After a slow look a turn does without one: a person's job may be there, and not be seen yet."""
    async with hand(database) as worker:
        await look.value("SELECT archibald.enqueue('alice', 'sync-orders')")
        await worker.turn(look=True)
        assert await look.value("SELECT state FROM archibald.agents") == "ready"
        rest = "SELECT set_config('archibald.wake_rest', (clock_timestamp() + interval '1 min')::text, false)"
        await worker.connection.execute(rest)
        await look.value("SELECT archibald.enqueue('bob', 'submit-order')")
        assert (await worker.turn(want=1)).claimed == []
        assert [job.user_id for job in (await worker.turn(want=1, look=True)).claimed] == ["bob"]
