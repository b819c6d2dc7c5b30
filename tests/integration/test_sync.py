"""The synchronous side, `app.sync`: what it shares with the asynchronous one, callers' transactions, threads, forks, and its end."""

from __future__ import annotations

import asyncio
import inspect
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from archibald_pgq import (
    Archibald,
    ArchibaldError,
    ConfigError,
    InvalidJobError,
    JobCancelledError,
    JobContext,
    JobFailedError,
    JobNeedsReviewError,
    NewJob,
    SyncArchibald,
    SyncJob,
    UnknownJobError,
    UnknownKindError,
    WaitTimeoutError,
)
from tests.commands import Ended, environment
from tests.integration.test_embedded import until
from tests.integration.test_embedded_default import data_dir, stopped
from tests.support import Look, Stage, working

__all__ = ["data_dir"]  # a fixture

JOBS = "SELECT count(*) FROM archibald.all_jobs"
OURS = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'archibald-pgq client'"


# -- the same as the asynchronous side

NOT_IN_SYNC = {
    "close",
    "database_url",
    "kinds",
    "login",
    "operation",
    "session_valid",
    "settings",
    "sync",
    "use",
    "worker",
}
"""Of the app as a whole, not of one side; `close` is on both, and differs in which side it closes."""


def _public(of: type) -> set[str]:
    return {name for name in vars(of) if not name.startswith("_")}


def test_both_sides_have_the_same_methods_with_the_same_arguments() -> None:
    assert _public(SyncArchibald) - {"wait", "close"} == _public(Archibald) - NOT_IN_SYNC
    for name in _public(Archibald) - NOT_IN_SYNC:
        there, here = (inspect.signature(getattr(side, name)) for side in (Archibald, SyncArchibald))
        assert [(one.name, one.kind, one.default) for one in here.parameters.values()] == [
            (one.name, one.kind, one.default) for one in there.parameters.values()
        ], name


REFUSED: dict[str, Callable[[Any], Any]] = {
    "user_id": lambda side: side.enqueue("submit-order", user_id=""),
    "kind": lambda side: side.enqueue("no-such-kind", user_id="alice"),
    "data": lambda side: side.enqueue("submit-order", user_id="alice", data={"n": float("nan")}),
    "key": lambda side: side.enqueue("submit-order", user_id="alice", idempotency_key=""),
    "delay": lambda side: side.enqueue("submit-order", user_id="alice", delay=-1),
    "one of many": lambda side: side.enqueue_many([NewJob("submit-order", user_id=""), NewJob("x", user_id="a")]),
    "job": lambda side: side.job(999),
    "no id": lambda side: side.job("seven"),
    "jobs": lambda side: side.jobs(limit=0),
    "cancel": lambda side: side.cancel(999),
    "retry": lambda side: side.retry(999),
    "discard": lambda side: side.discard(999),
    "pause": lambda side: side.pause_agent("nobody"),
    "resume": lambda side: side.resume_agent("nobody"),
}


@pytest.mark.parametrize("call", REFUSED.values(), ids=REFUSED)
async def test_both_sides_refuse_the_same_with_the_same_words(app: Archibald, call: Callable[[Any], Any]) -> None:
    with pytest.raises(ArchibaldError) as there:
        await call(app)
    with pytest.raises(ArchibaldError) as here:
        call(app.sync)
    assert (type(here.value), str(here.value)) == (type(there.value), str(there.value))


def test_a_database_that_is_down_is_one_sentence() -> None:
    with (
        Archibald("postgresql://nobody@127.0.0.1:1/none").sync as queue,
        pytest.raises(ArchibaldError, match=r"^the database at 127\.0\.0\.1:1, .* cannot be used: "),
    ):
        queue.jobs()


def test_a_database_without_the_schema_is_one_sentence(empty_database: str) -> None:
    with Archibald(empty_database).sync as queue, pytest.raises(ArchibaldError, match="archibald-pgq migrate"):
        queue.enqueue("submit-order", user_id="alice")


