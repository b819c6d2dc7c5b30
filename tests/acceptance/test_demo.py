"""`archibald-pgq demo` as a person runs it: real processes, a real server of its own, the day eight times as fast."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import psycopg
import pytest
from archibald_pgq.examples.erp import day
from archibald_pgq.examples.erp.client import Erp

from tests.chromium import needs_chromium
from tests.servers import Server

DEMO = (sys.executable, "-m", "archibald_pgq", "demo")
UNREACHABLE = "postgresql://nobody@127.0.0.1:1/nothing"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


def environment(folder: Path) -> dict[str, str]:
    """A data folder of the test's own; the URLs name a database that is not there, so that using one would fail."""
    kept = {key: value for key, value in os.environ.items() if key != "WORKER_CONCURRENCY"}
    urls = {"DATABASE_URL": UNREACHABLE, "ARCHIBALD_DATABASE_URL": UNREACHABLE, "ERP_URL": "http://127.0.0.1:1"}
    return {**kept, **urls, "ARCHIBALD_DATA_DIR": str(folder / "usual"), "TMPDIR": str(folder)}


def passable() -> Iterator[Path]:
    """A folder with a short path (for Unix sockets) that the server's user may enter where the tests run as root."""
    with tempfile.TemporaryDirectory(prefix="archibald-demo-") as name:
        Path(name).chmod(0o711)
        yield Path(name)


folder = pytest.fixture(passable)
folder_of_all = pytest.fixture(passable, scope="module")


@pytest.fixture(scope="module")
def given_database(server: Server) -> Iterator[str]:
    yield server.create_database("demo", "template0")
    server.drop_database("demo")


@pytest.fixture(scope="module")
def played(folder_of_all: Path, given_database: str) -> subprocess.CompletedProcess[str]:
    """A day on a given database; on one of its own it is played by the tests that disturb it."""
    return subprocess.run(
        [*DEMO, "--speed", "8", "--json", "--database", given_database],
        env=environment(folder_of_all),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )


