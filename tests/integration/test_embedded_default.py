"""Without a database of their own the commands use the embedded one, and it ends with the last of them."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.commands import PATIENCE, PROGRAM, command, environment


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """A folder whose path is short enough for sockets, and that the server's user may enter when root runs the tests."""
    folder = Path(tempfile.mkdtemp(prefix="archibald-cli-"))
    folder.chmod(0o755)
    yield folder / "data"
    shutil.rmtree(folder, ignore_errors=True)


def servers_of(folder: Path) -> list[str]:
    """The processes that work on a data folder."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        line = " ".join(process.info["cmdline"] or [])
        if str(folder) in line:
            found.append(line)
    return found


def stopped(folder: Path) -> bool:
    """True when no process works on a data folder; the last one takes its leave after the server has stopped."""
    deadline = time.monotonic() + PATIENCE
    while servers_of(folder):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def test_commands_share_the_embedded_database_and_it_ends_with_the_last(data_dir: Path, tmp_path: Path) -> None:
    env = {"ARCHIBALD_DATA_DIR": str(data_dir)}
    enqueued = command("enqueue", "delete-order", "alice", "--data", '{"order": "seven"}', env=env, cwd=tmp_path)
    assert (enqueued.code, enqueued.err) == (0, "")
    assert stopped(data_dir)  # it stopped, and what was committed is there at the next start
    job = enqueued.out.strip()
    daemon = subprocess.Popen(
        [*PROGRAM, "run"], cwd=tmp_path, env=environment(**env), stderr=subprocess.PIPE, text=True
    )
    try:
        assert daemon.stderr is not None
        log = ""
        while " is ready: 10 consumers, 15 operations" not in log:
            line = daemon.stderr.readline()
            assert line, log
            log += line
        assert "no app is named: running the example ERP's, archibald_pgq.examples.erp:app" in log
        assert servers_of(data_dir)
        query = f"select state from archibald.all_jobs where id = {job}"
        ended = (
            f"do $$ begin while exists (select from archibald.jobs where id = {job}) "
            "loop commit; perform pg_sleep(0.05); end loop; end $$"
        )
        looked = command("psql", "-qAt", "-c", ended, "-c", query, env=env)
        assert (looked.code, looked.err) == (0, "")
        # the example's handler refuses that order, which takes less time than deleting one
        assert looked.out == "failed\n"
        (listed,) = json.loads(command("jobs", "--json", env=env).out)
        assert (listed["id"], listed["payload"], listed["attempt"]) == (int(job), {"order": "seven"}, 1)
        assert "ErpError: \"order\" is 'seven'" in command("job", job, env=env).out
    finally:
        daemon.send_signal(signal.SIGTERM)
        _, rest = daemon.communicate(timeout=PATIENCE)
    assert daemon.returncode == 0, rest
    assert "Traceback" not in log + rest
    assert stopped(data_dir)


def test_a_data_folder_that_cannot_be_used_is_one_sentence(tmp_path: Path) -> None:
    occupied = tmp_path / "occupied"
    occupied.write_text("a file")
    for value in (str(occupied), f"/tmp/{'x' * 120}", "/tmp/a,b"):
        assert value in command("jobs", env={"ARCHIBALD_DATA_DIR": value}, cwd=tmp_path).refused()
    assert occupied.read_text() == "a file"
    assert "ARCHIBALD_PG_BIN" in command(
        "jobs", env={"ARCHIBALD_DATA_DIR": str(tmp_path / "d"), "ARCHIBALD_PG_BIN": str(tmp_path)}, cwd=tmp_path
    ).refused()  # fmt: skip
