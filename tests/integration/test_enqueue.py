"""Enqueueing from Python and plain SQL, inside and outside a caller's transaction; policies; what a handler and a waiter are given."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row
from sqlalchemy import make_url, text
from sqlalchemy.ext.asyncio import (
    AsyncEngine,
    AsyncSession,
    async_scoped_session,
    async_sessionmaker,
    create_async_engine,
)

from archibald_pgq import (
    Archibald,
    Backoff,
    InvalidJobError,
    JobCancelledError,
    JobContext,
    JobFailedError,
    NewJob,
    State,
    UnknownJobError,
    UnknownKindError,
    WaitTimeoutError,
)
from archibald_pgq.domain.operations import CATALOGUE
from tests.support import Look, Stage, working

JOBS = "SELECT count(*) FROM archibald.all_jobs"


@pytest.fixture
async def engine(database: str) -> AsyncIterator[AsyncEngine]:
    """A caller's own SQLAlchemy engine."""

    async def connect() -> psycopg.AsyncConnection[Any]:
        return await psycopg.AsyncConnection.connect(database)

    made = create_async_engine("postgresql+psycopg://", async_creator=connect)
    yield made
    await made.dispose()


@asynccontextmanager
async def callers_connection(sort: str, database: str, engine: AsyncEngine) -> AsyncIterator[Any]:
    """A connection of each sort; in the middle of a transaction that has written a row of the caller's."""
    note = "INSERT INTO notes VALUES ('the caller wrote this')"
    match sort:
        case "psycopg":
            async with await psycopg.AsyncConnection.connect(database) as connection:
                await connection.execute(note)
                yield connection
        case "psycopg, dict rows":
            async with await psycopg.AsyncConnection.connect(database, row_factory=dict_row) as as_dict:
                await as_dict.execute(note)
                yield as_dict
        case "psycopg, raw cursors":
            async with await psycopg.AsyncConnection.connect(database, cursor_factory=psycopg.AsyncRawCursor) as raw:
                await raw.execute(note)
                yield raw
        case "AsyncConnection":
            async with engine.connect() as of_engine:
                await of_engine.execute(text(note))
                yield of_engine
        case "AsyncSession":
            async with AsyncSession(engine) as session:
                await session.execute(text(note))
                yield session
        case "AsyncSession, asyncpg":
            of_asyncpg = create_async_engine(make_url(database).set(drivername="postgresql+asyncpg"))
            async with AsyncSession(of_asyncpg) as session:
                await session.execute(text(note))
                yield session
            await of_asyncpg.dispose()
        case "async_scoped_session":
            scoped = async_scoped_session(async_sessionmaker(engine), asyncio.current_task)
            await scoped.execute(text(note))
            yield scoped
            await scoped.remove()


SORTS = [
    "psycopg",
    "psycopg, dict rows",
    "psycopg, raw cursors",
    "AsyncConnection",
    "AsyncSession",
    "async_scoped_session",
    "AsyncSession, asyncpg",
]


@pytest.mark.parametrize("sort", SORTS)
async def test_a_job_is_part_of_the_callers_transaction(
    sort: str, app: Archibald, look: Look, database: str, engine: AsyncEngine
) -> None:
    await look.rows("CREATE TABLE notes (note text)")
    stage = Stage(hold=False)
    stage.register(app, "submit-order")
    async with working(app), callers_connection(sort, database, engine) as connection:
        undone = await app.enqueue("submit-order", user_id="alice", data={"n": 1}, connection=connection)
        await connection.rollback()
        with pytest.raises(UnknownJobError):
            await undone.record()
        assert await look.value(JOBS) == 0

        job = await app.enqueue(
            "submit-order", user_id="alice", data={"n": 2}, idempotency_key="k", connection=connection
        )
        twin = await app.enqueue("submit-order", user_id="alice", idempotency_key="k", connection=connection)
        assert twin.id == job.id
        assert await look.value(JOBS) == 0  # nobody else sees it yet
        await connection.commit()
        assert await job.wait(timeout=20) == {"ran": {"n": 2}}
    assert stage.started == [("alice", {"n": 2})]
    assert (
        await look.value("SELECT count(*) FROM notes") == 0
    )  # that transaction was the caller's, and was rolled back with its job


