"""Payloads and ids that no sane caller has: refused in every way in, or kept to the last digit, and nothing half-written."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from archibald_pgq import Archibald, InvalidJobError, NewJob
from tests.acceptance.conftest import Measured
from tests.commands import CHECKOUT, call, command, environment, fingerprint, together
from tests.support import Look, Stage, working

MEGABYTE = 1_048_576
INSERT = "INSERT INTO archibald.jobs (user_id, kind, payload) VALUES ('alice', 'submit-order', %s)"
ENQUEUE = "SELECT archibald.enqueue('alice', 'submit-order', %s)"
MANY = (
    "SELECT archibald.enqueue_many('{bob,alice}', '{submit-order,submit-order}', ARRAY['{}', %s]::text[]::jsonb[], "
    "'{null,null}', '{null,null}')"
)


def nested(depth: int) -> str:
    """A value with so many objects and lists around it, as text: json.dumps would not go so deep."""
    return '{"a": ' + "[" * (depth - 1) + "1" + "]" * (depth - 1) + "}"


def of_size(size: int) -> str:
    """An object of so many bytes as the database writes it."""
    return json.dumps({"a": "x" * (size - len('{"a": ""}'))})


BAD: dict[str, Callable[[], str]] = {
    "1 MB and a byte": lambda: of_size(MEGABYTE + 1),
    "100 MB": lambda: of_size(100 * MEGABYTE),
    "NUL": lambda: '{"a": "\\u0000"}',
    "NUL in a key": lambda: '{"\\u0000": 1}',
    "NaN": lambda: '{"a": NaN}',
    "Infinity": lambda: '{"a": [-Infinity]}',
    "depth 201": lambda: nested(201),
    "depth 10,000": lambda: nested(10_000),
    "depth 1,000,000": lambda: nested(1_000_000),
    "lone surrogate": lambda: '{"a": "\\ud800"}',
    "lone surrogate in a key": lambda: '{"\\udc00": 1}',
    "10^6 keys": lambda: "{" + ", ".join(f'"{n}": 0' for n in range(1_000_000)) + "}",
    "a number that no server keeps": lambda: '{"a": 1e400000}',
    "a million digits": lambda: '{"a": ' + "9" * 1_000_000 + "}",
    "short text, long number": lambda: '{"a": [' + ", ".join(["1e130000"] * 10) + "]}",
    "an array": lambda: "[" + "1," * 100 + "1]",
    "a text": lambda: '"a"',
    "null": lambda: "null",
    "no JSON": lambda: "{'a': 1}",
    "nothing": lambda: "",
}

GOOD: dict[str, Callable[[], str]] = {
    "exactly 1 MB": lambda: of_size(MEGABYTE),
    "depth 200": lambda: nested(200),
    "100,000 values": lambda: json.dumps({"a": list(range(100_000))}),
    "60,000 keys": lambda: json.dumps({f"{n}": n for n in range(60_000)}),
    "a thousand digits": lambda: '{"a": ' + "9" * 1000 + "}",
    "beyond 2^53 and 2^63": lambda: json.dumps({"a": [2**53 + 1, -(2**63) - 1, 2**200]}),
    "every plane": lambda: json.dumps({"é\t\u2028\U0001f600\x7f": "\\u0000 \x01"}),
    "an empty key": lambda: '{"": {"": [""]}}',
}


@pytest.mark.slow
def test_a_bad_payload_is_refused_by_sql_with_nothing_written(database: str) -> None:
    """Also by COPY, and in the middle of a bulk: what was before it is not there either."""
    before = fingerprint(database)
    with psycopg.connect(database, autocommit=True) as connection:
        for name, make in BAD.items():
            text = make()
            for statement in (INSERT, ENQUEUE, MANY) if len(text) < 10 * MEGABYTE else (INSERT,):
                with pytest.raises(psycopg.Error) as caught:
                    connection.execute(statement, (text,))
                assert (caught.value.sqlstate or "")[:2] in {"AQ", "22", "23", "54"}, (name, caught.value)
            if len(text) < 2 * MEGABYTE:
                with (  # noqa: PT012  # which of the two rows is refused is the server's business
                    pytest.raises(psycopg.Error),
                    connection.cursor() as cursor,
                    cursor.copy("COPY archibald.jobs (user_id, kind, payload) FROM STDIN") as rows,
                ):
                    rows.write_row(("bob", "submit-order", "{}"))
                    rows.write_row(("alice", "submit-order", text))
        assert not connection.closed
    assert fingerprint(database) == before


@pytest.mark.slow
def test_a_bad_payload_is_refused_by_the_command_line_with_nothing_written(database: str) -> None:
    before = fingerprint(database)
    calls = [
        call("enqueue", "submit-order", "alice", "--data", "-", database=database, stdin=make())
        for name, make in BAD.items()
        if name != "100 MB"  # in the next test, with its memory
    ]
    for ended in together(calls):
        assert "payload" in ended.refused()
    assert fingerprint(database) == before


WITH_ITS_MEMORY = """
import atexit, pathlib, sys
from archibald_pgq.cli import main
atexit.register(lambda: print(pathlib.Path("/proc/self/status").read_text()))
main()
"""


@pytest.mark.slow
def test_the_command_line_reads_no_more_of_100_mb_than_it_needs(database: str, measured: Measured) -> None:
    before = fingerprint(database)
    started = time.monotonic()
    ended = subprocess.run(
        [sys.executable, "-c", WITH_ITS_MEMORY, "enqueue", "submit-order", "alice", "--data", "-"],
        cwd=CHECKOUT,
        env=environment(database),
        input=of_size(100 * MEGABYTE),
        capture_output=True,
        text=True,
        check=False,
    )
    measured("a payload of 100 MB is refused by the command line", time.monotonic() - started)
    assert ended.returncode == 2
    assert ended.stderr.startswith("archibald-pgq: the payload ")
    (peak,) = re.findall(r"VmHWM:\s+(\d+) kB", ended.stdout)
    assert int(peak) < 200 * 1024  # all of it as bytes and as text would be more
    assert fingerprint(database) == before


@pytest.mark.slow
async def test_a_bad_payload_is_refused_by_python_with_nothing_sent(database: str, measured: Measured) -> None:
    before = fingerprint(database)
    deep: dict[str, Any] = {}
    for _ in range(10_000):
        deep = {"a": deep}
    circle: dict[str, Any] = {}
    circle["a"] = circle
    bad: list[Any] = [
        {"a": "x" * MEGABYTE}, {"a": "x" * (100 * MEGABYTE)}, {"a": "\x00"}, {"\x00": 1}, {"a": float("nan")}, {"a": [float("-inf")]},
        deep, circle, {"a": "\ud800"}, {"\udc00": 1}, {f"{n}": 0 for n in range(1_000_000)}, {"a": 10**5000}, {1: 2}, {"a": {2, 3}},
        {"a": b"bytes"}, [1], "text", 7,
    ]  # fmt: skip
    started = time.monotonic()
    async with Archibald(database) as app:
        for data in bad:
            with pytest.raises(InvalidJobError):
                await app.enqueue("submit-order", user_id="alice", data=data)
            with pytest.raises(InvalidJobError):
                await app.enqueue_many(
                    [NewJob("submit-order", user_id="bob"), NewJob("submit-order", user_id="alice", data=data)]
                )
    measured("18 payloads that cannot be are refused by Python, twice", time.monotonic() - started)
    assert fingerprint(database) == before


@pytest.mark.slow
async def test_a_payload_that_is_allowed_reaches_the_handler_as_it_was_given(app: Archibald, look: Look) -> None:
    """Through Python, the command line and SQL; and comes back as the result, unless it is too large for one."""
    stage = Stage(hold=False)
    stage.register(app, "submit-order")
    wanted = {}
    for number, (name, make) in enumerate(GOOD.items()):
        text = make()
        wanted[name] = json.loads(text)
        (job,) = await look.rows(INSERT + " RETURNING id", text)
        await app.enqueue("submit-order", user_id=f"python {number}", data=wanted[name])
        ended = command(
            "enqueue", "submit-order", f"shell {number}", "--data", "-", stdin=text, database=app._source.dsn(app)
        )
        assert ended.code == 0, (name, ended.err)
        assert (await app.job(job[0])).payload == wanted[name], name
    async with working(app):
        await look.until("SELECT NOT EXISTS (SELECT FROM archibald.jobs)")
    got: dict[str, list[Any]] = {}
    for user, data in stage.started:
        got.setdefault(user.split()[0], []).append(data)
    assert got["alice"] == [*wanted.values()]  # in their order
    for way in ("python", "shell"):
        assert sorted(map(json.dumps, got[way])) == sorted(map(json.dumps, wanted.values())), way
    assert await look.rows("SELECT DISTINCT state FROM archibald.job_history") == [("completed",)]


@pytest.mark.parametrize("start", [2**31 - 3, 2**53 - 3, 2**62], ids=["2^31", "2^53", "2^62"])
async def test_ids_beyond_what_int4_and_json_numbers_hold_go_on(
    app: Archibald, look: Look, database: str, start: int
) -> None:
    """Of jobs, agents and workers, over the border: enqueued, run, requeued, preempted, cancelled, retried, explained, as JSON too."""
    for table in ("jobs", "agents", "workers"):
        await look.rows(f"ALTER TABLE archibald.{table} ALTER COLUMN id RESTART WITH {start}")
    await look.rows(
        "INSERT INTO archibald.agents (user_id, lock_key, epoch) VALUES ('alice', archibald.lock_key('alice'), %s)",
        start,
    )
    stage = Stage()
    stage.register(app, "submit-order", "sync-orders")
    async with working(app):
        sync = await app.enqueue("sync-orders", user_id="alice", idempotency_key="s")
        assert sync.id == start
        await stage.until_started(1)
        await stage.contexts[0].progress(50, "half")
        await stage.contexts[0].save({"page": 2})
        write = await app.enqueue("submit-order", user_id="alice", data={"id": start}, idempotency_key="w")
        assert (await app.enqueue("submit-order", user_id="alice", idempotency_key="w")).id == write.id
        assert await look.value("SELECT archibald.try_lock_agent('bob')")
        many = await app.enqueue_many([NewJob("submit-order", user_id=f"agent {n}") for n in range(5)])
        held = await app.enqueue("submit-order", user_id="bob")
        await look.until("SELECT requeue_count > 0 FROM archibald.jobs WHERE id = %s", held.id)
        await look.until("SELECT preempt_requested_at IS NOT NULL FROM archibald.jobs WHERE id = %s", sync.id)
        ended = together(
            call(*words, database=database)
            for words in (
                ["job", str(sync.id), "--json"], ["jobs", "--json"], ["agents", "--json"], ["workers", "--json"], ["stats"], ["review"],
                ["explain", str(held.id), "--json"], ["explain", str(write.id)], ["jobs"], ["agents"], ["workers"], ["job", str(write.id)],
                ["cancel", str(held.id)],
            )
        )  # fmt: skip
        assert [(one.code, one.err) for one in ended] == [(0, "")] * len(ended)
        assert json.loads(ended[0].out)["id"] == start
        assert {job["id"] for job in json.loads(ended[1].out)} >= {sync.id, write.id, held.id}
        assert json.loads(ended[3].out)[0]["id"] == start
        assert str(write.id) in ended[11].out
        await look.rows("SELECT archibald.unlock_agent('bob')")
        again = command("retry", str(held.id), database=database)
        assert int(again.out) > held.id
        await stage.let_go()
        await look.until("SELECT NOT EXISTS (SELECT FROM archibald.jobs)")
    for job in (sync, write, *many):
        assert (await app.job(job.id)).state == "completed"
    assert (await app.job(int(again.out))).retried_from == held.id
    finished = command("explain", str(write.id), database=database)
    assert finished.code == 0
    assert await look.value("SELECT min(epoch) > %s FROM archibald.job_history WHERE user_id = 'alice'", start)
    assert await look.value("SELECT max(id) > %s FROM archibald.job_history", start + 3)