async def test_what_one_side_does_the_other_one_sees(app: Archibald) -> None:
    queue = app.sync
    job = queue.enqueue("submit-order", user_id="alice", data={"n": 1}, idempotency_key="k")
    assert (await app.enqueue("submit-order", user_id="alice", idempotency_key="k")).id == job.id
    assert queue.job(job.id) == await app.job(job.id) == job.record()
    assert queue.jobs(user_id="alice") == await app.jobs(user_id="alice")
    assert [sorted(each.id for each in queue.jobs())] == [[job.id]]
    assert queue.stats() == await app.stats()
    assert (queue.agents(), queue.workers(), queue.review()) == (await app.agents(), await app.workers(), [])
    many = queue.enqueue_many([NewJob("submit-order", user_id=f"user-{n}", data={"n": n}) for n in range(3)])
    assert [each.record().payload for each in many] == [{"n": n} for n in range(3)]
    assert queue.cancel(job.id) == "cancelled"
    again = queue.retry(job.id)
    assert again.id != job.id
    assert (await app.job(again.id)).payload == {"n": 1}


# -- in the caller's transaction


@pytest.fixture
def engine(database: str) -> Iterator[Engine]:
    """A caller's own SQLAlchemy engine."""
    made = create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(database))
    yield made
    made.dispose()


@contextmanager
def callers_connection(sort: str, database: str, engine: Engine) -> Iterator[Any]:
    """A connection of each sort; in the middle of a transaction that has written a row of the caller's."""
    note = "INSERT INTO notes VALUES ('the caller wrote this')"
    options: dict[str, Any] = {
        "psycopg": {},
        "psycopg, dict rows": {"row_factory": dict_row},
        "psycopg, raw cursors": {"cursor_factory": psycopg.RawCursor},
        "psycopg, client cursors": {"cursor_factory": psycopg.ClientCursor},
        "psycopg, server prepares at once": {"prepare_threshold": 0},
        "psycopg, pipeline": {},
    }
    match sort:
        case "Connection":
            with engine.connect() as of_engine:
                of_engine.execute(text(note))
                yield of_engine
        case "Session":
            with Session(engine) as session:
                session.execute(text(note))
                yield session
        case "scoped_session":
            scoped = scoped_session(sessionmaker(engine))
            scoped.execute(text(note))
            yield scoped
            scoped.remove()
        case _:
            with psycopg.connect(database, **options[sort]) as connection:
                connection.execute(note)
                if sort == "psycopg, pipeline":
                    with connection.pipeline():
                        yield connection
                else:
                    yield connection


SORTS = [
    "psycopg",
    "psycopg, dict rows",
    "psycopg, raw cursors",
    "psycopg, client cursors",
    "psycopg, server prepares at once",
    "psycopg, pipeline",
    "Connection",
    "Session",
    "scoped_session",
]


@pytest.mark.parametrize("sort", SORTS)
async def test_a_job_is_part_of_the_callers_transaction(
    sort: str, app: Archibald, look: Look, database: str, engine: Engine
) -> None:
    await look.rows("CREATE TABLE notes (note text)")
    stage = Stage(hold=False)
    stage.register(app, "submit-order")

    def as_the_caller() -> None:
        with callers_connection(sort, database, engine) as connection, psycopg.connect(database) as elsewhere:
            elsewhere.autocommit = True

            def seen() -> Any:
                return elsewhere.execute(JOBS).fetchone()

            undone = app.sync.enqueue("submit-order", user_id="alice", data={"n": 1}, connection=connection)
            connection.rollback()
            with pytest.raises(UnknownJobError):
                undone.record()
            assert seen() == (0,)

            job = app.sync.enqueue(
                "submit-order", user_id="alice", data={"n": 2}, idempotency_key="k", connection=connection
            )
            twin, other = app.sync.enqueue_many(
                [
                    NewJob("submit-order", user_id="alice", idempotency_key="k"),
                    NewJob("submit-order", user_id="bob", data={"n": 3}),
                ],
                connection=connection,
            )
            assert twin.id == job.id
            assert seen() == (0,)  # nobody else sees them yet
            connection.commit()
            assert job.wait(timeout=20) == {"ran": {"n": 2}}
            assert other.wait(timeout=20) == {"ran": {"n": 3}}

    async with working(app):
        await asyncio.to_thread(as_the_caller)
    assert sorted(stage.started) == [("alice", {"n": 2}), ("bob", {"n": 3})]
    assert await look.value("SELECT count(*) FROM notes") == 0  # rolled back with the first job


