"""`archibald-pgq bench`: what it says, and that nothing of it is left, however it ends."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import psutil
import psycopg
import pytest
from psycopg import sql

from archibald_pgq.bench.scenes import SCENES
from archibald_pgq.bench.stage import Run, overlaps
from tests.commands import PROGRAM, command, environment, fingerprint
from tests.servers import Server


def made(server: Server) -> list[str]:
    """The databases of benches that there are."""
    with psycopg.connect(server.admin_dsn) as connection:
        rows = connection.execute("SELECT datname FROM pg_database WHERE datname ~ '^archibald_bench_' ORDER BY 1")
        return [row[0] for row in rows]


@contextmanager
def measuring(database: str) -> Iterator[subprocess.Popen[str]]:
    """A bench in the middle of a round, with its worker running."""
    with subprocess.Popen(
        [*PROGRAM, "bench", "pickup", "--quick"],
        env=environment(database),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("pickup: round 1"):
                break
        with psycopg.connect(urlsplit(database)._replace(path="/postgres").geturl(), autocommit=True) as connection:
            while not connection.execute(  # its worker is at work
                "SELECT 1 FROM pg_stat_activity WHERE application_name = 'archibald-pgq worker' AND datname ~ '^archibald_bench_'"
            ).fetchone():
                assert process.poll() is None
        yield process
        if process.poll() is None:
            process.kill()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_removes_its_databases_and_ends_its_worker(
    server: Server, empty_database: str, number: signal.Signals
) -> None:
    with measuring(empty_database) as bench:
        children = psutil.Process(bench.pid).children(recursive=True)
        assert len(made(server)) == 2

        bench.send_signal(number)
        _, said = bench.communicate(timeout=60)

    assert (bench.returncode, said) == (130, "interrupted; the databases of the bench are removed\n")
    assert made(server) == []
    assert not psutil.wait_procs(children, timeout=30)[1]


@pytest.mark.long
def test_what_a_bench_that_was_killed_has_left_is_removed_by_the_next_one_and_what_another_one_uses_is_not(
    server: Server, empty_database: str
) -> None:
    with measuring(empty_database) as killed:
        killed.send_signal(signal.SIGSTOP)  # it would come to its end meanwhile
        children = psutil.Process(killed.pid).children(recursive=True)
        before = made(server)
        assert command("bench", "enqueue", "--quick", database=empty_database).code == 0
        assert made(server) == before
        killed.kill()
    assert not psutil.wait_procs(children, timeout=30)[1]
    assert made(server) == before

    assert command("bench", "enqueue", "--quick", database=empty_database).code == 0
    assert made(server) == []


@pytest.mark.slow
def test_json_is_one_document_with_each_figure_and_the_limits_of_the_server_and_the_given_database_is_unchanged(
    server: Server, database: str
) -> None:
    before = fingerprint(database)

    ended = command("bench", "serial", "enqueue", "--quick", "--json", database=database)

    assert ended.code == 0, ended.err
    found = json.loads(ended.out)
    assert sorted(found["limits"]) == ["commits", "copied_rows", "round_trips"]
    assert [row["scene"] for row in found["rows"]] == ["enqueue", "enqueue", "serial"]
    assert all(row["median"] > 0 and row["ratio"] == pytest.approx(row["median"] / row["by"]) for row in found["rows"])
    assert found["problems"] == []
    assert "serial: round 1 of 1" in ended.err.splitlines()
    assert (made(server), fingerprint(database)) == ([], before)


@pytest.mark.long
def test_every_scene_comes_to_its_end_and_prints_its_rows(server: Server, empty_database: str) -> None:
    ended = command("bench", "--quick", database=empty_database)

    assert ended.code == 0, ended.err
    assert {line.split()[0] for line in ended.out.splitlines() if line} >= set(SCENES)
    assert made(server) == []


def test_a_role_that_may_not_create_databases_is_told_so_in_one_sentence(server: Server, empty_database: str) -> None:
    with psycopg.connect(server.admin_dsn, autocommit=True) as connection:
        connection.execute("CREATE ROLE bench_less LOGIN PASSWORD 'bench-less'")
        try:
            url = urlsplit(empty_database)
            place = (url.netloc.rpartition("@")[2], f"bench_less:bench-less@{url.netloc.rpartition('@')[2]}")
            said = command("bench", "--quick", database=url._replace(netloc=place[1]).geturl()).refused()
        finally:
            connection.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier("bench_less")))
    assert said.startswith("the role 'bench_less' may not create databases at ")
    assert said.endswith("give it CREATEDB, or use the embedded Postgres")
    assert made(server) == []


def test_what_it_cannot_do_is_told_with_exit_code_2() -> None:
    assert "there is no scene 'fast'; there are drain, enqueue," in command("bench", "fast").usage_error()
    assert command("bench", database="postgresql://nobody@127.0.0.1:1/nothing").refused().startswith("the database at ")


def test_two_jobs_of_a_user_at_once_are_a_problem_and_one_after_the_other_are_not() -> None:
    def problems(*runs: tuple[str, float, float]) -> list[str]:
        return overlaps([Run(user, 0, start, end) for user, start, end in runs])

    assert problems(("a", 0, 1), ("b", 0.5, 2), ("a", 1, 2)) == []
    assert problems(("a", 0, 1), ("b", 0.5, 2), ("a", 0.9, 2)) == ["two jobs of a ran at once"]
    assert problems(("a", 0, 9), ("a", 1, 2), ("a", 3, 4)) == ["two jobs of a ran at once"] * 2