@pytest.fixture(scope="module")
def summary(played: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert played.returncode == 0, played.stderr
    answer: dict[str, Any] = json.loads(played.stdout)
    return answer


def test_every_job_of_the_day_ends_and_only_the_two_mistakes_fail(summary: dict[str, Any]) -> None:
    assert (summary["unfinished"], summary["problems"]) == (0, [])
    assert summary["entries"] == len(day.ENTRIES)
    assert sum(summary["jobs"].values()) == len(day.ENTRIES) - summary["merged"]
    assert sorted(line.split(":")[0] for line in summary["failures"]) == ["carla", "dario"]
    assert set(summary["jobs"]) <= {"completed", "failed", "cancelled"}


def test_ten_jobs_run_at_once(summary: dict[str, Any]) -> None:
    assert summary["erp"]["most_logins_at_once"] == 10
    # by the rows: a job whose outcome met a held row is running in the table for a moment longer than its handler runs
    assert summary["most_running"] >= 10


def test_the_erp_sees_each_login_do_one_thing_at_a_time(summary: dict[str, Any]) -> None:
    assert (summary["erp"]["simultaneous"], summary["erp"]["most_per_login"]) == (0, 1)
    assert summary["erp"]["operations"] >= summary["jobs"]["completed"]


def test_double_taps_become_one_job(summary: dict[str, Any]) -> None:
    keys = [(entry.user_id, entry.idempotency_key) for entry in day.ENTRIES if entry.idempotency_key]

    assert summary["merged"] >= len(keys) - len(set(keys))


def test_the_agent_whose_lock_another_program_took_is_requeued_and_goes_on(
    summary: dict[str, Any], played: subprocess.CompletedProcess[str]
) -> None:
    assert summary["most_requeued"] >= 3
    for count in (1, 2, 3):
        assert f"requeue_count {count}" in played.stderr
    assert f"another program lets go of {day.LOCKED_AGENT}'s lock" in played.stderr


def test_waits_are_told_by_class(summary: dict[str, Any]) -> None:
    assert set(summary["waits"]) == {"write", "read", "sync"}
    assert all(0 <= waits["p50"] <= waits["p95"] for waits in summary["waits"].values())


def test_without_a_terminal_it_tells_how_far_it_is_in_lines_and_where_the_logs_are(
    played: subprocess.CompletedProcess[str],
) -> None:
    assert "jobs finished" in played.stderr
    assert "\x1b" not in played.stderr
    (logs,) = [line.removeprefix("logs: ") for line in played.stderr.splitlines() if line.startswith("logs: ")]
    assert {path.name for path in Path(logs).iterdir()} == {"erp.log", "worker.log"}


@contextmanager
def playing(folder: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A demo whose day has begun: its first line of progress has been read."""
    with subprocess.Popen(
        [*DEMO, *arguments],
        env=environment(folder),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "jobs finished" in line:
                break
        yield process
        if process.poll() is None:
            process.kill()


@pytest.fixture
def begun(folder: Path) -> Iterator[subprocess.Popen[str]]:
    with playing(folder) as process:
        yield process


def child(demo: subprocess.Popen[str], module: str) -> psutil.Process:
    """The demo's process that runs a module, not the leash that holds it."""
    for process in psutil.Process(demo.pid).children(recursive=True):
        if process.cmdline()[1:3] == ["-m", module]:
            return process
    raise AssertionError(f"no process of the demo runs {module}")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_ends_its_processes_and_says_so(begun: subprocess.Popen[str], number: signal.Signals) -> None:
    children = psutil.Process(begun.pid).children(recursive=True)
    assert len(children) >= 2

    begun.send_signal(number)
    _, said = begun.communicate(timeout=60)

    assert begun.returncode == 130
    assert said == "interrupted; the demo's processes have ended\n"
    assert not psutil.wait_procs(children, timeout=30)[1]


def test_killed_it_leaves_no_process_behind(begun: subprocess.Popen[str]) -> None:
    children = psutil.Process(begun.pid).children(recursive=True)

    begun.kill()

    assert not psutil.wait_procs(children, timeout=30)[1]


@pytest.mark.parametrize(
    ("module", "name"), [("archibald_pgq", "the worker"), ("archibald_pgq.examples.erp.server", "the ERP")]
)
def test_a_process_that_dies_ends_the_demo_with_one_sentence(
    begun: subprocess.Popen[str], module: str, name: str
) -> None:
    child(begun, module).kill()
    _, said = begun.communicate(timeout=60)

    assert begun.returncode == 1
    assert said.startswith(f"{name} ended too early with exit code 137; ")
    assert "Traceback" not in said


async def simultaneous(http: aiohttp.ClientSession) -> int:
    async with http.get("/stats") as answer:
        return int((await answer.json())["simultaneous"])


@pytest.mark.long
async def test_a_login_that_did_two_things_at_once_makes_the_demo_fail(folder: Path) -> None:
    with playing(folder, "--speed", "8") as demo:
        (listening,) = child(demo, "archibald_pgq.examples.erp.server").net_connections("tcp4")[:1]
        url = f"http://127.0.0.1:{listening.laddr.port}"
        # Somebody else uses the locked agent's login, without asking the queue for its lock beforehand.
        async with Erp(url).operation(day.LOCKED_AGENT, "a cheat"), aiohttp.ClientSession(url) as http:
            while await simultaneous(http) == 0:  # noqa: ASYNC110  # another process counts
                await asyncio.sleep(0.05)
        told, _ = await asyncio.to_thread(demo.communicate, timeout=120)

    assert demo.returncode == 1
    assert "simultaneous requests or operations of one login" in told.splitlines()[-1]


def test_it_plays_on_a_given_database(summary: dict[str, Any], given_database: str) -> None:
    with psycopg.connect(given_database) as connection:
        found = connection.execute("SELECT state, count(*) FROM archibald.all_jobs GROUP BY state").fetchall()
    assert dict(found) == summary["jobs"]


@pytest.mark.parametrize("speed", ["0", "-1", "nan", "inf", "abc", "21"])
def test_a_speed_that_is_none_is_refused(speed: str, folder: Path) -> None:
    done = subprocess.run(
        [*DEMO, f"--speed={speed}"], env=environment(folder), capture_output=True, text=True, check=False, timeout=60
    )

    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_a_given_database_with_work_in_it_is_refused(database: str, folder: Path) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("SELECT archibald.enqueue('alice', 'submit-order', '{}', NULL, NULL)")

    done = subprocess.run(
        [*DEMO, "--database", database],
        env=environment(folder),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )

    assert done.returncode == 2
    assert "the given database has 1 jobs that are not finished" in done.stderr


@needs_chromium
@pytest.mark.long
@pytest.mark.timeout(600)
def test_the_day_through_real_browsers_ends_with_each_order_once_and_no_browser_left(folder: Path) -> None:
    ended = subprocess.run(
        [*DEMO, "--browser", "--json"],
        env=environment(folder),
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    summary = json.loads(ended.stdout)
    assert summary["problems"] == []
    assert summary["unfinished"] == 0
    assert (summary["erp"]["simultaneous"], summary["erp"]["orders_twice"]) == (0, 0)
    assert not [process for process in psutil.process_iter(["cmdline"]) if _is_a_browser_of(process, folder)]


def _is_a_browser_of(process: psutil.Process, folder: Path) -> bool:
    return any(str(folder) in argument for argument in process.info["cmdline"] or [])
