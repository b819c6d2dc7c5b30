"""Starting `archibald-pgq run` as a process of its own, without what a new Python takes to import the package.

Owns: one Python for a whole test run that has imported everything and forks the daemons. Guarantees: a daemon is this process's child, as
one that `subprocess` made: it can be waited for, and its exit code is known. Must not: run anything in this process.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from tests.commands import fork_server

_PR_SET_CHILD_SUBREAPER = 36


class Process(Protocol):
    """What tests do with a daemon; also a `subprocess.Popen` is one."""

    pid: int
    returncode: int | None

    def poll(self) -> int | None:
        """Return the exit code, -N after signal N, or None while it runs."""

    def wait(self) -> int:
        """Wait for the end; return the exit code."""

    def send_signal(self, sig: int) -> None:
        """Send a signal, if it has not ended."""

    def kill(self) -> None:
        """SIGKILL, if it has not ended."""


class _Forked:
    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self) -> int:
        while self.poll() is None:
            time.sleep(0.01)
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, sig: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, sig)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def start(arguments: Sequence[str], *, env: Mapping[str, str], cwd: Path, log: Path) -> Process:
    """Start `archibald-pgq` with these arguments; what it prints is added to `log`."""
    if sys.platform != "linux" or "LD_PRELOAD" in env:  # what is loaded first cannot be loaded later
        with log.open("ab") as output:
            return subprocess.Popen(
                [sys.executable, "-m", "archibald_pgq", *arguments],
                cwd=cwd,
                env=dict(env),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
    server = fork_server("daemons")
    assert server.stdin
    assert server.stdout
    one = {"arguments": list(arguments), "env": dict(env), "cwd": os.fspath(cwd), "log": os.fspath(log)}
    # An orphan becomes the child of the nearest process above that asks for it: this one, and only for this moment.
    _adopt_orphans(True)
    try:
        server.stdin.write(f"{json.dumps(one)}\n")
        server.stdin.flush()
        pid = int(server.stdout.readline())
    finally:
        _adopt_orphans(False)
    return _Forked(pid)


def _adopt_orphans(wanted: bool) -> None:
    if ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, int(wanted), 0, 0, 0):
        raise OSError("this process cannot adopt the daemons that it has forked")
