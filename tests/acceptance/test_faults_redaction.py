"""What must not be seen: a payload in a log, a password in a message or among a process's arguments."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from tests.acceptance.faults import Scene, scene, until
from tests.commands import call, environment, together

MARK = "Marker4711"
SECRET = "Geheim77"


@pytest.fixture
async def at(database: str) -> AsyncIterator[Scene]:
    async with scene(database) as made:
        yield made


def arguments_of(process: psutil.Process) -> str:
    """The command lines of a process and all its children, as /proc shows them to everybody."""
    return "\n".join(
        Path(f"/proc/{one.pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
        for one in [process, *process.children(recursive=True)]
    )


def secret_of(database: str) -> str:
    """The password that must not be seen: the server's own where it asks for one, as in a container, else any."""
    return str(conninfo_to_dict(database).get("password") or SECRET)


async def test_no_payload_and_no_password_is_in_a_workers_log_or_arguments(at: Scene) -> None:
    """At DEBUG, of all loggers, with handlers that fail in every way and an outcome that the database refuses."""
    await at.look.rows(
        "ALTER TABLE archibald.job_history ADD CONSTRAINT poison CHECK (state <> 'completed' OR NOT payload ? 'poison')"
    )
    secret = secret_of(at.database)
    worker = await at.start(
        "one",
        of="tests.acceptance.secret_app:app",
        database=make_conninfo(at.database, password=secret),
        PYTHONASYNCIODEBUG="1",
    )
    assert secret not in arguments_of(psutil.Process(worker.pid))
    ways = ["raise", "unprintable", "exit", "group", "result", "deep", "nested"]
    jobs = [("fails", {"how": how, "mark": MARK}) for how in ways]
    jobs += [
        ("times-out", {"how": "forever", "mark": MARK}),
        ("fails", {"how": "return", "poison": MARK, "mark": MARK}),
    ]
    jobs += [("no-handler", {"mark": MARK})]
    await at.look.rows(
        "INSERT INTO archibald.operations (kind, class, priority, timeout_s, max_attempts) VALUES ('no-handler', 'read', 1, 9, 1)"
    )
    for n, (kind, data) in enumerate(jobs):
        await at.look.rows(
            "SELECT archibald.enqueue(%s, %s, %s, %s)", f"agent {n}", kind, json.dumps(data), f"{MARK}-{n}"
        )
    await worker.until_logged("is repeated one by one: new row for relation")
    await at.until_ended()
    await at.stop_all()
    log = worker.log.read_text()
    assert "DEBUG" in log
    assert "failed in attempt 2: UnprintableError" in log
    assert MARK not in log, [line for line in log.splitlines() if MARK in line]
    assert secret not in log
    states = await at.look.rows("SELECT state, count(*) FROM archibald.job_history GROUP BY state ORDER BY state")
    assert states == [("completed", 1), ("failed", len(jobs) - 1)]  # "result": done, but its result cannot be kept


async def test_psql_gets_no_password_as_an_argument(at: Scene) -> None:
    secret = secret_of(at.database)
    process = subprocess.Popen(  # noqa: ASYNC220  # it is not waited for
        [sys.executable, "-m", "archibald_pgq", "psql", "-c", "select pg_sleep(60)"],
        env=environment(make_conninfo(at.database, password=secret)),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        await at.look.until(
            "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE query = 'select pg_sleep(60)' AND datname = current_database())"
        )
        seen = arguments_of(psutil.Process(process.pid))
        assert "pg_sleep" in seen
        assert secret not in seen
        await at.look.rows("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query = 'select pg_sleep(60)'")
        await until(lambda: process.poll() is not None)
    finally:
        process.kill()
        process.wait()


WRONG = [
    "postgresql://ann:Geheim77@127.0.0.1:1/shop",
    "postgres://ann:Geheim77@127.0.0.1:1/shop",
    "postgresql+psycopg://ann:Geheim77@127.0.0.1:1/shop",
    "postgresql+asyncpg://ann:Geheim77@127.0.0.1:1/shop",
    "mysql://ann:Geheim77@127.0.0.1:1/shop",
    "postgresql://ann:Geheim77@127.0.0.1:1,127.0.0.1:2/shop",
    "postgresql://127.0.0.1:1/shop?user=ann&password=Geheim77",
    "postgresql://ann@127.0.0.1:1/shop?sslpassword=Geheim77&sslmode=require",
    "postgresql://ann:Geheim77@127.0.0.1:99999/shop",
    "postgresql://ann:Geheim77@127.0.0.1:port/shop",
    "postgresql://ann:Geheim77@127.0.0.1:1/shop?nonsense=1",
    "postgresql://ann:Geheim77@127.0.0.1:1/shop?sslmode=nonsense",
    "postgresql://ann:Geheim77@127.0.0.1:1/shop?connect_timeout=nonsense",
    "postgresql://ann:Geheim77%zz@127.0.0.1:1/shop",
    "postgresql://ann:Geheim77%00@127.0.0.1:1/shop",
    "postgresql://ann:p@Geheim77@127.0.0.1:1/shop",
    "postgresql://ann:p/Geheim77@127.0.0.1:1/shop",
    "postgresql://ann:p?Geheim77@127.0.0.1:1/shop",
    "postgresql://ann:p#Geheim77@127.0.0.1:1/shop",
    "postgresql://ann:p:Geheim77@127.0.0.1:1/shop",
    "postgresql://ann:[Geheim77@127.0.0.1:1/shop",
    "//ann:Geheim77@127.0.0.1:1/shop",
    "ann:Geheim77@127.0.0.1:1/shop",
    "host=127.0.0.1 port=1 user=ann password=Geheim77 dbname=shop",
    "host=127.0.0.1 port=1 user=ann password='Geheim77 dbname=shop",
    "host=127.0.0.1 port=1 user=ann password=p Geheim77 dbname=shop",
    "host=127.0.0.1 port=1 user=ann passwort=Geheim77 dbname=shop",
    "host=127.0.0.1 port=1 dbname=postgresql://ann:Geheim77@127.0.0.1:1/shop",
    "host=127.0.0.1 port=1 user=ann password=Geheim77 dbname=shop options='-c nonsense'",
    "host=/no/such/folder user=ann password=Geheim77",
    "service=nonsense password=Geheim77",
    "Geheim77",
]


@pytest.mark.slow
def test_no_message_about_a_wrong_dsn_repeats_its_password(tmp_path: Path) -> None:
    (tmp_path / "good.py").write_text("from archibald_pgq import Archibald\napp = Archibald()\n")
    cases = [(dsn, ["jobs"]) for dsn in WRONG]
    cases += [(dsn, ["psql", "-c", "select 1"]) for dsn in WRONG[::3]]
    cases += [(dsn, arguments) for dsn in WRONG[::12] for arguments in (["run", "good:app"], ["migrate"])]
    ended = together(call(*arguments, database=dsn, cwd=tmp_path, stdin="") for dsn, arguments in cases)
    for case, one in zip(cases, ended, strict=True):
        assert one.code != 0, case
        assert SECRET not in one.out + one.err, (case, one)
        if case[1][0] != "psql":
            one.refused()
