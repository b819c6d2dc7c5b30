"""The way to a supervisor: connect to the one that serves, or start one.

Owns: the commands' half of the conversation (connect, greeting) and the lock of those who start. Guarantees: of
commands that start at the same moment one starts a supervisor and the others join it; a supervisor that is just ending
is waited for; after two minutes without a server there is an error, never a hang; a forked child holds neither a connection nor the
lock of its parent, also where the parent was just joining. Must not: hold a connection itself.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import socket
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from archibald_pgq.errors import DatabaseError
from archibald_pgq.processes.forking import opening
from archibald_pgq.store.embedded.account import prepare_folder
from archibald_pgq.store.embedded.layout import Layout
from archibald_pgq.store.embedded.programs import Programs

_log = logging.getLogger(__name__)

_JOIN_SECONDS = 120.0  # recovery after a crash of the machine may take long
_POLL = 0.02
# What the server may know of this process's surroundings: a long life and another user are no place for its secrets.
_PASSED_ON = ("PATH", "HOME", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")


T = TypeVar("T", socket.socket, BinaryIO)

_inherited: weakref.WeakSet[socket.socket | BinaryIO] = weakref.WeakSet()


def _not_inherited(make: Callable[[], T]) -> T:
    """Make something that a child closes: exec does so by itself, a plain fork would hold it."""
    with opening():
        made = make()
        _inherited.add(made)
        return made


def _close_inherited() -> None:
    for each in list(_inherited):
        each.close()


os.register_at_fork(after_in_child=_close_inherited)


def attach(layout: Layout, programs: Programs, settings: Mapping[str, str]) -> tuple[socket.socket, Programs]:
    """Join: a connection to a supervisor whose server is ready, and the programs that it runs.

    Raises:
        ConfigError: the data folder cannot be used.
        DatabaseError: there is no server, and the sentence says why.
    """
    try:
        connection, greeting = _attach(layout, programs, settings, time.monotonic() + _JOIN_SECONDS)
    except (OSError, subprocess.SubprocessError) as error:
        raise DatabaseError(
            f"the embedded database in {str(layout.root)!r} cannot be joined ({error}): mend that, or set "
            "ARCHIBALD_DATA_DIR to another folder"
        ) from error
    served = Programs(Path(greeting["bin"]), int(greeting["major"]))
    if served.major != programs.major:
        connection.close()
        raise _other_version(layout, served.major, programs)
    return connection, served


def _attach(
    layout: Layout, programs: Programs, settings: Mapping[str, str], deadline: float
) -> tuple[socket.socket, dict[str, Any]]:
    while time.monotonic() < deadline:
        connection = connect(layout)
        if connection is None:
            prepare_folder(layout)
            made_by = layout.data_version()
            if made_by not in (None, programs.major):
                raise _other_version(layout, made_by, programs)
            with _only_starter(layout, deadline):
                # Another one may have been faster while we waited for our turn.
                connection = connect(layout)
                if connection is None:
                    return _start(layout, programs, settings, deadline)
        greeting = _greeting(layout, connection, deadline)
        if greeting is not None:
            return connection, greeting
        # It was just ending; the next round finds nobody, and its successor waits for its lock.
        time.sleep(_POLL)
    raise _too_late(layout)


def connect(layout: Layout) -> socket.socket | None:
    """A connection to the supervisor; None if none listens (or it is another user's, which its folder then says)."""
    connection = _not_inherited(lambda: socket.socket(socket.AF_UNIX))
    try:
        connection.connect(os.fspath(layout.supervisor_socket))
    except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError, PermissionError):
        connection.close()
        return None
    return connection


def _start(
    layout: Layout, programs: Programs, settings: Mapping[str, str], deadline: float
) -> tuple[socket.socket, dict[str, Any]]:
    """Start a supervisor; this process is its first command, so that it ends should this process die meanwhile."""
    boot = Path(__file__).with_name("boot.py")
    arguments = [*map(os.fspath, (layout.root, programs.bin)), str(programs.major), json.dumps(dict(settings))]
    with opening():
        ours, theirs = socket.socketpair()
        _inherited.update((ours, theirs))
        with theirs, _private(layout.log) as log:
            # S603: our own file, run by our own interpreter. It returns at once: the supervisor detaches itself.
            subprocess.run(
                [sys.executable, "-I", "-S", "-X", "utf8", os.fspath(boot), *arguments],
                stdin=theirs.fileno(),
                stdout=log,
                stderr=log,
                cwd="/",
                env={name: os.environ[name] for name in _PASSED_ON if name in os.environ} | {"LC_ALL": "C"},
                start_new_session=True,  # Ctrl-C in this terminal is for this command
                check=True,
            )
    greeting = _greeting(layout, ours, deadline)
    if greeting is None:
        ours.close()
        raise DatabaseError(
            f"the supervisor of the embedded database in {str(layout.root)!r} ended before the server was ready: see "
            f"{str(layout.log)!r}"
        )
    return ours, greeting


def _greeting(layout: Layout, connection: socket.socket, deadline: float) -> dict[str, Any] | None:
    """What the supervisor says first, when its server is ready; None if it ended without a word.

    Raises:
        DatabaseError: it says why there is no server, or says nothing for too long.
    """
    received = b""
    try:
        while not received.endswith(b"\n"):
            connection.settimeout(max(0.001, deadline - time.monotonic()))
            part = connection.recv(4096)
            if not part:
                connection.close()
                return None
            received += part
    except ConnectionResetError:
        connection.close()
        return None
    except TimeoutError:
        connection.close()
        raise _too_late(layout) from None
    connection.settimeout(None)
    message: dict[str, Any] = json.loads(received)
    if "error" in message:
        connection.close()
        raise DatabaseError(message["error"])
    return message


def read_to_end(connection: socket.socket) -> None:
    """Wait until the supervisor lets go of the connection, or is gone."""
    try:
        while connection.recv(4096):
            continue
    except OSError as error:  # reset, or closed by `close`: an end as well
        _log.debug("the connection to the supervisor broke: %s", error)


def _private(path: Path) -> BinaryIO:
    """Open for appending a file that only this user can open: as root others pass the folder, and a lock needs no more."""
    return open(path, "ab", opener=lambda name, flags: os.open(name, flags, 0o600))  # Path.open takes no opener


@contextmanager
def _only_starter(layout: Layout, deadline: float) -> Iterator[None]:
    """Be the one command that may start a supervisor now."""
    with _not_inherited(lambda: _private(layout.joining_lock)) as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise _too_late(layout) from None
                time.sleep(_POLL)
            else:
                break
        yield


def _other_version(layout: Layout, made_by: int | None, programs: Programs) -> DatabaseError:
    return DatabaseError(
        f"the data folder {str(layout.root)!r} was made by PostgreSQL {made_by}, and the programs in "
        f"{str(programs.bin)!r} are {programs.major}: set ARCHIBALD_PG_BIN to the programs of PostgreSQL {made_by}, or "
        "ARCHIBALD_DATA_DIR to another folder"
    )


def _too_late(layout: Layout) -> DatabaseError:
    return DatabaseError(
        f"the embedded database in {str(layout.root)!r} was not ready after {_JOIN_SECONDS:g} s: see "
        f"{str(layout.log)!r}, then try again"
    )
