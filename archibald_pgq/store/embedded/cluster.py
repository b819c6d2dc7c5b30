"""One PostgreSQL server on one data folder.

Owns: making the data folder, starting postgres, telling whether it is ready, stopping it, and clearing what an earlier
one left. Guarantees: the data folder appears complete or not at all; a process is only signalled once it is known to
be postgres on this very folder; a stop is a fast shutdown, and harder only if that hangs. Must not: decide when to
start or stop, and be used without the supervisor's lock.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from archibald_pgq.errors import DatabaseError
from archibald_pgq.store.embedded.account import Account
from archibald_pgq.store.embedded.layout import DATABASE, PORT, ROLE, Layout

# Harder and harder: fast shutdown, immediate shutdown (recovery at the next start), the end; seconds for each.
_STOP_SIGNALS = ((signal.SIGINT, 60.0), (signal.SIGQUIT, 5.0), (signal.SIGKILL, 5.0))
_POLL = 0.005
_STATUS_LINE = 8  # of postmaster.pid
_TAIL_LINES = 6
_TAIL_BYTES = 1 << 16
_UNFINISHED = "unfinished-"


class Cluster:
    """The server of one data folder; `bin` are programs that the server's user can run."""

    def __init__(
        self, layout: Layout, bin_folder: Path, account: Account | None, settings: Mapping[str, str], log: int
    ) -> None:
        """Take the parts; `log` is the open log file, `settings` are further settings of postgres."""
        self._layout = layout
        self._bin = bin_folder
        self._account = account
        self._settings = settings
        self._log = log
        self._log_start = 0
        self._process: subprocess.Popen[bytes] | None = None

    def create(self) -> None:
        """Make PostgreSQL's data folder with the database in it, if there is none yet.

        Raises:
            DatabaseError: initdb failed; the sentence ends with its words.
        """
        if (self._layout.data / "PG_VERSION").exists():
            return
        # A name of its own: the initdb of a supervisor that was killed may still be writing into another one.
        unfinished = self._layout.private / f"{_UNFINISHED}{time.time_ns()}"
        self._run_to_end(
            "initdb",
            # Only the server's user can reach the socket, so the socket itself need not ask who it is.
            *("--username", ROLE, "--auth-local", "trust", "--auth-host", "reject"),
            *("--encoding", "UTF8", "--locale", "C", "--no-instructions", "--pgdata", os.fspath(unfinished)),
        )
        # Single-user mode: the database is there before the folder gets its name, so no later start need look for it.
        self._run_to_end(
            "postgres",
            *("--single", "-c", "exit_on_error=on", "-D", os.fspath(unfinished), "postgres"),
            words=f"CREATE DATABASE {DATABASE};\n",
        )
        unfinished.rename(self._layout.data)

    def clear_leftover(self) -> None:
        """Stop a postgres that outlived its supervisor, and remove the pid file of one that did not.

        Raises:
            DatabaseError: somebody else's server uses the data folder, or it cannot be stopped.
        """
        for unfinished in self._layout.private.glob(f"{_UNFINISHED}*"):
            shutil.rmtree(unfinished, ignore_errors=True)  # its initdb may still write; then the next start removes it
        pid_file = self._layout.data / "postmaster.pid"
        pid = _first_pid(pid_file)
        if pid is not None and _serves(pid, self._layout.data):
            self._say(f"stopping postgres {pid}, whose supervisor is gone")
            if not _stop(pid, lambda: not _serves(pid, self._layout.data)):
                raise DatabaseError(
                    f"the postgres {pid} on {str(self._layout.data)!r} cannot be stopped: end it by hand"
                )
        elif _accepts(self._layout.database_socket):
            raise DatabaseError(
                f"another server, perhaps of another container, uses the data folder {str(self._layout.root)!r}: stop "
                "it, or set ARCHIBALD_DATA_DIR to another folder"
            )
        elif pid is not None:
            # Its number may meanwhile belong to anybody; postgres itself would then take that for a server and refuse.
            pid_file.unlink(missing_ok=True)

    def launch(self) -> None:
        """Start postgres; whether it gets ready is for `ready` and `alive` to say.

        Raises:
            OSError: the program cannot be started.
        """
        self._mark_log()
        settings = {
            "listen_addresses": "",
            "unix_socket_directories": '"' + os.fspath(self._layout.private).replace('"', '""') + '"',
            "port": str(PORT),
            "logging_collector": "off",
            "log_destination": "stderr",
            "log_checkpoints": "off",  # the log of a server that runs for months should hold what matters
            **self._settings,
        }
        self._process = subprocess.Popen(  # a program and settings of ours, no shell
            [
                os.fspath(self._bin / "postgres"),
                *("-D", os.fspath(self._layout.data)),
                *(part for name, value in settings.items() for part in ("-c", f"{name}={value}")),
            ],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            cwd="/",
            umask=0o077,
            **(self._account.run_as() if self._account else {}),
        )

    def alive(self) -> bool:
        """Whether the postgres that was launched runs."""
        return self._process is not None and self._process.poll() is None

    def ready(self) -> bool:
        """Whether the postgres that was launched accepts connections."""
        try:
            lines = (self._layout.data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        assert self._process is not None  # noqa: S101  # asked only after launch
        return (
            len(lines) >= _STATUS_LINE
            and lines[0].strip() == str(self._process.pid)
            and lines[_STATUS_LINE - 1].strip() == "ready"
        )

    def stop(self) -> None:
        """Stop postgres if it runs; returns when it has ended."""
        process = self._process
        if process is None or process.poll() is not None:
            return
        if not _stop(process.pid, lambda: process.poll() is not None):
            self._say(f"postgres {process.pid} cannot be stopped")

    def last_words(self) -> str:
        """The end of what postgres said since it was last started, for a person; never empty."""
        start = max(self._log_start, os.fstat(self._log).st_size - _TAIL_BYTES)
        return self._tail(os.pread(self._log, _TAIL_BYTES, start).decode(errors="replace"))

    def _tail(self, text: str) -> str:
        lines = [re.sub(r"^[-\d]+ [:.\d]+ \S+ \[\d+\] ", "", line).strip() for line in text.splitlines()]
        tail = "; ".join([line for line in lines if line][-_TAIL_LINES:])
        free = shutil.disk_usage(self._layout.root).free // 1_000_000
        return tail or f"it said nothing, and {free} MB of its disk are free"

    def _mark_log(self) -> None:
        self._log_start = os.fstat(self._log).st_size

    def _say(self, words: str) -> None:
        with suppress(OSError):  # a full disk: the commands hear the reason, the log need not stop the server
            os.write(self._log, f"{words.rstrip()}\n".encode())

    def _run_to_end(self, program: str, *arguments: str, words: str = "") -> None:
        ran = subprocess.run(  # a program of ours with arguments of ours, no shell
            [os.fspath(self._bin / program), *arguments],
            input=words.encode(),
            stdout=subprocess.DEVNULL,  # chatter; what went wrong is on the other one
            stderr=subprocess.PIPE,  # not straight into the log, which a full disk would lose
            cwd="/",
            umask=0o077,
            check=False,
            **(self._account.run_as() if self._account else {}),
        )
        said = ran.stderr.decode(errors="replace")
        if ran.returncode != 0:
            raise DatabaseError(
                f"the embedded database cannot be made in {str(self._layout.root)!r} ({program} ended with "
                f"{ran.returncode}): {self._tail(said)}"
            )
        if said:
            self._say(said)


def _stop(pid: int, gone: Callable[[], bool]) -> bool:
    """Signal harder and harder until the process is gone; False if even that did not help."""
    for number, seconds in _STOP_SIGNALS:
        with suppress(ProcessLookupError):  # it went by itself
            os.kill(pid, number)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if gone():
                return True
            time.sleep(_POLL)
    return False


def _first_pid(pid_file: Path) -> int | None:
    """The process id in a postmaster.pid; None without one or with none in it (a disk that was full)."""
    try:
        first = pid_file.read_text().split("\n", 1)[0].strip()
    except FileNotFoundError:
        return None
    # Single-user mode writes it negative; 0 and 1 are nobody's postgres.
    return abs(int(first)) if re.fullmatch(r"-?[0-9]{1,9}", first) and abs(int(first)) > 1 else None


def _serves(pid: int, data: Path) -> bool:
    """Whether this process is a postgres on this data folder, which is what it has as its current folder."""
    if Path("/proc/self/cwd").exists():  # Linux
        try:
            return Path(f"/proc/{pid}/cwd").samefile(data)
        except OSError:  # no such process, or one of another user
            return False
    listed = subprocess.run(  # a fixed program, a number
        ["/bin/ps", "-ww", "-o", "args=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    return f"-D {data}" in listed.stdout


def _accepts(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(os.fspath(path))
        except (FileNotFoundError, ConnectionRefusedError):  # nobody serves there
            return False
    return True
