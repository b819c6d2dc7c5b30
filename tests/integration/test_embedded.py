"""The embedded Postgres with real processes and real kills.

Every command here is a process of its own (`Command`), which joins and then waits; it is ended with SIGKILL or by the end of
its standard input. Nothing waits on time: only on a process's end, a line of output or a state, each with a deadline.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, LiteralString

import psutil
import psycopg
import pytest

from archibald_pgq.errors import ConfigError, DatabaseError
from archibald_pgq.store.embedded import (
    Programs,
    default_data_dir,
    find_programs,
    find_psql,
    join,
    running,
)

ROOT = os.geteuid() == 0
REPOSITORY = Path(__file__).parents[2]
DEBIAN_15 = Path("/usr/lib/postgresql/15/bin")
NAME = "dätä folder+100%: x"
SECONDS = 20.0
PATIENCE_OF_CLOSE = 10.0  # seconds after which `close` gives up waiting for the supervisor
KEEP: LiteralString = "drop table if exists kept; create table kept as select 7 as n"

COMMAND = """
import json, os, subprocess, sys
from pathlib import Path
from archibald_pgq.errors import ArchibaldError
from archibald_pgq.store.embedded import Programs, join
folder, bin, major, child = sys.argv[1:]
try:
    server = join(Path(folder), Programs(Path(bin), int(major)) if bin else None)
except ArchibaldError as error:
    print(json.dumps({"error": str(error)}), flush=True)
    sys.exit(1)
pid = None
if child == "exec":
    pid = subprocess.Popen(["sleep", "600"], close_fds=False).pid
elif child == "fork":
    pid = os.fork()
    if pid == 0:
        import signal
        signal.pause()
print(json.dumps({"dsn": server.dsn, "child": pid, "psql": str(server.programs.psql)}), flush=True)
sys.stdin.read()
server.close()
"""


class Command:
    """A process that joins the server of a folder."""

    def __init__(self, folder: Path, *, programs: Programs | None = None, child: str = "", **popen: Any) -> None:
        arguments = [
            os.fspath(folder),
            os.fspath(programs.bin) if programs else "",
            str(programs.major if programs else 0),
        ]
        python = popen.pop("python", sys.executable)
        popen.setdefault("env", {**os.environ, "PYTHONPATH": os.pathsep.join([os.fspath(REPOSITORY), *sys.path[1:]])})
        self.process = subprocess.Popen(
            [python, "-c", COMMAND, *arguments, child],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            **popen,
        )

    def answer(self) -> dict[str, Any]:
        """Wait until it has joined, and return what it says."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"the command ended with {self.process.wait(SECONDS)}"
        answer: dict[str, Any] = json.loads(line)
        return answer

    def joined(self) -> dict[str, Any]:
        answer = self.answer()
        assert "error" not in answer, answer
        return answer

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(SECONDS)

    def leave(self) -> None:
        """End it as a command ends by itself."""
        self.process.communicate(timeout=SECONDS)


def until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"not in {SECONDS:g} s: {what}"
        time.sleep(0.005)


