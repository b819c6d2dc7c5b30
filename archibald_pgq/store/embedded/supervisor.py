"""The process that a server belongs to: it runs postgres for as long as some command is joined.

Owns: the commands' connections, and when postgres starts, starts again and stops. Guarantees: one supervisor per data
folder (a lock that the kernel frees); a command that joins hears either that the server is ready or one sentence why
not; when the last connection ends, in whatever way, postgres is stopped before the lock is free. Must not: import
anything beyond the standard library and its own few modules, or outlive its commands.

    starting --ready--> up --postgres ended--> down --after a pause--> starting
    any of them --the last connection closed, or SIGTERM--> stop, end
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import selectors
import signal
import socket
import time
import traceback
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import FrameType

from archibald_pgq.errors import ArchibaldError
from archibald_pgq.store.embedded.account import account_for, make_private, reachable
from archibald_pgq.store.embedded.cluster import Cluster
from archibald_pgq.store.embedded.layout import Layout
from archibald_pgq.store.embedded.programs import Programs

_LOCK_POLL = 0.02  # seconds between two looks at the lock of a predecessor that is just ending
_READY_POLL = 0.01
_FIRST_PAUSE = 0.1  # seconds before postgres is started again; doubled each time
_LONGEST_PAUSE = 5.0
_TRIES = 5  # starts that fail in a row (1.5 s) until those who wait for the server hear of it
_HEALTHY = 30.0  # seconds of running after which an end counts as the first one again
_LOG_LIMIT = 10_000_000  # bytes; a longer log is put aside, once, at a start
_BACKLOG = 512


class Supervisor:
    """The loop over connections, signals and the server's process."""

    def __init__(self, layout: Layout, programs: Programs, first: socket.socket) -> None:
        """Take the first command's connection; nothing is started yet."""
        self._layout = layout
        self._greeting = {"bin": os.fspath(programs.bin), "major": programs.major}
        self._members: set[socket.socket] = {first}
        self._waiting: set[socket.socket] = {first}  # joined, and not answered yet
        self._leaving: list[socket.socket] = []  # left, and not closed yet
        self._listener: socket.socket | None = None
        self._selector = selectors.DefaultSelector()
        self._selector.register(first, selectors.EVENT_READ)
        self._ended = False
        self._up = False
        self._failures = 0
        self._started_at = 0.0
        self._start_at: float | None = None  # while postgres is down: when to start it
        self._wake, wake = socket.socketpair()
        self._wake.setblocking(False)
        wake.setblocking(False)
        self._wake_writer = wake  # kept alive: signal only holds its number
        signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_end)
        for number in (signal.SIGCHLD, signal.SIGHUP):  # handled, not ignored: postgres would inherit that
            signal.signal(number, lambda *_: None)
        self._selector.register(self._wake, selectors.EVENT_READ)

    def _on_end(self, number: int, frame: FrameType | None) -> None:
        self._ended = True

    def run(self, cluster: Cluster) -> None:
        """Serve until the last command is gone or a signal says so; postgres is stopped when this returns."""
        try:
            cluster.create()
            self._start(cluster)
            while self._members and not self._ended:
                for key, _ in self._selector.select(self._timeout()):
                    self._on_readable(key.fileobj)
                self._let_go()
                self._look_after(cluster)
        except ArchibaldError as error:
            _say(str(error))
            self.refuse(str(error))
        except OSError as error:
            _say(traceback.format_exc())
            self.refuse_for(error)
        finally:
            # First no new ones: who still gets through is told by the end of the connection, and starts a successor.
            if self._listener is not None:
                self._layout.supervisor_socket.unlink(missing_ok=True)
                self._listener.close()
            cluster.stop()

    def _timeout(self) -> float | None:
        if self._start_at is not None:
            return max(0.0, self._start_at - time.monotonic())
        return None if self._up else _READY_POLL

    def _on_readable(self, source: object) -> None:
        if source is self._listener and self._listener is not None:
            member, _ = self._listener.accept()
            self._members.add(member)
            self._waiting.add(member)
            self._selector.register(member, selectors.EVENT_READ)
            if self._up:
                self._answer({"ready": True, **self._greeting})
        elif source is self._wake:
            with suppress(BlockingIOError):  # several signals, one byte read earlier
                self._wake.recv(4096)
        elif isinstance(source, socket.socket):
            try:
                gone = not source.recv(4096)
            except OSError:  # reset: the command died with our greeting unread
                gone = True
            if gone:
                self._drop(source)

    def _look_after(self, cluster: Cluster) -> None:
        """Notice what became of postgres, and start it again when its pause is over."""
        now = time.monotonic()
        if self._start_at is not None:
            if now >= self._start_at:
                self._start(cluster)
        elif not cluster.alive():
            if self._up:
                _say(f"postgres ended by itself: {cluster.last_words()}")
            if self._up and now - self._started_at > _HEALTHY:
                self._failures = 0
            self._up = False
            self._failures += 1
            if self._failures >= _TRIES:
                self.refuse(
                    f"the embedded database in {str(self._layout.root)!r} does not start: {cluster.last_words()} "
                    f"(its log is {str(self._layout.log)!r})"
                )
            self._start_at = now + min(_LONGEST_PAUSE, _FIRST_PAUSE * 2.0 ** min(self._failures - 1, 10))
        elif not self._up and cluster.ready():
            self._up = True
            self._listen()
            self._answer({"ready": True, **self._greeting})

    def _start(self, cluster: Cluster) -> None:
        self._start_at = None
        self._started_at = time.monotonic()
        cluster.clear_leftover()
        cluster.launch()

    def _listen(self) -> None:
        if self._listener is not None:
            return
        self._layout.supervisor_socket.unlink(missing_ok=True)  # of one that was killed; the lock says that it is gone
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(os.fspath(self._layout.supervisor_socket))
        self._listener.listen(_BACKLOG)
        self._selector.register(self._listener, selectors.EVENT_READ)

    def _answer(self, message: Mapping[str, object]) -> None:
        for member in list(self._waiting):
            try:
                member.sendall(json.dumps(message).encode() + b"\n")
            except OSError:
                self._drop(member)
        self._waiting.clear()

    def refuse(self, sentence: str) -> None:
        """Tell those who wait for the server why there is none."""
        refused = list(self._waiting)
        self._answer({"error": sentence})
        for member in refused:
            self._drop(member)

    def refuse_for(self, error: OSError) -> None:
        """Refuse because of what the system said, a full disk for example."""
        self.refuse(
            f"the embedded database in {str(self._layout.root)!r} cannot be started ({error}): mend that, or set "
            "ARCHIBALD_DATA_DIR to another folder"
        )

    def _drop(self, member: socket.socket) -> None:
        if member in self._members:
            self._members.discard(member)
            self._waiting.discard(member)
            self._selector.unregister(member)
            self._leaving.append(member)

    def _let_go(self) -> None:
        """Close the connections of those who left, unless they were the last.

        Those stay open until this process ends, which tells the command that postgres has stopped.
        """
        if self._members:
            for member in self._leaving:
                member.close()
            self._leaving.clear()


