"""One enqueue on a connection of our own, which goes past the driver's cursor: it keeps what a cursor promises."""

from __future__ import annotations

import asyncio
import threading

import psycopg
import pytest

from archibald_pgq import Archibald, DatabaseError, InvalidJobError
from tests.support import Look, looking, with_encoding

CLIENTS = "FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'archibald-pgq client' AND state IS NOT NULL"
OFTEN = 10
"""More than the five times after which the driver prepares a statement."""


async def test_what_was_prepared_on_a_lost_connection_is_prepared_anew(app: Archibald, look: Look) -> None:
    for n in range(3 * OFTEN):
        await app.enqueue("submit-order", user_id=f"async-{n}")
        await asyncio.to_thread(app.sync.enqueue, "submit-order", user_id=f"sync-{n}")
        if n % OFTEN == OFTEN - 1:
            await look.rows(f"SELECT pg_terminate_backend(pid, 5000) {CLIENTS}")
    assert await look.value("SELECT count(DISTINCT user_id) FROM archibald.jobs") == 6 * OFTEN


async def test_a_cancelled_enqueue_is_cancelled_on_the_server_too(app: Archibald, database: str, look: Look) -> None:
    for _ in range(OFTEN):
        await app.enqueue("submit-order", user_id="bob")
    async with await psycopg.AsyncConnection.connect(database) as holder:
        await app.enqueue("submit-order", user_id="alice", idempotency_key="k", connection=holder)
        waiting = asyncio.create_task(app.enqueue("submit-order", user_id="alice", idempotency_key="k"))
        await look.until(f"SELECT count(*) = 1 {CLIENTS} AND wait_event_type = 'Lock'")
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert await look.value(f"SELECT count(*) = 0 {CLIENTS} AND state = 'active'")
        await holder.rollback()
    job = await app.enqueue("submit-order", user_id="alice", idempotency_key="k")
    assert await look.rows("SELECT id FROM archibald.jobs WHERE user_id = 'alice'") == [(job.id,)]


async def test_an_enqueue_whose_connection_is_lost_meanwhile_says_so(app: Archibald, database: str, look: Look) -> None:
    for _ in range(OFTEN):
        await app.enqueue("submit-order", user_id="bob")
    async with await psycopg.AsyncConnection.connect(database) as holder:
        await app.enqueue("submit-order", user_id="alice", idempotency_key="k", connection=holder)
        waiting = [
            asyncio.create_task(app.enqueue("submit-order", user_id="alice", idempotency_key="k")),
            asyncio.create_task(
                asyncio.to_thread(app.sync.enqueue, "submit-order", user_id="alice", idempotency_key="k")
            ),
        ]
        await look.until(f"SELECT count(*) = 2 {CLIENTS} AND wait_event_type = 'Lock'")
        await look.rows(f"SELECT pg_terminate_backend(pid, 5000) {CLIENTS}")
        for one in waiting:
            with pytest.raises(DatabaseError, match=r"cannot be used|terminating connection"):
                await one
    await app.enqueue("submit-order", user_id="carl")


@pytest.mark.parametrize("encoding", ["UTF8", "LATIN1"])
async def test_texts_keep_their_letters_whatever_encoding_is_set(database: str, look: Look, encoding: str) -> None:
    async with Archibald(with_encoding(database, encoding)) as app:
        for _ in range(OFTEN):
            job = await app.enqueue("submit-order", user_id="日本", data={"größe": "→"})
            assert (await app.enqueue("submit-order", user_id="日本", idempotency_key="é")).id != job.id
    assert await look.rows("SELECT DISTINCT user_id, idempotency_key, payload FROM archibald.jobs ORDER BY 2") == [
        ("日本", "é", {}),
        ("日本", None, {"größe": "→"}),
    ]


async def test_a_callers_connection_that_has_no_such_letters_is_refused_in_a_sentence(
    app: Archibald, database: str
) -> None:
    async with await psycopg.AsyncConnection.connect(with_encoding(database, "LATIN1")) as connection:
        with pytest.raises(InvalidJobError, match="cannot store"):
            await app.enqueue("submit-order", user_id="日本", connection=connection)


async def test_threads_share_the_connections_and_what_is_prepared_on_them(app: Archibald, look: Look) -> None:
    def many(name: str) -> None:
        for n in range(3 * OFTEN):
            app.sync.enqueue("submit-order", user_id=f"{name}-{n}")

    threads = [threading.Thread(target=many, args=(str(n),)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        await asyncio.to_thread(thread.join)
    assert await look.value("SELECT count(DISTINCT user_id) FROM archibald.jobs") == 8 * 3 * OFTEN


async def test_a_migration_that_replaces_the_function_does_not_disturb_who_has_prepared_its_call(
    app: Archibald, database: str
) -> None:
    for _ in range(OFTEN):
        await app.enqueue("submit-order", user_id="alice")
    async with looking(database) as migration:
        definition = await migration.value(
            "SELECT pg_get_functiondef(p.oid) FROM pg_proc p WHERE p.pronamespace = 'archibald'::regnamespace AND p.proname = 'enqueue'"
        )
        await migration.rows("BEGIN")
        await migration.rows(definition)
        await migration.rows("COMMIT")
    await app.enqueue("submit-order", user_id="alice")