@pytest.mark.parametrize("sort", SORTS)
async def test_a_set_is_part_of_the_callers_transaction(
    sort: str, app: Archibald, look: Look, database: str, engine: AsyncEngine
) -> None:
    """One in which there is something to look at in each job, and one in which there is not: these are two statements."""
    await look.rows("CREATE TABLE notes (note text)")
    users, data = ["alice", 'bob, "{}'], [{"text": 'Zoë "\\, {}', "n": n} for n in range(2)]
    async with callers_connection(sort, database, engine) as connection:
        plain = [NewJob("submit-order", user_id=user, data=each) for user, each in zip(users, data, strict=True)]
        keyed = [
            NewJob("submit-order", user_id=user, data=each, idempotency_key='a "key"', delay=60)
            for user, each in zip(users, data, strict=True)
        ]
        jobs = [job for jobs in (plain, keyed) for job in await app.enqueue_many(jobs, connection=connection)]
        assert await look.value(JOBS) == 0  # nobody else sees them yet
        await connection.commit()
    records = [await job.record() for job in jobs]
    assert [(record.user_id, record.payload) for record in records] == list(zip(users, data, strict=True)) * 2
    assert [record.idempotency_key for record in records] == [None, None, 'a "key"', 'a "key"']


@pytest.mark.parametrize("sort", SORTS)
async def test_a_refusal_inside_a_callers_transaction_says_the_same_and_leaves_nothing(
    sort: str, app: Archibald, look: Look, database: str, engine: AsyncEngine
) -> None:
    await look.rows("CREATE TABLE notes (note text)")
    async with callers_connection(sort, database, engine) as connection:
        with pytest.raises(InvalidJobError):  # found before the database is asked: the transaction goes on
            await app.enqueue("submit-order", user_id="", connection=connection)
        await app.enqueue("submit-order", user_id="alice", connection=connection)
        with pytest.raises(UnknownKindError, match="unknown kind 'no-such-kind'"):
            await app.enqueue("no-such-kind", user_id="alice", connection=connection)
        await connection.rollback()
    assert await look.value(JOBS) == 0
    assert await look.value("SELECT count(*) FROM notes") == 0


async def test_what_is_the_callers_to_handle_reaches_the_caller(app: Archibald, database: str) -> None:
    async with await psycopg.AsyncConnection.connect(database) as connection:
        with pytest.raises(psycopg.errors.DivisionByZero):
            await connection.execute("SELECT 1/0")
        with pytest.raises(psycopg.errors.InFailedSqlTransaction):
            await app.enqueue("submit-order", user_id="alice", connection=connection)
        await connection.rollback()


