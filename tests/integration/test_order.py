"""In which order jobs run: within an agent by (is a sync, priority, id), among agents by priority and then by who waited longest."""

from __future__ import annotations

import pytest

from archibald_pgq.domain.outcome import Outcome
from tests.hand import Hand, hand
from tests.support import Look

ENQUEUE = "SELECT archibald.enqueue(%s, %s)"
LATER = "SELECT archibald.enqueue(%s, %s, run_after => now() + interval '1 h')"
ITS_TIME_COMES = "UPDATE archibald.jobs SET run_after = now() WHERE id = %s"


async def run_all(worker: Hand) -> list[int]:
    """Run jobs one after another until none is left; return their ids."""
    ids = []
    while jobs := await worker.claim(want=1):
        ids.append(jobs[0].job_id)
        await worker.settle(jobs[0])
    return ids


async def test_an_agents_jobs_run_by_class_then_priority_then_age(look: Look, database: str) -> None:
    async with hand(database) as worker:
        kinds = (
            "sync-customers",
            "edit-order",
            "download-ddt-pdf",
            "submit-order",
            "sync-order-articles",
            "edit-order",
            "sync-orders",
        )
        ids = [await look.value(ENQUEUE, "alice", kind) for kind in kinds]
        assert await run_all(worker) == [ids[3], ids[1], ids[5], ids[2], ids[4], ids[0], ids[6]]


async def test_a_priority_given_by_the_caller_counts_but_never_lifts_a_sync_before_a_person(
    look: Look, database: str
) -> None:
    insert = "INSERT INTO archibald.jobs (user_id, kind, priority) VALUES ('alice', %s, %s) RETURNING id"
    async with hand(database) as worker:
        sync = await look.value(insert, "sync-orders", 0)
        last = await look.value(insert, "submit-order", 32767)
        usual = await look.value(ENQUEUE, "alice", "edit-order")
        first = await look.value(insert, "edit-order", 0)
        assert await run_all(worker) == [first, usual, last, sync]


async def test_a_delay_says_from_when_and_not_in_which_place(look: Look, database: str) -> None:
    async with hand(database) as worker:
        delayed = await look.value(LATER, "alice", "submit-order")
        one = await look.value(ENQUEUE, "alice", "submit-order")
        two = await look.value(ENQUEUE, "alice", "submit-order")
        job = await worker.claim_one()
        assert job.job_id == one
        await look.rows(ITS_TIME_COMES, delayed)
        await worker.turn(look=True)
        await worker.settle(job)
        assert await run_all(worker) == [delayed, two]


@pytest.mark.parametrize("many", [False, True])
async def test_jobs_that_no_worker_has_looked_at_yet_are_not_overtaken_by_later_ones(
    look: Look, database: str, many: bool
) -> None:
    """An agent's first jobs are given their lane by a worker, so many at a time; meanwhile later jobs find the lane by themselves."""

    async def enqueue(kind: str) -> int:
        if many:
            return int(
                await look.value(
                    "SELECT (archibald.enqueue_many(ARRAY['alice'], ARRAY[%s], '{\"{}\"}', NULL, NULL))[1]", kind
                )
            )
        return int(await look.value(ENQUEUE, "alice", kind))

    async def run_all_without_a_look() -> list[int]:
        ids = []
        turn = await worker.turn(want=1)
        while turn.claimed:
            (job,) = turn.claimed
            ids.append(job.job_id)
            turn = await worker.turn((job, Outcome.completed("1")), want=1)
        return ids

    async with hand(database) as worker:
        ids = [await look.value(ENQUEUE, "alice", "edit-order") for _ in range(25)]
        (job,) = (await worker.turn(want=1)).claimed
        await worker.connection.execute(
            "SELECT set_config('archibald.wake_rest', (now() + interval '1 h')::text, false)"
        )
        ids.append(await enqueue("edit-order"))
        urgent = await enqueue("submit-order")
        await worker.settle(job)
        assert await run_all_without_a_look() == [urgent, *ids[1:]]