def gone(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def postmaster(folder: Path) -> int:
    return int((folder / "pg" / "data" / "postmaster.pid").read_text().splitlines()[0])


def supervisor(folder: Path) -> int:
    return int((folder / "supervisor.lock").read_text())


def ask(dsn: str, statement: LiteralString) -> Any:
    with psycopg.connect(dsn, autocommit=True) as connection:
        row = cursor.fetchone() if (cursor := connection.execute(statement)).description else None
        return row[0] if row else None


def answers(dsn: str) -> bool:
    with contextlib.suppress(psycopg.OperationalError):  # not yet: the caller asks again
        return bool(ask(dsn, "select true"))
    return False


def new_place() -> Path:
    """A folder that everyone can pass, which pytest's own temporary folders are not: as root the server is another user."""
    path = Path(tempfile.mkdtemp(prefix="embedded-"))
    path.chmod(0o755)
    return path


def ended(folder: Path) -> None:
    """Wait until no supervisor is left on a folder; a server that one left behind does not outlive the test."""
    lock = folder / "supervisor.lock"
    if lock.exists() and lock.read_text():
        until(lambda: gone(supervisor(folder)), "the supervisor ends")
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # no server, as it should be
        if psutil.Process(postmaster(folder)).cwd() == os.fspath(folder / "pg" / "data"):
            os.kill(postmaster(folder), signal.SIGQUIT)


@pytest.fixture
def place() -> Iterator[Path]:
    path = new_place()
    yield path
    for lock in path.rglob("supervisor.lock"):
        ended(lock.parent)
    shutil.rmtree(path)


@pytest.fixture
def new_folder(place: Path) -> Path:
    """A data folder that does not exist yet."""
    return place / "data"


@pytest.fixture(scope="module")
def made_folder() -> Iterator[Path]:
    """A data folder for all tests that need not see it made; making one takes longer than most of them."""
    path = new_place()
    join(path / NAME).close()
    yield path / NAME
    shutil.rmtree(path)


@pytest.fixture
def folder(made_folder: Path) -> Iterator[Path]:
    """A data folder whose server does not run."""
    yield made_folder
    ended(made_folder)


@pytest.fixture
def commands() -> Iterator[Callable[..., Command]]:
    """Starts commands; what a test leaves running is killed."""
    started: list[Command] = []

    def start(folder: Path, **how: Any) -> Command:
        started.append(Command(folder, **how))
        return started[-1]

    yield start
    for command in started:
        command.kill()
        for stream in (command.process.stdin, command.process.stdout):
            if stream is not None:
                stream.close()


Commands = Callable[..., Command]


def test_commands_share_one_server(folder: Path, commands: Commands) -> None:
    first, second = commands(folder).joined(), commands(folder).joined()
    assert first["dsn"] == second["dsn"]
    assert ask(first["dsn"], "select pg_postmaster_start_time()") == ask(
        second["dsn"], "select pg_postmaster_start_time()"
    )


def test_first_starts_at_the_same_moment_make_one_server(new_folder: Path, commands: Commands) -> None:
    starting = [commands(new_folder) for _ in range(3)]
    times = {ask(command.joined()["dsn"], "select pg_postmaster_start_time()") for command in starting}
    assert len(times) == 1
    assert (new_folder / "server.log").read_text().count("starting PostgreSQL") == 1


def test_server_outlives_the_command_that_started_it(folder: Path, commands: Commands) -> None:
    first = commands(folder)
    first.joined()
    dsn = commands(folder).joined()["dsn"]
    pid = postmaster(folder)
    first.kill()
    ask(dsn, KEEP)
    assert postmaster(folder) == pid


def test_server_stops_when_last_command_is_killed(folder: Path, commands: Commands) -> None:
    first, second = commands(folder), commands(folder)
    first.joined()
    second.joined()
    pids = postmaster(folder), supervisor(folder)
    first.kill()
    assert running(folder)
    second.kill()
    until(lambda: all(map(gone, pids)), "postgres and its supervisor end")
    assert not running(folder)
    assert "database system is shut down" in (folder / "server.log").read_text()  # no crash: nothing to recover


def test_close_of_the_last_command_returns_after_the_stop(folder: Path) -> None:
    with join(folder):
        pid = postmaster(folder)
        assert running(folder)
    assert gone(pid)
    assert not running(folder)


def test_close_of_another_command_does_not_wait_or_stop(folder: Path) -> None:
    with join(folder) as first:
        second = join(folder)
        begun = time.monotonic()
        second.close()
        assert time.monotonic() - begun < PATIENCE_OF_CLOSE
        assert ask(first.dsn, "select 1") == 1


def test_interrupt_of_a_terminal_stops_only_the_command(folder: Path, commands: Commands) -> None:
    first = commands(folder, start_new_session=True, stderr=subprocess.DEVNULL)
    first.joined()
    dsn = commands(folder).joined()["dsn"]
    pid = postmaster(folder)
    os.killpg(first.process.pid, signal.SIGINT)  # what a terminal does on Ctrl-C: every process of the group
    first.process.wait(SECONDS)
    assert ask(dsn, "select 1") == 1
    assert postmaster(folder) == pid


@pytest.mark.parametrize("kind", ["exec", "fork"])
def test_child_of_a_command_does_not_hold_the_server(folder: Path, commands: Commands, kind: str) -> None:
    command = commands(folder, child=kind)
    child = command.joined()["child"]
    pid = postmaster(folder)
    command.kill()
    try:
        until(lambda: gone(pid), "postgres ends")
        assert not gone(child)
    finally:
        os.kill(child, signal.SIGKILL)


def test_commands_survive_the_kill_of_the_supervisor(folder: Path, commands: Commands) -> None:
    dsn = commands(folder).joined()["dsn"]
    ask(dsn, KEEP)
    killed = supervisor(folder)
    os.kill(killed, signal.SIGKILL)
    until(lambda: running(folder) and supervisor(folder) != killed, "the command brings another supervisor")
    commands(folder).leave()  # a later command's end must not take the server from the first one
    assert running(folder)
    assert ask(dsn, "select n from kept") == 7


def test_next_command_recovers_after_supervisor_and_commands_are_killed(folder: Path, commands: Commands) -> None:
    command = commands(folder)
    ask(command.joined()["dsn"], KEEP)
    orphan = postmaster(folder)
    command.process.send_signal(signal.SIGSTOP)  # so that it cannot bring another supervisor first
    os.kill(supervisor(folder), signal.SIGKILL)
    command.kill()
    assert not gone(orphan)
    with join(folder) as server:
        assert ask(server.dsn, "select n from kept") == 7
        assert gone(orphan)
        now = postmaster(folder)
    assert gone(now)


def test_server_comes_back_when_postgres_is_killed(folder: Path, commands: Commands) -> None:
    dsn = commands(folder).joined()["dsn"]
    ask(dsn, KEEP)
    killed = postmaster(folder)
    os.kill(killed, signal.SIGKILL)
    until(lambda: answers(dsn), "postgres answers again")
    assert ask(dsn, "select n from kept") == 7
    assert postmaster(folder) != killed
    with join(folder) as server:
        assert answers(server.dsn)


def test_pid_file_whose_number_is_another_process_now_is_no_obstacle(folder: Path) -> None:
    join(folder).close()
    owner = (folder / "pg").stat()
    who: dict[str, Any] = {"user": owner.st_uid, "group": owner.st_gid} if ROOT else {}
    stranger = subprocess.Popen(["sleep", "600"], **who)
    try:
        pid_file = folder / "pg" / "data" / "postmaster.pid"
        pid_file.write_text(f"{stranger.pid}\n{pid_file.parent}\n1\n5432\n{folder / 'pg'}\n\n  1 1\nready   \n")
        os.chown(pid_file, owner.st_uid, owner.st_gid)
        with join(folder) as server:
            assert answers(server.dsn)
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_joining_while_the_server_is_just_stopping_works(folder: Path) -> None:
    server = join(folder)
    for _ in range(10):
        leaving = threading.Thread(target=server.close)
        leaving.start()
        server = join(folder)
        assert answers(server.dsn)
        leaving.join()
    server.close()
    assert not running(folder)


def test_supervisor_that_ends_instead_of_answering_is_replaced(folder: Path) -> None:
    path = folder / "supervisor.sock"
    ending = socket.socket(socket.AF_UNIX)
    ending.bind(os.fspath(path))
    ending.listen()
    with ThreadPoolExecutor(1) as pool:
        joining = pool.submit(join, folder)
        connection, _ = ending.accept()
        path.unlink()
        ending.close()
        connection.close()
        with joining.result(SECONDS) as server:
            assert answers(server.dsn)


def test_first_start_that_was_killed_in_the_middle_is_made_up_for(new_folder: Path, commands: Commands) -> None:
    command = commands(new_folder)
    until(lambda: list(new_folder.glob("pg/unfinished-*")), "initdb begins")
    os.kill(supervisor(new_folder), signal.SIGKILL)
    command.kill()
    with join(new_folder) as server:
        assert answers(server.dsn)


@pytest.mark.parametrize("version", [18, 16, 15])
def test_versions(new_folder: Path, version: int) -> None:
    if version == 15 and not DEBIAN_15.exists():
        pytest.skip(f"no PostgreSQL 15 in {DEBIAN_15}")
    programs = find_programs(DEBIAN_15) if version == 15 else find_programs(version=version)
    assert programs.major == version
    with join(new_folder, programs) as server:
        assert server.programs == programs
        assert ask(server.dsn, "show server_version_num").startswith(str(version))
        assert ask(server.dsn, "show server_encoding") == "UTF8"
        assert ask(server.dsn, "show listen_addresses") == ""
        assert ask(server.dsn, "select datcollate from pg_database where datname = current_database()") == "C"
        shown = subprocess.run(
            [server.programs.psql, server.dsn, "-Atc", "select 6 * 7"], check=True, capture_output=True, text=True
        )
        assert shown.stdout == "42\n"


def test_data_of_another_version_are_refused_with_both_versions(folder: Path) -> None:
    sentence = r"was made by PostgreSQL 18, .* are 16: set ARCHIBALD_PG_BIN"
    with pytest.raises(DatabaseError, match=sentence):
        join(folder, find_programs(version=16))
    with join(folder), pytest.raises(DatabaseError, match=sentence):
        join(folder, find_programs(version=16))


def test_settings_reach_the_server(folder: Path) -> None:
    with join(folder, settings={"max_connections": "123"}) as server:
        assert ask(server.dsn, "show max_connections") == "123"


def test_server_that_cannot_start_says_why(folder: Path) -> None:
    with pytest.raises(DatabaseError, match=r"does not start: .*no_such_setting"):
        join(folder, settings={"no_such_setting": "1"})
    assert not running(folder)
    join(folder).close()


def test_failed_initdb_is_quoted_and_leaves_no_half_made_data(new_folder: Path, place: Path) -> None:
    broken = place / "bin"
    broken.mkdir()
    (broken / "initdb").write_text("#!/bin/sh\necho 'could not write: No space left on device' >&2\nexit 1\n")
    (broken / "postgres").write_text("#!/bin/sh\n")
    for program in (broken, *broken.iterdir()):
        program.chmod(0o755)
    with pytest.raises(DatabaseError, match=r"cannot be made in .*No space left on device"):
        join(new_folder, Programs(broken, 18))
    assert not running(new_folder)
    assert not (new_folder / "pg" / "data").exists()


def test_wrong_folder_of_programs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"ARCHIBALD_PG_BIN is {re.escape(repr(str(tmp_path)))}"):
        find_programs(tmp_path)
    newest = find_programs()
    with pytest.raises(ConfigError, match="does not report version 15"):
        find_programs(newest.bin, version=15)