async def test_the_dedup_window_of_the_settings_counts_on_every_connection(
    app: Archibald, database: str, look: Look, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ARCHIBALD_DEDUP_WINDOW", "600")
    await app.enqueue("submit-order", user_id="alice", idempotency_key="a")
    async with await psycopg.AsyncConnection.connect(database) as connection:
        await app.enqueue("submit-order", user_id="alice", idempotency_key="b", connection=connection)
    rows = await look.rows(
        "SELECT key, extract(epoch FROM expires_at - job_created_at)::int FROM archibald.idempotency_keys"
    )
    assert sorted(rows) == [("a", 600), ("b", 600)]


@pytest.mark.parametrize("kind", ["submit-order", "download-ddt-pdf", "sync-orders"])
async def test_a_plain_insert_gets_the_kinds_policy_and_wakes_a_worker(app: Archibald, look: Look, kind: str) -> None:
    stage = Stage(hold=False)
    stage.register(app, kind)
    async with working(app):
        await look.rows("INSERT INTO archibald.jobs (user_id, kind, payload) VALUES ('alice', %s, '{\"n\": 1}')", kind)
        await look.until("SELECT count(*) = 1 FROM archibald.job_history")
    policy = CATALOGUE[kind]
    assert await look.rows("SELECT class, priority, max_attempts, state, payload FROM archibald.all_jobs") == [
        (policy.job_class, policy.priority, policy.max_attempts, "completed", {"n": 1})
    ]
    assert stage.started == [("alice", {"n": 1})]


async def test_a_plain_insert_of_a_duplicate_inserts_nothing_and_raises_nothing(look: Look) -> None:
    insert = (
        "INSERT INTO archibald.jobs (user_id, kind, idempotency_key) VALUES ('alice', 'submit-order', 'k') RETURNING id"
    )
    assert len(await look.rows(insert)) == 1
    assert await look.rows(insert) == []
    assert await look.value("SELECT archibald.enqueue('alice', 'edit-order', '{}', 'k')") == 1
    assert await look.value(JOBS) == 1


# -- policies

POLICY = "SELECT class, priority, timeout_s, max_attempts, backoff, backoff_s, idempotent FROM archibald.operations WHERE kind = %s"


async def test_the_migrated_database_has_the_catalogue(look: Look) -> None:
    rows = await look.rows("SELECT kind FROM archibald.operations")
    assert {kind for (kind,) in rows} == set(CATALOGUE)
    for kind, policy in CATALOGUE.items():
        assert await look.rows(POLICY, kind) == [
            (
                policy.job_class,
                policy.priority,
                policy.timeout,
                policy.max_attempts,
                policy.backoff and policy.backoff.shape,
                policy.backoff.seconds if policy.backoff else 0,
                policy.idempotent,
            )
        ]


async def nothing(ctx: JobContext, data: dict[str, Any]) -> None: ...


async def test_an_app_writes_the_policies_that_it_declares_and_leaves_the_others_alone(
    database: str, look: Look
) -> None:
    await look.rows("UPDATE archibald.operations SET priority = 77 WHERE kind IN ('submit-order', 'edit-order')")
    await look.rows("INSERT INTO archibald.operations VALUES ('set-by-hand', 'read', 5, 10, 2, NULL, 0, false)")
    async with Archibald(database) as app:
        app.operation("submit-order")(nothing)
        app.operation("edit-order", priority=3, max_attempts=2, backoff=Backoff.exponential(7), idempotent=True)(
            nothing
        )
        app.operation("ours", job_class="sync", timeout=1.5)(nothing)
        app.operation("bare")(nothing)
        app.operation("set-by-hand")(nothing)
        await app.jobs()
    assert await look.rows(POLICY, "submit-order") == [("write", 77, 120, 1, None, 0, False)]
    assert await look.rows(POLICY, "edit-order") == [("write", 3, 120, 2, "exponential", 7, True)]
    assert await look.rows(POLICY, "ours") == [("sync", 100, 1.5, 1, None, 0, False)]
    assert await look.rows(POLICY, "bare") == [("write", 100, 120, 1, None, 0, False)]
    assert await look.rows(POLICY, "set-by-hand") == [("read", 5, 10, 2, None, 0, False)]
    assert await look.value("SELECT count(*) FROM archibald.operations") == len(CATALOGUE) + 3
    async with Archibald(database) as changed:
        changed.operation("ours", job_class="read")(nothing)
        await changed.jobs()
    assert await look.rows(POLICY, "ours") == [("read", 100, 120, 1, None, 0, False)]


async def test_an_operation_declared_after_the_first_use_is_written_too(app: Archibald, look: Look) -> None:
    await app.jobs()
    app.operation("later", priority=4)(nothing)
    await app.enqueue("later", user_id="alice")
    assert await look.rows("SELECT priority FROM archibald.jobs") == [(4,)]


async def test_the_worker_goes_by_the_policy_in_the_database(app: Archibald, look: Look) -> None:
    """Timeout, attempts and backoff as an operator has set them, not as the catalogue says."""
    attempts: list[int] = []

    @app.operation("submit-order")
    async def hang(ctx: JobContext, data: dict[str, Any]) -> None:
        await asyncio.Event().wait()

    @app.operation("edit-order")
    async def fail(ctx: JobContext, data: dict[str, Any]) -> None:
        attempts.append(ctx.attempt)
        raise ValueError("no such order")

    await look.rows("UPDATE archibald.operations SET timeout_s = 0.05 WHERE kind = 'submit-order'")
    await look.rows("UPDATE archibald.operations SET max_attempts = 3, backoff = NULL WHERE kind = 'edit-order'")
    async with working(app):
        late = await app.enqueue("submit-order", user_id="alice")
        failing = await app.enqueue("edit-order", user_id="bob")
        with pytest.raises(JobFailedError, match=r"^timed out after 0.05 s$"):
            await late.wait(timeout=20)
        with pytest.raises(JobFailedError, match=r"^ValueError: no such order$"):
            await failing.wait(timeout=20)
    assert attempts == [1, 2, 3]
    assert await look.job(failing.id, "attempt", "max_attempts", "state") == (3, 3, "failed")


# -- the handler's context


async def test_a_handler_is_told_whose_job_it_runs_and_which_attempt(
    app: Archibald, look: Look, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[tuple[str, int, str, int, bool]] = []

    @app.operation("ours", max_attempts=2)
    async def ours(ctx: JobContext, data: dict[str, Any]) -> None:
        seen.append((ctx.user_id, ctx.job_id, ctx.kind, ctx.attempt, ctx.cancelled))
        ctx.log.warning("half way: %d %%", 50)
        if ctx.attempt == 1:
            raise ValueError("again")

    async with working(app):
        job = await app.enqueue("ours", user_id="alice")
        await job.wait(timeout=20)
    assert seen == [("alice", job.id, "ours", 1, False), ("alice", job.id, "ours", 2, False)]
    (line, _) = [record for record in caplog.records if record.name == "archibald_pgq.job"]
    assert line.getMessage() == f"[ours {job.id} of alice] half way: 50 %"
    assert line.levelno == logging.WARNING
    assert vars(line)["job_id"] == job.id


async def test_progress_is_written_at_most_twice_a_second_and_its_last_value_always(app: Archibald, look: Look) -> None:
    await look.rows("CREATE TABLE seen (at timestamptz, progress int, label text)")
    await look.rows(
        "CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "INSERT INTO seen VALUES (clock_timestamp(), NEW.progress, NEW.progress_label); RETURN NEW; END $$"
    )
    await look.rows(
        "CREATE TRIGGER note AFTER UPDATE OF progress ON archibald.jobs FOR EACH ROW "
        "WHEN (NEW.progress IS NOT NULL) EXECUTE FUNCTION note()"
    )

    @app.operation("ours")
    async def ours(ctx: JobContext, data: dict[str, Any]) -> None:
        for percent in range(100):
            await ctx.progress(percent, f"step {percent}")
            if percent in (30, 60):  # some of the writes have happened
                await look.until("SELECT count(*) >= %s FROM seen", percent // 30)
        await ctx.progress(100, "done" + "!" * 300)

    async with working(app):
        job = await app.enqueue("ours", user_id="alice")
        await job.wait(timeout=20)
    assert await look.job(job.id, "progress", "progress_label") == (100, ("done" + "!" * 300)[:200])
    rows = await look.rows("SELECT progress, extract(epoch FROM at - lag(at) OVER (ORDER BY at)) FROM seen ORDER BY at")
    assert 2 <= len(rows) <= 4
    assert rows[-1][0] == 100
    assert [progress for progress, _ in rows] == sorted(progress for progress, _ in rows)
    # the last value is written when the handler has ended, whenever that is
    assert all(pause >= 0.45 for _, pause in rows[1:-1])


@pytest.mark.parametrize("pauses", range(4))
async def test_the_last_progress_is_kept_however_soon_the_handler_ends_after_it(
    app: Archibald, look: Look, pauses: int
) -> None:
    @app.operation("ours")
    async def ours(ctx: JobContext, data: dict[str, Any]) -> None:
        await ctx.progress(100, "done")
        for _ in range(pauses):
            await asyncio.sleep(0)

    async with working(app):
        jobs = [await app.enqueue("ours", user_id=f"user-{n}") for n in range(5)]
        for job in jobs:
            await job.wait(timeout=20)
    assert await look.rows("SELECT progress, progress_label FROM archibald.all_jobs") == [(100, "done")] * 5


@pytest.mark.parametrize("percent", [-1, 101, float("nan")])
async def test_progress_out_of_range_is_refused(app: Archibald, percent: float) -> None:
    @app.operation("ours")
    async def ours(ctx: JobContext, data: dict[str, Any]) -> None:
        await ctx.progress(percent)  # type: ignore[arg-type]

    async with working(app):
        job = await app.enqueue("ours", user_id="alice")
        with pytest.raises(JobFailedError, match="progress is 0 to 100 percent"):
            await job.wait(timeout=20)


@pytest.mark.parametrize("label", ["\x00", "\ud800", "%s {} '; DROP SCHEMA archibald CASCADE; --"])
async def test_a_progress_label_that_cannot_be_stored_costs_neither_the_job_nor_the_worker(
    app: Archibald, label: str
) -> None:
    @app.operation("ours")
    async def ours(ctx: JobContext, data: dict[str, Any]) -> int:
        await ctx.progress(1, "first")
        await ctx.progress(2, label)
        return 7

    async with working(app):
        for user in ("alice", "alice", "bob"):
            job = await app.enqueue("ours", user_id=user)
            assert await job.wait(timeout=20) == 7


# -- waiting for a job


async def test_wait_gives_the_result_or_the_failure(app: Archibald, look: Look) -> None:
    @app.operation("ours")
    async def ours(ctx: JobContext, data: dict[str, Any]) -> Any:
        if data.get("fail"):
            raise ValueError("it failed")
        return data.get("result")

    async with working(app):
        for result in ({"a": [1, 2.5, "é"]}, [1], "text", 7, None):
            job = await app.enqueue("ours", user_id="alice", data={"result": result})
            assert await job.wait(timeout=20) == result
        failing = await app.enqueue("ours", user_id="alice", data={"fail": True})
        with pytest.raises(JobFailedError, match=r"^ValueError: it failed$"):
            await failing.wait()
        assert (await failing.record()).state is State.FAILED


async def test_wait_ends_with_the_jobs_cancellation_or_with_its_own_time(app: Archibald) -> None:
    job = await app.enqueue("submit-order", user_id="alice")
    for timeout in (0, 0.01):
        with pytest.raises(WaitTimeoutError, match=f"job {job.id} is queued after {timeout:g} s; it goes on"):
            await job.wait(timeout=timeout)
    for bad in (-1, float("nan")):
        with pytest.raises(ValueError, match="timeout is a number of seconds from 0"):
            await job.wait(timeout=bad)
    assert await app.cancel(job.id) == "cancelled"
    with pytest.raises(JobCancelledError, match="cancelled on request"):
        await job.wait(timeout=20)


async def test_waiting_for_an_absorbed_sync_follows_the_one_that_absorbed_it(app: Archibald, look: Look) -> None:
    """A sync that goes back for a retry absorbs the follow-up that was queued while it ran."""
    begun, go = asyncio.Event(), asyncio.Event()

    @app.operation("our-sync", job_class="sync", max_attempts=2)
    async def our_sync(ctx: JobContext, data: dict[str, Any]) -> str:
        if ctx.attempt == 1:
            begun.set()
            await go.wait()
            raise ValueError("again")
        return f"done by job {ctx.job_id}"

    async with working(app):
        first = await app.enqueue("our-sync", user_id="alice")
        await asyncio.wait_for(begun.wait(), 20)
        follow_up = await app.enqueue("our-sync", user_id="alice")
        assert follow_up.id != first.id
        go.set()
        assert await follow_up.wait(timeout=20) == f"done by job {first.id}"
    assert await look.job(follow_up.id, "state", "result") == ("cancelled", {"absorbed_by": first.id})


async def test_a_delayed_job_starts_at_its_time_and_not_before(app: Archibald, look: Look) -> None:
    stage = Stage(hold=False)
    stage.register(app, "submit-order", "edit-order")
    async with working(app):
        before = await look.value("SELECT clock_timestamp()")
        delayed = await app.enqueue("submit-order", user_id="alice", delay=0.6)
        after = await look.value("SELECT clock_timestamp()")
        assert await look.job(delayed.id, "wait_reason") == ("delay",)
        # a job that is due overtakes it, though it came later and has a higher number
        due = await app.enqueue("edit-order", user_id="alice")
        await due.wait(timeout=20)
        await delayed.wait(timeout=20)
    run_after, started_at = await look.job(delayed.id, "run_after", "started_at")
    assert before <= run_after - timedelta(seconds=0.6) <= after
    assert started_at >= run_after
    assert await look.job(delayed.id, "attempt", "requeue_count") == (1, 0)


async def test_the_job_of_an_app_that_was_closed_can_be_read_by_the_next_use(database: str) -> None:
    app = Archibald(database)
    async with app:
        job = await app.enqueue("submit-order", user_id="alice")
    async with app:
        assert (await job.record()).user_id == "alice"