@pytest.mark.parametrize("sort", [sort for sort in SORTS if sort != "psycopg, pipeline"])
async def test_a_refusal_inside_a_callers_transaction_says_the_same_and_leaves_nothing(
    sort: str, app: Archibald, look: Look, database: str, engine: Engine
) -> None:
    await look.rows("CREATE TABLE notes (note text)")
    with callers_connection(sort, database, engine) as connection:
        with pytest.raises(InvalidJobError):  # found before the database is asked: the transaction goes on
            app.sync.enqueue("submit-order", user_id="", connection=connection)
        app.sync.enqueue("submit-order", user_id="alice", connection=connection)
        with pytest.raises(UnknownKindError, match="unknown kind 'no-such-kind'"):
            app.sync.enqueue("no-such-kind", user_id="alice", connection=connection)
        connection.rollback()
    assert await look.value(JOBS) == 0
    assert await look.value("SELECT count(*) FROM notes") == 0


async def test_on_an_autocommit_connection_a_job_is_there_at_once_or_with_the_block(
    app: Archibald, look: Look, database: str
) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        app.sync.enqueue("submit-order", user_id="alice", connection=connection)
        assert await look.value(JOBS) == 1
        with connection.transaction():
            app.sync.enqueue("submit-order", user_id="alice", connection=connection)
            with connection.transaction(force_rollback=True):  # a savepoint
                app.sync.enqueue("submit-order", user_id="alice", connection=connection)
            assert await look.value(JOBS) == 1
        assert await look.value(JOBS) == 2


async def test_what_is_the_callers_to_handle_reaches_the_caller(app: Archibald, database: str) -> None:
    with psycopg.connect(database) as connection:
        with pytest.raises(psycopg.errors.DivisionByZero):
            connection.execute("SELECT 1/0")
        with pytest.raises(psycopg.errors.InFailedSqlTransaction):
            app.sync.enqueue("submit-order", user_id="alice", connection=connection)
        connection.rollback()


async def test_a_connection_of_another_sort_is_one_sentence(app: Archibald, look: Look, database: str) -> None:
    with psycopg.connect(database) as connection:
        for wrong, name in ((look.connection, "psycopg.AsyncConnection"), (connection.cursor(), "psycopg.Cursor")):
            with pytest.raises(ConfigError) as refused:
                app.sync.enqueue("submit-order", user_id="alice", connection=wrong)  # type: ignore[arg-type]
            assert str(refused.value) == (
                f"connection must be a psycopg Connection or SQLAlchemy Connection or Session, not {name}"
            )
        with pytest.raises(ConfigError, match=r"SQLAlchemy AsyncConnection or AsyncSession, not psycopg\.Connection$"):
            await app.enqueue("submit-order", user_id="alice", connection=connection)  # type: ignore[arg-type]
    assert await look.value(JOBS) == 0


