"""Whatever wrote the row, and however: each committed job runs once, and no rolled back one ever does."""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import IsolationLevel, errors

from archibald_pgq import Archibald
from tests import node
from tests.support import Look, Stage, working

LEFT = "SELECT count(*) = 0 FROM archibald.jobs"


def _ran(stage: Stage) -> Counter[Any]:
    """How often the job with each `n` was run."""
    return Counter(data["n"] for _, data in stage.started)


async def test_two_enqueues_in_one_millisecond_are_two_jobs(app: Archibald, look: Look) -> None:
    stage = Stage(hold=False)
    stage.register(app, "submit-order")
    same = "SELECT count(DISTINCT date_trunc('milliseconds', created_at)) < count(*) FROM archibald.jobs"
    rounds = 0
    while not rounds or not await look.value(same):
        rounds += 1
        await look.rows("SELECT archibald.enqueue('alice', 'submit-order', '{\"n\": 1}') FROM generate_series(1, 10)")
    ids = await look.rows("SELECT id FROM archibald.jobs")
    assert len(set(ids)) == 10 * rounds
    async with working(app):
        await look.until(LEFT)
    assert [stage.contexts[n].job_id for n in range(10 * rounds)] == sorted(
        job for (job,) in ids
    )  # in their order, too


@pytest.mark.slow
async def test_an_insert_of_ten_thousand_jobs_for_as_many_new_agents_runs_each_once(app: Archibald, look: Look) -> None:
    stage = Stage(hold=False)
    stage.register(app, "submit-order")
    async with working(app):
        await look.rows(
            "INSERT INTO archibald.jobs (user_id, kind, payload)"
            " SELECT 'agent ' || n, 'submit-order', jsonb_build_object('n', n) FROM generate_series(1, 10000) AS n"
        )
        async with asyncio.timeout(90):
            while not await look.value(LEFT):  # noqa: ASYNC110  # more than `until` has patience for
                await asyncio.sleep(0.2)
    assert _ran(stage) == Counter(range(1, 10001))
    assert stage.most_per_agent == 1
    assert await look.value("SELECT count(*) FROM archibald.agents") == 10000
    assert await look.rows("SELECT state, count(*) FROM archibald.all_jobs GROUP BY state") == [("completed", 10000)]


async def test_a_copy_of_two_thousand_jobs_runs_each_once(app: Archibald, look: Look, database: str) -> None:
    stage = Stage(hold=False)
    stage.register(app, "submit-order")

    async def copy(connection: psycopg.AsyncConnection[Any], start: int) -> None:
        async with (
            connection.cursor() as cursor,
            cursor.copy("COPY archibald.jobs (user_id, kind, payload) FROM STDIN") as rows,
        ):
            for n in range(start, start + 2000):
                await rows.write_row((f"agent {n % 700}", "submit-order", json.dumps({"n": n})))

    async with working(app), await psycopg.AsyncConnection.connect(database) as connection:
        await copy(connection, 2000)
        await connection.rollback()
        await copy(connection, 0)
        await connection.commit()
        await look.until("SELECT count(*) = 2000 FROM archibald.job_history")
    assert _ran(stage) == Counter(range(2000))
    assert stage.most_per_agent == 1


