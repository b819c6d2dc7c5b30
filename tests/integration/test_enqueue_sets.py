"""Many jobs enqueued as a set come out as the same jobs enqueued one by one; and nobody else passes by the trigger."""

from __future__ import annotations

import asyncio
import random
import re
from pathlib import Path

import pytest
from psycopg import errors

from archibald_pgq import Archibald, NewJob
from tests.support import Look, looking

FLAG = "SET archibald.checked = 'on'"
MANY = "SELECT archibald.enqueue_many(%s::text[], %s::text[], %s::text[]::jsonb[], %s::text[], %s::timestamptz[])"
# All that does not come from a clock or a sequence.
STORED = """
SELECT payload ->> 'n', user_id, kind, class, state, due, wait_reason, priority, max_attempts, idempotency_key, payload,
       agent_id, requeue_count, losses, attempt, preemptions, coalesce(run_after - created_at > interval '1 s', false),
       waiting_since = greatest(run_after, created_at)
  FROM archibald.jobs WHERE payload ? 'n' ORDER BY (payload ->> 'n')::int
"""
LANES = """
INSERT INTO archibald.agents (user_id, lock_key, state, ready_at, head_kind, head_is_sync, head_priority, preemptable, worker_id)
SELECT u, archibald.lock_key(u), state, now(), 'submit-order', is_sync, priority, preemptable, worker
  FROM (VALUES ('idle', 'idle', false, 0, false, NULL), ('better', 'ready', false, 0, false, NULL),
               ('worse', 'ready', true, 9, false, NULL), ('busy', 'running', false, 0, false, 1), ('syncs', 'running', true, 5, true, 1))
       AS l(u, state, is_sync, priority, preemptable, worker)
"""


def made(seed: int) -> list[tuple[str, str, str, str | None, str | None]]:
    """Jobs of every sort; only syncs have no key, for which of two syncs is the job may depend on their keys."""
    chance = random.Random(seed)
    kinds = [chance.choice(["submit-order", "sync-orders", "download", "edit-order"]) for _ in range(60)]
    return [
        (
            chance.choice(["idle", "better", "worse", "busy", "syncs", "new", "other new"]),
            kind,
            f'{{"n": {n}}}',
            None if kind == "sync-orders" else chance.choice([None, None, None, "a", "b"]),
            chance.choice([None, None, "2000-01-01Z", "2100-01-01Z"]),
        )
        for n, kind in enumerate(kinds)
    ]


@pytest.mark.parametrize("seed", range(3))
async def test_a_set_is_stored_like_its_jobs_one_by_one(look: Look, seed: int) -> None:
    """Whatever the lanes, keys and times: column by column. But of a set one job of an agent wakes for the others."""
    await look.rows(
        "INSERT INTO archibald.operations (kind, class, priority, timeout_s, max_attempts) VALUES ('download', 'read', 6, 60, 4)"
    )
    await look.rows(LANES)
    jobs = made(seed)
    stored, waking = [], []
    for many in (False, True):
        async with look.connection.transaction(force_rollback=True):
            if many:
                ids = await look.value(MANY, *map(list, zip(*jobs, strict=True)))
            else:
                one = "SELECT archibald.enqueue(%s, %s, %s::jsonb, %s, %s::timestamptz)"
                ids = [await look.value(one, *job) for job in jobs]
            rows = await look.rows(STORED)
            names = dict(await look.rows("SELECT id, (payload ->> 'n')::int FROM archibald.jobs"))
            waking.append(set(await look.rows("SELECT payload ->> 'n', user_id FROM archibald.jobs WHERE wake")))
        stored.append((rows, [names[job] for job in ids]))
    assert len(stored[0][0]) < len(jobs)
    assert stored[0] == stored[1]
    assert waking[1] < waking[0]
    assert {user for _, user in waking[1]} == {user for _, user in waking[0]}


async def test_an_enqueue_stores_what_a_plain_insert_stores_and_wakes_whom_that_wakes(look: Look) -> None:
    """It passes by the trigger where there is nothing to decide; whoever is woken in each of ten attempts is woken."""
    await look.rows(
        "INSERT INTO archibald.operations (kind, class, priority, timeout_s, max_attempts) VALUES ('download', 'read', 6, 60, 4)"
    )
    await look.rows(LANES)
    jobs = [(*rest, time) for *rest, key, time in made(4) if key is None]
    stored, woken = [], []
    rows: list[tuple[object, ...]] = []
    for one in (
        "SELECT archibald.enqueue(%s, %s, %s::jsonb, NULL, %s::timestamptz)",
        "INSERT INTO archibald.jobs (user_id, kind, payload, run_after) VALUES (%s, %s, %s, %s)",
    ):
        waking = []
        for _ in range(10):
            for job in jobs:
                await look.rows(one, *job)
            waking.append(set(await look.rows("SELECT payload ->> 'n' FROM archibald.jobs WHERE wake")))
            rows = await look.rows(STORED)
            await look.rows("DELETE FROM archibald.jobs")
        stored.append(rows)
        woken.append(set.intersection(*waking))
    assert len(stored[0]) < len(jobs)  # two syncs of an agent are one
    assert stored[0] == stored[1]
    assert woken[0] == woken[1]
    assert 5 < len(woken[0]) < len(stored[0]) - 5