async def test_the_dedup_window_of_the_settings_counts_on_every_connection(
    app: Archibald, database: str, look: Look, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ARCHIBALD_DEDUP_WINDOW", "600")
    app.sync.enqueue("submit-order", user_id="alice", idempotency_key="a")
    with psycopg.connect(database) as connection:
        app.sync.enqueue("submit-order", user_id="alice", idempotency_key="b", connection=connection)
    rows = await look.rows(
        "SELECT key, extract(epoch FROM expires_at - job_created_at)::int FROM archibald.idempotency_keys"
    )
    assert sorted(rows) == [("a", 600), ("b", 600)]


# -- threads, and an event loop


def test_threads_share_one_side_and_its_few_connections(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[int] = []
    connect = psycopg.connect

    def counted(*args: Any, **kwargs: Any) -> Any:
        opened.append(1)
        return connect(*args, **kwargs)

    monkeypatch.setattr(psycopg, "connect", counted)
    app = Archibald(database)
    together = threading.Barrier(20)

    def enqueue(number: int) -> int:
        if number < 20:
            together.wait(20)  # the first use, by all at once
        return app.sync.enqueue("submit-order", user_id=f"user-{number % 50}", data={"n": number}).id

    with app.sync, ThreadPoolExecutor(20) as pool:
        ids = list(pool.map(enqueue, range(500)))
        assert len(set(ids)) == 500
        assert sorted(job.payload["n"] for job in app.sync.jobs(limit=1000)) == list(range(500))
    assert len(opened) <= 5


async def test_in_the_thread_of_a_running_event_loop_it_just_blocks(app: Archibald) -> None:
    job = app.sync.enqueue("submit-order", user_id="alice")
    with pytest.raises(WaitTimeoutError):
        job.wait(timeout=0.05)
    assert (await app.job(job.id)).user_id == "alice"


# -- waiting


async def test_wait_gives_the_result_or_how_it_failed(app: Archibald, look: Look) -> None:
    begun = asyncio.Event()

    @app.operation("ours")
    async def ours(ctx: JobContext, data: dict[str, Any]) -> Any:
        if "hang" in data:
            begun.set()
            await asyncio.Event().wait()
        if "fail" in data:
            raise ValueError("it failed")
        return data["result"]

    queue = app.sync
    async with working(app):
        for result in ({"a": [1, 2.5, "é"]}, "text", None):
            job = queue.enqueue("ours", user_id="alice", data={"result": result})
            assert await asyncio.to_thread(job.wait, 20) == result
            assert await asyncio.to_thread(queue.wait, job.id, 20) == result
            assert await asyncio.to_thread(queue.wait, job) == result
        failing = queue.enqueue("ours", user_id="alice", data={"fail": True})
        with pytest.raises(JobFailedError, match=r"^ValueError: it failed$"):
            await asyncio.to_thread(failing.wait)
        hanging = queue.enqueue("ours", user_id="alice", data={"hang": True})
        await asyncio.wait_for(begun.wait(), 20)
        with pytest.raises(WaitTimeoutError, match=f"job {hanging.id} is running after 0.01 s; it goes on"):
            hanging.wait(timeout=0.01)
        assert queue.cancel(hanging.id) == "requested"
        with pytest.raises((JobCancelledError, JobNeedsReviewError)):
            await asyncio.to_thread(hanging.wait, 20)
    waiting = queue.enqueue("submit-order", user_id="bob")
    for bad in (-1, float("nan")):
        with pytest.raises(ValueError, match="timeout is a number of seconds from 0"):
            waiting.wait(timeout=bad)
    with pytest.raises(WaitTimeoutError, match=f"job {waiting.id} is queued after 0 s; it goes on"):
        waiting.wait(timeout=0)
    queue.cancel(waiting.id)
    with pytest.raises(JobCancelledError, match="cancelled on request"):
        waiting.wait()
    with pytest.raises(UnknownJobError):
        queue.wait(999)
    doubtful = queue.enqueue("submit-order", user_id="carol")
    await look.rows(
        "UPDATE archibald.jobs SET state = 'needs_review', last_error = 'who knows' WHERE id = %s", doubtful.id
    )
    with pytest.raises(JobNeedsReviewError, match="who knows"):
        doubtful.wait(timeout=20)


async def test_waiting_for_an_absorbed_sync_follows_the_one_that_absorbed_it(app: Archibald, look: Look) -> None:
    begun, go = asyncio.Event(), asyncio.Event()

    @app.operation("our-sync", job_class="sync", max_attempts=2)
    async def our_sync(ctx: JobContext, data: dict[str, Any]) -> str:
        if ctx.attempt == 1:
            begun.set()
            await go.wait()
            raise ValueError("again")
        return f"done by job {ctx.job_id}"

    async with working(app):
        first = app.sync.enqueue("our-sync", user_id="alice")
        await asyncio.wait_for(begun.wait(), 20)
        follow_up = app.sync.enqueue("our-sync", user_id="alice")
        assert follow_up.id != first.id
        go.set()
        assert await asyncio.to_thread(follow_up.wait, 20) == f"done by job {first.id}"
    assert await look.job(follow_up.id, "state") == ("cancelled",)


# -- its end, and its next beginning


@pytest.mark.parametrize("order", ["sync first", "async first", "sync alone", "both at once"])
async def test_the_sides_of_an_app_may_be_closed_in_any_order_and_used_again(
    database: str, look: Look, order: str
) -> None:
    app = Archibald(database)
    for round_ in range(3):
        here = app.sync.enqueue("submit-order", user_id="alice", data={"round": round_})
        there = await app.enqueue("submit-order", user_id="bob")
        assert await look.value(OURS) == 2
        match order:
            case "sync first":
                app.sync.close()
                await look.until(f"{OURS.replace('count(*)', 'count(*) = 1')}")
                assert (await app.job(here.id)).user_id == "alice"  # the other side goes on
                await app.close()
            case "async first":
                await app.close()
                app.sync.close()
            case "sync alone":
                app.sync.close()
                app.sync.close()
                await app.close()
            case _:
                await asyncio.gather(app.close(), asyncio.to_thread(app.sync.close))
        await look.until(f"{OURS.replace('count(*)', 'count(*) = 0')}")
        assert (here.record().user_id, (await there.record()).user_id) == ("alice", "bob")  # opened again
        await app.close()
        await look.until(f"{OURS.replace('count(*)', 'count(*) = 0')}")


def script(code: str, tmp_path: Path, database: str | None = None, **variables: str) -> Ended:
    """Run a program of a user's to its end; whatever it does not close is an error."""
    program = tmp_path / "program.py"
    program.write_text(textwrap.dedent(code))
    ended = subprocess.run(
        [sys.executable, "-W", "error::ResourceWarning", program],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment(database, **variables),
        timeout=60,
        check=False,
    )
    return Ended(ended.returncode, ended.stdout, ended.stderr)


def test_a_script_needs_no_database_of_its_own_and_leaves_no_server_behind(data_dir: Path, tmp_path: Path) -> None:
    ended = script(
        """
        from archibald_pgq import Archibald

        app = Archibald()
        with app.sync as queue:
            job = queue.enqueue("submit-order", user_id="alice", data={"order": 7})
            print(job.record().payload, len(queue.jobs()))
        with app.sync as queue:
            print(job.record().payload, len(queue.jobs()))
        """,
        tmp_path,
        ARCHIBALD_DATA_DIR=str(data_dir),
    )
    assert ended == Ended(0, "{'order': 7} 1\n" * 2, "")
    assert stopped(data_dir)


def test_the_embedded_server_stays_until_both_sides_are_closed(data_dir: Path, tmp_path: Path) -> None:
    ended = script(
        """
        import asyncio
        from archibald_pgq import Archibald

        app = Archibald()

        async def main():
            job = await app.enqueue("submit-order", user_id="alice")
            assert app.sync.job(job.id).user_id == "alice"
            app.sync.close()
            assert (await app.job(job.id)).user_id == "alice"
            await app.close()
            assert app.sync.job(job.id).user_id == "alice"
            app.sync.close()
            print("done")

        asyncio.run(main())
        """,
        tmp_path,
        ARCHIBALD_DATA_DIR=str(data_dir),
    )
    assert ended == Ended(0, "done\n", "")
    assert stopped(data_dir)


def test_a_script_that_ends_without_closing_leaves_no_server_behind(data_dir: Path, tmp_path: Path) -> None:
    ended = script(
        """
        import os
        from archibald_pgq import Archibald

        print(Archibald().sync.enqueue("submit-order", user_id="alice").id, flush=True)
        os._exit(0)
        """,
        tmp_path,
        ARCHIBALD_DATA_DIR=str(data_dir),
    )
    assert (ended.code, ended.out) == (0, "1\n")
    followed = script(  # whoever comes next waits until the server of the first has stopped
        "from archibald_pgq import Archibald\nwith Archibald().sync as queue: print(len(queue.jobs()))",
        tmp_path,
        ARCHIBALD_DATA_DIR=str(data_dir),
    )
    assert followed == Ended(0, "1\n", "")
    assert stopped(data_dir)


# -- forks, as servers make them that load an app before they divide

FORKED = """
import asyncio, gc, os, sys, threading
from archibald_pgq import Archibald

app = Archibald()

def sockets():
    # The sockets that this process has, by the kernel's number of each.
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            found.add(os.readlink(f"/proc/self/fd/{name}"))
        except FileNotFoundError:
            pass
    return {each for each in found if each.startswith("socket:")}

def in_child(act):
    # Run `act` in a forked child that ends as Python ends, and fail with it.
    pid = os.fork()
    if pid == 0:
        act()
        raise SystemExit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
"""


def forking(code: str, tmp_path: Path, database: str | None = None, **variables: str) -> Ended:
    """Run a program that forks; Python 3.12 warns of forks in a process with threads, which is what is tried here."""
    return script(
        FORKED + textwrap.dedent(code), tmp_path, database, PYTHONWARNINGS="ignore::DeprecationWarning", **variables
    )


def test_an_app_that_is_first_used_after_a_fork_works_in_every_child(database: str, tmp_path: Path) -> None:
    ended = forking(
        """
        def work():
            with app.sync as queue:
                for n in range(10):
                    queue.enqueue("submit-order", user_id=f"user-{n}")

        for _ in range(3):
            in_child(work)
        work()
        with app.sync as queue:
            print(len(queue.jobs(limit=100)))
        """,
        tmp_path,
        database,
    )
    assert ended == Ended(0, "40\n", "")


def test_a_child_of_a_process_that_used_the_app_shares_no_socket_with_it(database: str, tmp_path: Path) -> None:
    """And the parent's connections, on both sides, are the same after the child's end as before."""
    ended = forking(
        """
        runner = asyncio.Runner()  # not closed by a child: it would reach into its parent's event loop

        async def pause():
            pass

        runner.run(pause())
        of_the_loop = sockets()
        runner.run(app.enqueue("submit-order", user_id="alice"))
        app.sync.enqueue("submit-order", user_id="alice")
        (checked_out,) = app.sync._open()._pool._idle
        before = checked_out.execute("SELECT pg_backend_pid()").fetchone()[0]
        theirs = sockets()
        assert len(theirs - of_the_loop) == 2

        def work():
            assert not (sockets() & theirs) - of_the_loop
            with app.sync as queue:
                queue.enqueue("submit-order", user_id="bob")
                mine = queue._open()._pool._idle[0]
                assert mine.execute("SELECT pg_backend_pid()").fetchone()[0] != before
            asyncio.run(app.enqueue("submit-order", user_id="bob"))
            gc.collect()
            os._exit(0)

        for _ in range(3):
            in_child(work)
        assert checked_out.execute("SELECT pg_backend_pid()").fetchone()[0] == before
        runner.run(app.enqueue("submit-order", user_id="alice"))
        app.sync.enqueue("submit-order", user_id="alice")
        assert sockets() == theirs  # nothing had to be opened anew
        print(len(app.sync.jobs()))
        runner.run(app.close())
        runner.close()
        """,
        tmp_path,
        database,
    )
    assert ended == Ended(0, "10\n", "")


def test_a_fork_while_other_threads_enqueue_stops_nobody(database: str, tmp_path: Path) -> None:
    """Half of them connect for each: OpenSSL's locks were what a child waited for."""
    ended = forking(
        """
        stop = threading.Event()

        def enqueue():
            while not stop.is_set():
                app.sync.enqueue("submit-order", user_id="alice")

        def connect():
            own = Archibald()
            while not stop.is_set():
                with own.sync as queue:
                    queue.enqueue("submit-order", user_id="alice")

        def work():
            with app.sync as queue:
                queue.enqueue("submit-order", user_id="bob")
            gc.collect()
            os._exit(0)  # the interpreter's own end takes its time

        threads = [threading.Thread(target=act) for act in (enqueue, connect) * 2]
        for thread in threads:
            thread.start()
        for _ in range(20):
            in_child(work)
        stop.set()
        for thread in threads:
            thread.join()
        with app.sync as queue:
            print(len(queue.jobs(user_id="bob")))
        """,
        tmp_path,
        database,
    )
    assert ended == Ended(0, "20\n", "")


@pytest.mark.parametrize(("leaves", "found"), [(True, "whole"), (False, "half made")])
def test_a_fork_waits_for_what_another_thread_is_opening_but_not_for_ever(
    leaves: bool, found: str, tmp_path: Path
) -> None:
    ended = forking(
        f"""
        import time
        from archibald_pgq.processes.forking import LONGEST, opening

        entered, never = threading.Event(), threading.Event()
        made = "half made"

        def make():
            global made
            with opening():
                entered.set()
                never.wait(LONGEST / 4 if {leaves} else None)
                made = "whole"

        threading.Thread(target=make, daemon=True).start()
        entered.wait()
        in_child(lambda: print(made, flush=True))
        os._exit(0)
        """,
        tmp_path,
    )
    assert ended == Ended(0, f"{found}\n", "")


def test_children_that_are_forked_while_the_embedded_server_is_being_joined_do_not_hold_it(
    data_dir: Path, tmp_path: Path
) -> None:
    """The parent is killed: it says goodbye to nobody, and the supervisor sees its end, and whoever comes next finds the lock free."""
    ended = forking(
        """
        import signal

        joining = threading.Thread(target=app.sync.enqueue, args=("submit-order",), kwargs={"user_id": "alice"})
        joining.start()
        while joining.is_alive():
            pid = os.fork()
            if pid == 0:
                os.close(1)
                os.close(2)
                signal.pause()
            print(pid, flush=True)
            joining.join(0.02)
        os.kill(os.getpid(), signal.SIGKILL)
        """,
        tmp_path,
        ARCHIBALD_DATA_DIR=str(data_dir),
    )
    children = [int(pid) for pid in ended.out.split()]
    try:
        assert (ended.code, ended.err) == (-signal.SIGKILL, "")
        assert len(children) > 5
        until(lambda: stopped(data_dir), "the server stops")
        followed = script(
            "from archibald_pgq import Archibald\nwith Archibald().sync as queue: print(len(queue.jobs()))",
            tmp_path,
            ARCHIBALD_DATA_DIR=str(data_dir),
        )
        assert followed == Ended(0, "1\n", "")
        assert all(Path(f"/proc/{pid}").exists() for pid in children)
    finally:
        for pid in children:
            os.kill(pid, signal.SIGKILL)


def test_two_apps_of_one_process_start_and_migrate_the_embedded_server_at_the_same_time(
    data_dir: Path, tmp_path: Path
) -> None:
    ended = script(
        """
        import threading
        from archibald_pgq import Archibald

        apps = [Archibald() for _ in range(4)]
        threads = [threading.Thread(target=each.sync.enqueue, args=("submit-order",), kwargs={"user_id": "alice"}) for each in apps]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        print(len(apps[0].sync.jobs()))
        for each in apps:
            each.sync.close()
        """,
        tmp_path,
        ARCHIBALD_DATA_DIR=str(data_dir),
    )
    assert ended == Ended(0, "4\n", "")


def test_a_first_use_imports_nothing(tmp_path: Path) -> None:
    """A child that is forked while another thread imports a module waits for it for ever, if it needs that module too."""
    ended = forking(
        """
        from archibald_pgq import DatabaseError

        app = Archibald("postgresql://localhost:1/none")
        before = set(sys.modules)
        for use in (lambda: app.sync.enqueue("submit-order", user_id="alice"), lambda: asyncio.run(app.job(1))):
            try:
                use()
            except DatabaseError:
                print(set(sys.modules) - before)
        """,
        tmp_path,
    )
    assert ended == Ended(0, "set()\nset()\n", "")


def test_a_child_joins_the_embedded_server_by_itself(data_dir: Path, tmp_path: Path) -> None:
    """It must not stop with the parent while the child works, and not stay when both are gone."""
    ended = forking(
        """
        app.sync.enqueue("submit-order", user_id="alice")
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(write)
            app.sync.enqueue("submit-order", user_id="bob")
            os.read(read, 1)  # the parent has closed its side
            print(len(app.sync.jobs()), flush=True)
            app.sync.close()
            raise SystemExit(0)
        while len(app.sync.jobs()) < 2:
            pass
        app.sync.close()
        os.close(write)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        """,
        tmp_path,
        ARCHIBALD_DATA_DIR=str(data_dir),
    )
    assert ended == Ended(0, "2\n", "")
    assert stopped(data_dir)


def test_a_handle_says_which_job_it_is() -> None:
    assert repr(SyncJob(7, lambda _: pytest.fail("not asked"))) == "<SyncJob 7>"
