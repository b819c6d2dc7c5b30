"""What a probe gets to know of workers: one line and an exit code, from the database."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from archibald_pgq import Archibald
from tests.commands import PATIENCE, PROGRAM, Ended, command, environment
from tests.hand import Hand, hand
from tests.support import Look, Stage, working

HOST = socket.gethostname()
WELL = r"worker {} is well: beat \d\.\d s ago, {} consumers busy\n"


def probe(database: str, *options: str) -> tuple[int, str]:
    """The exit code and the line of the command."""
    ended = command("health", *options, database=database)
    assert ended.err == "", ended
    return ended.code, ended.out


@contextmanager
def worker_process(database: str, folder: Path, lease: str) -> Iterator[subprocess.Popen[bytes]]:
    """A worker as users start it."""
    (folder / "tasks.py").write_text("from archibald_pgq import Archibald\napp = Archibald()\n", encoding="utf-8")
    with subprocess.Popen(
        [*PROGRAM, "run", "tasks:app"],
        cwd=folder,
        env=environment(database, ARCHIBALD_LEASE=lease),
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


async def silence(look: Look, worker: Hand) -> None:
    await look.rows("UPDATE archibald.workers SET beat = now() - interval '1 min' WHERE id = %s", worker.worker_id)


async def test_a_worker_that_beats_is_well_and_says_how_busy_it_is(app: Archibald, look: Look, database: str) -> None:
    stage = Stage()
    stage.register(app, "submit-order")
    async with working(app):
        for user in ("alice", "bob"):
            await app.enqueue("submit-order", user_id=user)
        await stage.until_started(2)
        worker = await look.value("SELECT id FROM archibald.workers")
        code, line = probe(database)
        assert code == 0
        assert re.fullmatch(WELL.format(worker, "2 of 10"), line), line
        code, line = probe(database, "--worker", str(worker), "--json")
        told = json.loads(line)
        assert (code, told["well"]) == (0, True)
        (each,) = told["workers"]
        assert each.items() >= {"id": worker, "health": "alive", "lease_s": 6.0, "busy": 2, "concurrency": 10}.items()
        assert 0 <= each["beat_ago_s"] < 6
        await stage.let_go()
    assert probe(database) == (1, f"no worker is registered on host {HOST}\n")
    code, line = probe(database, "--worker", str(worker))
    assert code == 1
    assert re.fullmatch(rf"worker {worker} has stopped: beat \d\.\d s ago\n", line), line


SLOWLY = """
CREATE FUNCTION public.take_long() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(0.8); RETURN NEW; END $$;
CREATE TRIGGER slow BEFORE INSERT ON archibald.job_history FOR EACH ROW EXECUTE FUNCTION public.take_long()
"""


async def test_a_worker_that_is_told_to_stop_during_its_last_turn_says_goodbye(app: Archibald, look: Look) -> None:
    """It had heard of something new during that turn: the next one must not be begun, and cut off by its end."""
    stage = Stage(hold=False)
    stage.register(app, "submit-order")
    await look.rows(SLOWLY)
    async with working(app):
        await app.enqueue("submit-order", user_id="alice")
        await look.until("SELECT EXISTS (SELECT FROM pg_stat_activity WHERE wait_event = 'PgSleep')")
        await look.rows("NOTIFY archibald, 'wake'")
        await asyncio.sleep(0.4)  # its way to the worker; that turn lasts longer
    assert await look.value("SELECT stopped_at IS NOT NULL FROM archibald.workers")


@pytest.mark.slow
async def test_a_worker_that_was_killed_is_silent_after_its_lease_and_its_successor_is_well(
    look: Look, database: str, tmp_path: Path
) -> None:
    with worker_process(database, tmp_path, "2") as process:
        await look.until("SELECT count(*) = 1 FROM archibald.workers")
        worker = await look.value("SELECT id FROM archibald.workers")
        assert probe(database)[0] == 0
        process.send_signal(signal.SIGKILL)
        process.wait(PATIENCE)
        await look.until("SELECT beat < clock_timestamp() - interval '2 s' FROM archibald.workers")
        code, line = probe(database)
        assert code == 1
        assert re.fullmatch(rf"worker {worker} is silent: beat \d+\.\d s ago, its lease is 2 s\n", line), line
    with worker_process(database, tmp_path, "2"):
        await look.until("SELECT count(*) = 1 FROM archibald.workers WHERE fenced_at IS NOT NULL")
        code, line = probe(database)
        assert code == 0
        assert re.fullmatch(WELL.format(worker + 1, "0 of 10"), line), line


async def test_a_worker_whose_agents_were_given_to_others_is_not_well(look: Look, database: str) -> None:
    async with hand(database) as worker:
        await look.rows("UPDATE archibald.workers SET fenced_at = now()")
        code, line = probe(database)
        assert code == 1
        words = rf"worker {worker.worker_id} is lost: beat \d\.\d s ago, its agents were given to others\n"
        assert re.fullmatch(words, line), line


async def test_of_one_host_and_process_id_only_the_newest_counts(look: Look, database: str) -> None:
    async with hand(database) as before, hand(database) as after:  # both are this process: a container that restarted
        await silence(look, before)
        assert probe(database)[0] == 0
        await look.rows("UPDATE archibald.workers SET pid = 1 WHERE id = %s", before.worker_id)
        code, line = probe(database)
        assert (code, line.partition(":")[0]) == (1, f"worker {before.worker_id} is silent")
        assert probe(database, "--worker", str(after.worker_id))[0] == 0


async def test_workers_of_other_hosts_count_only_with_any(look: Look, database: str) -> None:
    async with hand(database):
        await look.rows("UPDATE archibald.workers SET host = 'elsewhere'")
        assert probe(database) == (1, f"no worker is registered on host {HOST}\n")
        assert probe(database, "--any")[0] == 0
        async with hand(database):
            code, line = probe(database, "--any")
            assert code == 0
            assert re.fullmatch(r"2 workers are well: beats at most \d\.\d s ago, 0 of 20 consumers busy\n", line), line


async def test_it_is_one_statement_on_one_connection(look: Look, database: str) -> None:
    async with hand(database):
        name = await look.value("SELECT current_database()")
        sessions = "SELECT sessions FROM pg_stat_database WHERE datname = current_database()"
        await look.until(
            "SELECT count(*) = 0 FROM pg_stat_activity WHERE datname = %s AND state = 'active' AND pid <> pg_backend_pid()",
            name,
        )
        before = await look.value(sessions)
        assert probe(database)[0] == 0
        await look.until(f"SELECT s.sessions > {before} FROM ({sessions}) AS s")
        assert await look.value(sessions) == before + 1


def test_bad_input_and_a_database_that_is_not_there_end_with_2(
    empty_database: str, database: str, tmp_path: Path
) -> None:
    assert "cannot be used" in command("health", database="postgresql://nobody@localhost:1/nowhere").refused()
    assert "archibald-pgq migrate" in command("health", database=empty_database).refused()
    assert "exclude each other" in command("health", "--any", "--worker", "3", database=database).refused()
    command("health", "--worker", "x", database=database).usage_error()
    # the embedded server is not started for it
    refused = command("health", env={"ARCHIBALD_DATA_DIR": str(tmp_path)})
    assert "is not running; start a worker with `archibald-pgq run`" in refused.refused()
    assert list(tmp_path.iterdir()) == []


def test_nobody_is_registered(database: str) -> None:
    assert command("health", "--any", database=database) == Ended(1, "no worker is registered in this database\n", "")
    assert command("health", "--worker", "9", database=database) == Ended(1, "no worker is registered as 9\n", "")