async def test_an_enqueue_that_waits_for_anothers_sync_holds_no_bucket_meanwhile(look: Look, database: str) -> None:
    """It would keep every lane of the bucket from being called empty for as long as the other one's transaction is open."""
    enqueue = "SELECT archibald.enqueue('alice', 'sync-orders')"
    async with looking(database) as caller, look.connection.transaction():
        job = await look.value(enqueue)
        pid = await caller.value("SELECT pg_backend_pid()")
        waiting = asyncio.create_task(caller.value(enqueue))
        await look.until("SELECT count(*) > 0 FROM pg_locks WHERE pid = %s AND NOT granted", pid)
        assert await look.rows("SELECT * FROM pg_locks WHERE pid = %s AND locktype = 'advisory'", pid) == []
    assert await waiting == job


async def test_a_set_for_busy_agents_wakes_nobody_and_one_for_others_notifies_once(look: Look, database: str) -> None:
    await look.rows(LANES)
    await look.rows("LISTEN archibald")

    async with looking(database) as caller:

        async def enqueue(*users: str) -> int:
            """Return how many of the jobs wake."""
            count = len(users)
            await caller.rows(MANY, list(users), ["edit-order"] * count, ["{}"] * count, [None] * count, [None] * count)
            waking: int = await look.value("SELECT count(*) FROM archibald.jobs WHERE wake")
            await look.rows("DELETE FROM archibald.jobs")
            return waking

        # one that was slow between two messages of its own passes for a transaction, as in test_lanes
        woken = [await enqueue(*["busy", "better"] * 20) for _ in range(30)]
        assert woken.count(0) > 10
        # all of a new agent's, each of which is to be given its lane, and one of another's
        assert await enqueue(*["busy", "new", "idle", "better"] * 20) in range(21, 24)
    await look.rows("SELECT pg_notify('archibald', 'the end')")
    heard = [await look.heard()]
    while heard[-1] != "the end":
        heard.append(await look.heard())
    assert heard.count("wake") == 1 + 30 - woken.count(0)


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO archibald.jobs (user_id, kind, class, priority, max_attempts, state, worker_id) "
        "VALUES ('alice', 'submit-order', 'read', 0, 99, 'needs_review', 7)",
        "SELECT archibald.enqueue('alice', 'submit-order')",
        MANY.replace("%s::text[],", "'{alice}'::text[],", 1)
        .replace("%s::text[],", "'{submit-order}'::text[],", 1)
        .replace("%s::text[]::jsonb[]", "ARRAY['{}']::jsonb[]")
        .replace("%s::text[]", "ARRAY['k']")
        .replace("%s::timestamptz[]", "ARRAY[NULL]::timestamptz[]"),
        "COPY archibald.jobs (user_id, kind, class, priority, max_attempts, attempt) FROM PROGRAM "
        "'echo alice,submit-order,sync,0,99,5' (FORMAT csv)",
    ],
    ids=["INSERT", "enqueue", "enqueue_many", "COPY"],
)
async def test_a_caller_who_sets_the_setting_of_enqueue_many_does_not_pass_by_the_trigger(
    look: Look, statement: str
) -> None:
    """Not even one who may insert into every column, as an application's role may to which somebody granted too much."""
    await look.rows("DROP ROLE IF EXISTS trickster")
    await look.rows("CREATE ROLE trickster")
    try:
        await look.rows("GRANT USAGE ON SCHEMA archibald TO trickster")
        await look.rows("GRANT INSERT, SELECT ON archibald.jobs TO trickster")
        await look.rows("GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA archibald TO trickster")
        await look.rows("GRANT pg_execute_server_program TO trickster")
        async with look.connection.transaction():
            await look.rows("SET LOCAL ROLE trickster")
            await look.rows(FLAG)
            await look.rows(statement)
        policy = await look.rows("SELECT class, max_attempts FROM archibald.operations WHERE kind = 'submit-order'")
        assert await look.rows("SELECT class, max_attempts FROM archibald.jobs") == policy
        assert await look.rows("SELECT state, attempt, worker_id, wake FROM archibald.jobs") == [
            ("queued", 0, None, True)
        ]
    finally:
        await look.rows("RESET archibald.checked")
        await look.rows("DROP OWNED BY trickster")
        await look.rows("DROP ROLE trickster")