async def test_a_claim_finds_the_jobs_that_go_first_also_where_no_worker_has_given_them_their_lane(
    look: Look, database: str
) -> None:
    """They were enqueued while the lane was being made, and the look for what woke rests."""
    async with hand(database) as worker:
        worse = [await look.value(ENQUEUE, "alice", "download-ddt-pdf") for _ in range(3)]
        (job,) = (await worker.turn(want=1)).claimed
        urgent = [await look.value(ENQUEUE, "alice", "submit-order") for _ in range(2)]
        later = await look.value(ENQUEUE, "alice", "download-ddt-pdf")
        await look.rows("UPDATE archibald.jobs SET agent_id = NULL, wake = true WHERE id = ANY (%s)", [*urgent, later])
        await worker.connection.execute(
            "SELECT set_config('archibald.wake_rest', (now() + interval '1 h')::text, false)"
        )
        order = [job.job_id]
        while claimed := (await worker.turn((job, Outcome.completed("1")), want=1)).claimed:
            (job,) = claimed
            order.append(job.job_id)
        assert order == [worse[0], *urgent, *worse[1:]]


async def test_what_goes_back_keeps_its_place_and_what_is_retried_takes_it_again(look: Look, database: str) -> None:
    async with hand(database) as worker:
        first = await look.value(ENQUEUE, "alice", "download-ddt-pdf")
        second = await look.value(ENQUEUE, "alice", "download-ddt-pdf")
        await worker.settle(await worker.claim_one(), Outcome.gone_back())
        job = await worker.claim_one()
        assert (job.job_id, job.attempt) == (first, 1)
        await worker.settle(job, Outcome.retry("again", 3600))
        waits = await worker.claim_one()
        assert waits.job_id == second  # a job that backs off blocks nobody
        await look.rows(ITS_TIME_COMES, first)
        await worker.settle(waits, Outcome.gone_back())
        job = await worker.claim_one()
        assert (job.job_id, job.attempt) == (first, 2)
        await worker.settle(job)
        assert await run_all(worker) == [second]


async def test_a_refused_head_keeps_its_place_and_only_it_is_counted(look: Look, database: str) -> None:
    async with hand(database) as worker:
        assert await look.value("SELECT archibald.try_lock_agent('alice')")
        first = await look.value(ENQUEUE, "alice", "submit-order")
        second = await look.value(ENQUEUE, "alice", "submit-order")
        for count in (1, 2, 3):
            turn = await worker.turn(want=10, look=True)
            assert [(item.job_id, item.requeue_count) for item in turn.requeued] == [(first, count)]
            # the backoff ends
            await look.rows("UPDATE archibald.agents SET ready_at = now(), retry_at = now()")
        assert await look.job(second, "requeue_count", "wait_reason") == (0, None)
        await look.value("SELECT archibald.unlock_agent('alice')")
        assert await run_all(worker) == [first, second]


async def test_among_agents_the_more_urgent_goes_first_and_then_who_waited_longest(look: Look, database: str) -> None:
    async with hand(database) as worker:
        for user, kind in (
            ("a", "sync-orders"),
            ("b", "edit-order"),
            ("c", "submit-order"),
            ("d", "edit-order"),
            ("e", "sync-customers"),
        ):
            await look.value(ENQUEUE, user, kind)
            await worker.turn(look=True)
        assert [job.user_id for job in await worker.claim()] == ["c", "b", "d", "e", "a"]


async def test_an_agent_that_was_served_goes_behind_those_that_wait(look: Look, database: str) -> None:
    """Ten agents with a lot to do do not starve one with little."""
    async with hand(database) as worker:
        for n in range(10):
            for _ in range(5):
                await look.value(ENQUEUE, f"hot-{n}", "submit-order")
        await worker.turn(look=True)
        await look.value(ENQUEUE, "light", "submit-order")
        served = []
        for _ in range(11):
            (job,) = await worker.claim(want=1)
            served.append(job.user_id)
            await worker.settle(job)
        assert served == [*(f"hot-{n}" for n in range(10)), "light"]


async def test_limits_of_names_numbers_and_payloads_pass_through_unchanged(look: Look, database: str) -> None:
    user, text = "\U0001f69a" * 200, "x" * (2**20 - 10)
    async with hand(database) as worker:
        await look.rows(
            "SELECT setval('archibald.jobs_id_seq', 2147483645), setval('archibald.agents_id_seq', 2147483646)"
        )
        sql = "SELECT archibald.enqueue(%s, 'submit-order', jsonb_build_object('a', %s::text), %s)"
        ids = [await look.value(sql, user, text, str(n) + "\U0001f69a" * 199) for n in range(4)]
        assert ids == [2**31 - 2, 2**31 - 1, 2**31, 2**31 + 1]
        for job_id in ids:
            job = await worker.claim_one()
            assert (job.job_id, job.user_id, job.payload) == (job_id, user, {"a": text})
            await worker.settle(job)
    assert await look.value("SELECT count(*) FROM archibald.job_history WHERE user_id = %s", user) == 4