def _say(words: str) -> None:
    with suppress(OSError):  # a full disk: the commands hear the reason, the log need not stop the server
        os.write(2, f"supervisor {os.getpid()}: {words.rstrip()}\n".encode())


def _take_lock(layout: Layout, first: socket.socket) -> int | None:
    """Wait until a predecessor has ended; None if the command that started us is gone before that."""
    lock = os.open(layout.supervisor_lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if select.select([first], [], [], _LOCK_POLL)[0]:
                return None
        else:
            os.ftruncate(lock, 0)
            os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
            return lock


def _open_log(layout: Layout) -> int:
    with suppress(FileNotFoundError):  # the first start
        if layout.log.stat().st_size > _LOG_LIMIT:
            layout.log.replace(layout.log.with_suffix(".log.1"))
    log = os.open(layout.log, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    return log


def main(arguments: list[str]) -> None:
    """Run a supervisor: DATA_DIR BIN MAJOR SETTINGS-AS-JSON; standard input is the first command's connection."""
    root, bin_folder, major, settings = arguments
    os.umask(0o077)
    layout, programs = Layout(Path(root)), Programs(Path(bin_folder), int(major))
    first = socket.socket(fileno=os.dup(0))  # a number that postgres does not inherit
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    supervisor = Supervisor(layout, programs, first)
    try:
        lock = _take_lock(layout, first)  # held until this process ends
        if lock is None:
            return
        log = _open_log(layout)
        account = account_for(layout)
        make_private(layout, account)
        cluster = Cluster(layout, reachable(programs, account, layout), account, json.loads(settings), log)
    except ArchibaldError as error:
        supervisor.refuse(str(error))
    except OSError as error:
        supervisor.refuse_for(error)
    else:
        supervisor.run(cluster)