def test_without_any_programs_the_sentence_says_how_to_get_some(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DatabaseError, match="install that package, or set ARCHIBALD_PG_BIN"):
        find_programs()
    with pytest.raises(DatabaseError, match="no psql"):
        find_psql()


def test_bundled_psql_is_found_and_else_the_one_on_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert find_psql() == find_programs().psql
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setenv("PATH", os.fspath(tmp_path))
    (tmp_path / "psql").touch(mode=0o755)
    assert find_psql() == tmp_path / "psql"


@pytest.mark.parametrize(("name", "sentence"), [("x" * 100, "too long a path"), ("a,b", "comma")])
def test_paths_that_cannot_work_are_refused(place: Path, name: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=f"{sentence}.*ARCHIBALD_DATA_DIR"):
        join(place / name)
    assert not (place / name).exists()


def test_default_folder_is_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if ROOT:
        assert default_data_dir() == Path("/var/lib/archibald-pgq")
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setenv("HOME", os.fspath(tmp_path))
    monkeypatch.setenv("XDG_DATA_HOME", os.fspath(tmp_path / "data"))
    assert default_data_dir().is_relative_to(tmp_path)
    assert default_data_dir().name == "archibald-pgq"


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks into /proc")
def test_supervisor_is_light_and_knows_no_secrets(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARCHIBALD_DATABASE_URL", "postgresql://u:secret@h/d")
    with join(folder):
        for pid in (supervisor(folder), postmaster(folder)):
            assert b"secret" not in Path(f"/proc/{pid}/environ").read_bytes()
        mapped = Path(f"/proc/{supervisor(folder)}/maps").read_text()
    assert not re.search("psycopg|sqlalchemy|site-packages", mapped)


def test_only_its_user_can_reach_the_database(folder: Path) -> None:
    with join(folder):
        assert (folder / "pg").stat().st_mode & 0o777 == 0o700
        for path in folder.iterdir():  # files too: who can open a lock can hold it
            assert path.stat().st_mode & 0o077 == 0, path
        assert folder.stat().st_mode & 0o066 == 0


@pytest.mark.skipif(not ROOT, reason="only root runs the server as somebody else")
def test_root_runs_the_server_as_an_unprivileged_user(folder: Path) -> None:
    with join(folder):
        assert psutil.Process(postmaster(folder)).uids().real == (folder / "pg").stat().st_uid != 0


@pytest.mark.skipif(not ROOT, reason="only root runs the server as somebody else")
def test_root_in_a_closed_folder_is_told_so_and_nothing_is_opened(place: Path) -> None:
    closed = place / "closed"
    closed.mkdir(mode=0o700)
    with pytest.raises(ConfigError, match=r"who cannot enter '.*closed'; set ARCHIBALD_DATA_DIR"):
        join(closed / "data")
    assert closed.stat().st_mode & 0o777 == 0o700
    assert not any(closed.iterdir())


@pytest.mark.skipif(not ROOT, reason="only root can be kept out of nothing")
def test_root_with_programs_in_a_closed_folder_runs_a_copy(new_folder: Path, place: Path) -> None:
    closed = place / "closed"
    closed.mkdir(mode=0o700)
    programs = wheel_under(closed)
    with join(new_folder, programs) as server:
        assert ask(server.dsn, "select length(current_setting('TimeZone')) > 0")
        assert Path(f"/proc/{postmaster(new_folder)}/exe").resolve().is_relative_to(new_folder / "programs")
    assert closed.stat().st_mode & 0o777 == 0o700
    original = (programs.bin / "postgres").stat()
    assert [copy.stat().st_ino for copy in new_folder.glob("programs/*/*/*/bin/postgres")] == [original.st_ino]


@pytest.mark.skipif(not ROOT, reason="needs root to become an ordinary user")
def test_ordinary_user_needs_nothing_of_root(place: Path, commands: Commands) -> None:
    user = pwd.getpwnam("nobody")
    home = place / "home"
    home.mkdir()
    programs = wheel_under(place)  # the real one may lie where only root can read
    for source in ("errors.py", "processes/forking.py", "store/embedded"):
        target = place / "archibald_pgq" / source
        if (REPOSITORY / "archibald_pgq" / source).is_dir():
            shutil.copytree(REPOSITORY / "archibald_pgq" / source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            target.parent.mkdir()
            shutil.copy(REPOSITORY / "archibald_pgq" / source, target)
    for path in (place, *place.rglob("*")):
        if path.is_dir() or path.is_relative_to(place / "archibald_pgq"):  # not the programs, which are links
            path.chmod(path.stat().st_mode | (0o555 if path.is_dir() else 0o444))
    os.chown(home, user.pw_uid, user.pw_gid)
    who = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    command = commands(
        home / "data",
        python=python_for(who),
        programs=programs,
        cwd=home,
        env={"PATH": os.environ["PATH"], "HOME": os.fspath(home), "PYTHONPATH": os.fspath(place)},
        **who,
    )
    answer = command.joined()
    assert ask(answer["dsn"], "select 1") == 1
    pid = postmaster(home / "data")
    assert psutil.Process(pid).uids().real == psutil.Process(supervisor(home / "data")).uids().real == user.pw_uid
    command.leave()
    assert gone(pid)
    with pytest.raises(ConfigError, match="it belongs to user number"):
        join(home / "data", programs)  # root stays out of a user's folder


def wheel_under(folder: Path) -> Programs:
    """The wheel's newest programs in another folder, with the libraries beside the package that they need."""
    programs = find_programs()
    package = programs.bin.parents[1]
    version = programs.bin.parent.name
    for source in (package / version / "bin", package / version / "lib", package / version / "share"):
        shutil.copytree(source, folder / package.name / version / source.name, copy_function=link_or_copy)
    libraries = package.with_name(f"{package.name}.libs")
    shutil.copytree(libraries, folder / libraries.name, copy_function=link_or_copy)
    return Programs(folder / package.name / version / "bin", programs.major)


def link_or_copy(file: str, to: str) -> None:
    """Links are fast; what is on another file system or closed to other users is copied and opened."""
    if Path(file).stat().st_mode & 0o004:
        with contextlib.suppress(OSError):  # then a copy
            os.link(file, to)
            return
    shutil.copy(file, to)
    Path(to).chmod(0o755)


def python_for(who: dict[str, Any]) -> str:
    """A Python that this user can run; the one of the tests may lie in root's home."""
    for python in (sys.executable, "/usr/bin/python3"):
        with contextlib.suppress(PermissionError, FileNotFoundError):  # then the next one
            check = "import sys; sys.exit(sys.version_info < (3, 11))"
            if subprocess.run([python, "-c", check], check=False, cwd="/", **who).returncode == 0:
                return python
    pytest.skip("no Python 3.11 that an ordinary user can run")