@pytest.mark.parametrize("level", [IsolationLevel.REPEATABLE_READ, IsolationLevel.SERIALIZABLE])
async def test_jobs_of_stricter_transactions_under_load_run_once_if_committed_and_never_if_not(
    app: Archibald, look: Look, database: str, level: IsolationLevel
) -> None:
    """Writers meet on a row of their own table, so that some of them fail to serialize: that is theirs, and they begin again."""
    await look.rows("CREATE TABLE counters (id int PRIMARY KEY, value int)")
    await look.rows("INSERT INTO counters SELECT n, 0 FROM generate_series(1, 3) AS n")
    stage = Stage(hold=False)
    stage.register(app, "submit-order")
    committed: set[str] = set()
    undone: set[str] = set()
    failures = 0

    async def write(writer: int) -> None:
        nonlocal failures
        chance = random.Random(writer)
        async with await psycopg.AsyncConnection.connect(database) as connection:
            await connection.set_isolation_level(level)
            for number in range(40):
                for attempt in range(1000):
                    n = f"{writer}-{number}-{attempt}"
                    try:
                        await connection.execute("SELECT value FROM counters WHERE id = %s", (chance.randint(1, 3),))
                        await app.enqueue(
                            "submit-order",
                            user_id=f"agent {chance.randint(1, 8)}",
                            data={"n": n},
                            idempotency_key=f"{writer}-{number}" if number % 2 else None,
                            connection=connection,
                        )
                        await connection.execute(
                            "UPDATE counters SET value = value + 1 WHERE id = %s", (chance.randint(1, 3),)
                        )
                        if number % 4 == 3:
                            undone.add(n)
                            await connection.rollback()
                        else:
                            await connection.commit()
                            committed.add(n)
                    except (errors.SerializationFailure, errors.DeadlockDetected):
                        failures += 1
                        undone.add(n)
                        await connection.rollback()
                    else:
                        break

    async with working(app):
        await asyncio.gather(*(write(writer) for writer in range(6)))
        await look.until(LEFT)
    assert failures > 0
    assert len(committed) == 6 * 30
    assert _ran(stage) == Counter(committed)
    assert not undone & set(_ran(stage))
    assert stage.most_per_agent == 1
    assert await look.value("SELECT sum(value) FROM counters") == len(committed)
    assert await look.rows("SELECT state, count(*) FROM archibald.all_jobs GROUP BY state") == [
        ("completed", len(committed))
    ]


async def test_jobs_of_another_languages_driver_run_once_if_committed_and_never_if_not(
    app: Archibald, look: Look, database: str, tmp_path: Path
) -> None:
    try:
        await asyncio.to_thread(node.install, tmp_path)
    except node.NoNodeError as error:
        pytest.skip(str(error))
    stage = Stage(hold=False)
    stage.register(app, "submit-order")
    jobs = [
        {
            "user_id": f"agent {n % 5}",
            "kind": "submit-order",
            "payload": {"n": n, "é": [1.5, None]},
            "rollback": n % 3 == 2,
        }
        for n in range(30)
    ]
    command, env = node.command(tmp_path, database)
    async with working(app):
        ended = await asyncio.to_thread(
            subprocess.run,
            command,
            input="".join(json.dumps(job) + "\n" for job in jobs),
            env=env,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert (ended.returncode, ended.stderr) == (0, "")
        await look.until("SELECT count(*) = 20 FROM archibald.job_history")
    assert sorted(data["n"] for _, data in stage.started) == [n for n in range(30) if n % 3 != 2]
    assert all(data["é"] == [1.5, None] for _, data in stage.started)
    assert len(ended.stdout.split()) == 30


async def test_a_lane_in_doubt_is_looked_at_soon_and_then_ever_less_often(
    app: Archibald, look: Look, database: str
) -> None:
    """An enqueue that is at its commit while its agent's last job ends is found by such a look, so the first comes after 10 ms."""
    stage = Stage(hold=False)
    stage.register(app, "submit-order")
    await look.rows("CREATE TABLE looks (doubts int, pause interval)")
    await look.rows(
        "CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql SET search_path = public AS $$ BEGIN "
        "INSERT INTO looks VALUES (NEW.doubts, NEW.doubt_at - clock_timestamp()); RETURN NEW; END $$"
    )
    await look.rows(
        "CREATE TRIGGER note AFTER UPDATE OF doubts ON archibald.agents FOR EACH ROW "
        "WHEN (NEW.doubt_at IS NOT NULL AND NEW.doubts > OLD.doubts) EXECUTE FUNCTION note()"
    )
    async with working(app), await psycopg.AsyncConnection.connect(database) as caller:
        await caller.execute(
            "SELECT pg_advisory_xact_lock_shared(1095910216, archibald.bucket(archibald.lock_key('alice')))"
        )
        await (await app.enqueue("submit-order", user_id="alice")).wait(timeout=20)
        await look.until("SELECT count(*) >= 4 FROM looks")
        await caller.rollback()
        await look.until("SELECT state = 'idle' AND doubt_at IS NULL FROM archibald.agents")
    late = await look.rows(
        "SELECT doubts, pause FROM looks WHERE pause > interval '10 ms' * power(2, least(doubts - 1, 7))"
    )
    assert late == []