async def test_the_setting_ends_with_the_statement_that_it_is_for(look: Look, database: str) -> None:
    """Also where that statement fails, inside of a transaction that goes on."""
    flag = "SELECT coalesce(current_setting('archibald.checked', true), '')"
    good = (["alice"], ["submit-order"], ["{}"], [None], [None])
    async with looking(database) as caller, caller.connection.transaction():
        await caller.rows(MANY, *good)
        assert await caller.value(flag) == ""
        with pytest.raises(errors.CheckViolation):
            async with caller.connection.transaction():
                await caller.rows(
                    MANY, ["alice"], ["submit-order"], ['{"a": "' + "x" * 1_048_576 + '"}'], [None], [None]
                )
        assert await caller.value(flag) == ""
        await caller.rows("INSERT INTO archibald.jobs (user_id, kind) VALUES ('alice', 'submit-order')")
    assert await look.value("SELECT count(*) FROM archibald.jobs WHERE class = 'write' AND priority IS NOT NULL") == 2


@pytest.mark.parametrize(
    "payload",
    [
        '{"a": "' + "x" * 1_048_576 + '"}',
        '{"a": ' + "[" * 200 + "1" + "]" * 200 + "}",
        '{"a": [' + ", ".join(["1e131071"] * 8) + "]}",
    ],
    ids=["long", "deep", "long as text"],
)
@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO archibald.jobs (user_id, kind, payload) VALUES ('alice', 'submit-order', %s)",
        "SELECT archibald.enqueue('alice', 'submit-order', %s)",
        "SELECT archibald.enqueue_many('{alice}', '{submit-order}', ARRAY[%s::jsonb], ARRAY[NULL], ARRAY[NULL]::timestamptz[])",
        "UPDATE archibald.jobs SET payload = %s",
    ],
    ids=["INSERT", "enqueue", "enqueue_many", "UPDATE"],
)
async def test_a_payload_over_the_limits_is_refused_wherever_it_is_written(
    look: Look, statement: str, payload: str
) -> None:
    await look.rows("SELECT archibald.enqueue('bob', 'submit-order')")
    with pytest.raises(errors.CheckViolation, match=r"jobs_payload_(size|depth)") as caught:
        await look.rows(statement, payload)
    assert not caught.value.diag.message_detail  # which would quote the row, and get into logs
    assert await look.rows("SELECT user_id, payload FROM archibald.jobs") == [("bob", {})]


async def test_a_set_is_refused_where_a_kind_becomes_a_sync_meanwhile(look: Look, database: str) -> None:
    """What has been looked at as a job without a twin would otherwise be a second sync of its agent."""
    bucket = "SELECT pg_advisory_lock(1095910216, archibald.bucket(archibald.lock_key('alice')))"
    async with looking(database) as caller, looking(database) as holder:
        await holder.value(bucket)
        pid = await caller.value("SELECT pg_backend_pid()")
        waiting = asyncio.create_task(caller.rows(MANY, ["alice"], ["submit-order"], ["{}"], [None], [None]))
        await look.until("SELECT count(*) > 0 FROM pg_locks WHERE pid = %s AND NOT granted", pid)
        await look.rows("UPDATE archibald.operations SET class = 'sync' WHERE kind = 'submit-order'")
        await holder.value(bucket.replace("_lock(", "_unlock(", 1))
        with pytest.raises(errors.SerializationFailure, match="enqueue again"):
            await waiting
    assert await look.value("SELECT count(*) FROM archibald.jobs") == 0


async def test_an_enqueue_of_the_client_is_one_round_trip(app: Archibald, tmp_path: Path) -> None:
    """No BEGIN, no ROLLBACK and no look at the connection beside it; and one more for agents with several jobs in a set."""
    job = NewJob("submit-order", user_id="alice")
    for _ in range(10):  # from the sixth on it is prepared
        await app.enqueue(job.kind, user_id=job.user_id)
    assert app._client is not None
    (connection,) = app._client._pool._idle
    with (tmp_path / "messages").open("w+") as messages:
        connection.pgconn.trace(messages.fileno())
        for _ in range(10):
            await app.enqueue(job.kind, user_id=job.user_id)
        messages.seek(0)
        alone = re.findall(r"\tF\t\d+\t(\w+)", messages.read())
        await app.enqueue_many([job, NewJob("submit-order", user_id="bob")])
        await app.enqueue_many([job] * 3)
        connection.pgconn.untrace()
        messages.seek(0)
        sent = re.findall(r"\tF\t\d+\t(\w+)", messages.read())
    assert alone == ["Bind", "Describe", "Execute", "Sync"] * 10
    assert set(sent) == {"Parse", "Bind", "Describe", "Execute", "Sync"}
    assert sent.count("Sync") == 10 + 1 + 2
