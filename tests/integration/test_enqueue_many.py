"""Many jobs in one statement: all or none, in order, and each duplicate is the job that is already there."""

from __future__ import annotations

import asyncio

import psycopg
import pytest

from archibald_pgq import Archibald, InvalidJobError, NewJob, UnknownKindError
from tests.hand import hand
from tests.support import Look, Stage, looking, working


async def test_the_handles_come_in_the_order_given_and_name_the_jobs(app: Archibald) -> None:
    wanted = [
        NewJob("submit-order", user_id=f"u{n * 7 % 10}", data={"n": n}, idempotency_key=f"k{n}" if n % 3 else None)
        for n in range(50)
    ]
    jobs = await app.enqueue_many(wanted)
    records = [await job.record() for job in jobs]
    assert [record.payload for record in records] == [{"n": n} for n in range(50)]
    assert [(record.user_id, record.idempotency_key) for record in records] == [
        (job.user_id, job.idempotency_key) for job in wanted
    ]


async def test_jobs_of_one_agent_run_in_the_order_given_whatever_their_keys(app: Archibald) -> None:
    stage = Stage(hold=False)
    stage.register(app, "submit-order")
    jobs = await app.enqueue_many(
        [NewJob("submit-order", user_id="alice", data={"n": n}, idempotency_key=f"k{9 - n}") for n in range(10)]
    )
    async with working(app):
        await jobs[-1].wait(timeout=20)
    assert [data["n"] for _, data in stage.started] == list(range(10))


async def test_a_duplicate_is_the_job_that_is_there_already_also_one_of_the_same_call(
    app: Archibald, look: Look
) -> None:
    there = await app.enqueue("submit-order", user_id="alice", idempotency_key="o-1")
    sync = await app.enqueue("sync-orders", user_id="alice")
    jobs = await app.enqueue_many(
        [
            NewJob("submit-order", user_id="alice", idempotency_key="o-1"),
            NewJob("edit-order", user_id="alice", idempotency_key="o-2"),
            NewJob("submit-order", user_id="alice", idempotency_key="o-2"),
            NewJob("submit-order", user_id="bob", idempotency_key="o-2"),
            NewJob("sync-orders", user_id="alice"),
            NewJob("sync-orders", user_id="bob"),
            NewJob("sync-orders", user_id="bob"),
            NewJob("submit-order", user_id="alice"),
            NewJob("submit-order", user_id="alice"),
        ]
    )
    ids = [job.id for job in jobs]
    assert ids[0] == there.id
    assert ids[1] == ids[2]
    assert ids[4] == sync.id
    assert ids[5] == ids[6]
    assert len(set(ids)) == 7
    assert await look.value("SELECT count(*) FROM archibald.jobs") == 7


async def test_delays_and_the_window_count_for_each(
    app: Archibald, look: Look, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ARCHIBALD_DEDUP_WINDOW", "77")
    jobs = await app.enqueue_many(
        [
            NewJob("submit-order", user_id="alice", delay=60, idempotency_key="k"),
            NewJob("submit-order", user_id="alice"),
        ]
    )
    rows = await look.rows(
        "SELECT id, due, wait_reason, run_after - created_at BETWEEN interval '59 s' AND interval '61 s' "
        "FROM archibald.jobs ORDER BY id"
    )
    assert rows == [(jobs[0].id, False, "delay", True), (jobs[1].id, True, None, False)]
    assert (
        await look.value("SELECT extract(epoch FROM expires_at - job_created_at) FROM archibald.idempotency_keys") == 77
    )


async def test_nothing_is_enqueued_if_one_of_them_is_refused_and_the_sentence_says_which(
    app: Archibald, look: Look
) -> None:
    good = NewJob("submit-order", user_id="alice")
    with pytest.raises(InvalidJobError, match=r"^job 2 of 3: user_id must be a text of 1 to 200 characters$"):
        await app.enqueue_many([good, NewJob("submit-order", user_id=""), good])
    with pytest.raises(UnknownKindError, match="unknown kind 'no-such'"):
        await app.enqueue_many([good, NewJob("no-such", user_id="alice"), good])
    assert await look.value("SELECT count(*) FROM archibald.jobs") == 0
    assert await app.enqueue_many([]) == []


async def test_payloads_over_256_mb_in_all_are_refused_before_anything_is_sent(
    app: Archibald, look: Look, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("archibald_pgq.store.enqueues.MAX_MANY_BYTES", 1000)
    jobs = [NewJob("submit-order", user_id="alice", data={"texts": ["x" * 300]})] * 4
    with pytest.raises(InvalidJobError, match="over 256 MB in all; enqueue them in several calls"):
        await app.enqueue_many(jobs)
    assert len(await app.enqueue_many(jobs[:3])) == 3


async def test_on_a_callers_connection_all_are_part_of_its_transaction(
    app: Archibald, database: str, look: Look
) -> None:
    wanted = [NewJob("submit-order", user_id=user) for user in ("alice", "bob")]
    async with await psycopg.AsyncConnection.connect(database) as connection:
        jobs = await app.enqueue_many(wanted, connection=connection)
        assert await look.value("SELECT count(*) FROM archibald.jobs") == 0
        await connection.rollback()
        assert await look.value("SELECT count(*) FROM archibald.jobs") == 0
        jobs = await app.enqueue_many(wanted, connection=connection)
        await connection.commit()
    assert [row[0] for row in await look.rows("SELECT id FROM archibald.jobs ORDER BY id")] == [job.id for job in jobs]


async def test_callers_that_share_keys_in_opposite_orders_do_not_deadlock(
    app: Archibald, database: str, look: Look
) -> None:
    keys = [f"k{n}" for n in range(200)]

    async def enqueue(order: list[str]) -> dict[str, int]:
        async with looking(database) as own:
            ids = await own.value(
                "SELECT archibald.enqueue_many(array_fill('alice'::text, ARRAY[n]), array_fill('submit-order'::text, ARRAY[n]), "
                "array_fill('{}'::jsonb, ARRAY[n]), k, array_fill(NULL::timestamptz, ARRAY[n])) "
                "FROM (SELECT %s::text[] AS k, cardinality(%s::text[]) AS n) AS i",
                order, order,
            )  # fmt: skip
            return dict(zip(order, ids, strict=True))

    for _ in range(5):
        await look.rows("DELETE FROM archibald.jobs")
        first, *others = await asyncio.gather(*(enqueue(keys if n % 2 else keys[::-1]) for n in range(8)))
        assert all(found == first for found in others)
        assert await look.value("SELECT count(*) FROM archibald.jobs") == len(keys)


async def test_ten_thousand_jobs_of_ten_thousand_new_agents_are_one_call_and_all_run(
    app: Archibald, database: str, look: Look
) -> None:
    jobs = await app.enqueue_many([NewJob("submit-order", user_id=f"u{n}") for n in range(10_000)])
    assert len({job.id for job in jobs}) == 10_000
    async with hand(database) as worker:
        claimed = []
        while batch := await worker.claim(500):
            claimed += batch
    assert sorted(job.job_id for job in claimed) == sorted(job.id for job in jobs)
