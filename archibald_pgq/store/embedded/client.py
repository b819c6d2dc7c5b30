"""How a command joins the embedded server.

Owns: the connection that says "this command needs the server", and starting a supervisor where none serves.
Guarantees: after `join` returns, the server runs and goes on until `close` or this process's end; a child process does
not hold it. Must not: stop a server itself, or stay quiet about a supervisor that was lost.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import weakref
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from archibald_pgq.errors import ArchibaldError
from archibald_pgq.store.embedded.joining import attach, connect, read_to_end
from archibald_pgq.store.embedded.layout import Layout, layout_of
from archibald_pgq.store.embedded.programs import Programs, find_programs

_log = logging.getLogger(__name__)

_CLOSE_SECONDS = 10.0  # `close` waits this long for a stop; the stop itself goes on
_FIRST_PAUSE = 0.2  # seconds before a lost supervisor is replaced once more; doubled each time
_LONGEST_PAUSE = 5.0


class EmbeddedServer:
    """A joined server; a context manager. `dsn`, `data_dir` and `programs` do not change while it is joined."""

    def __init__(self, layout: Layout, programs: Programs, settings: Mapping[str, str]) -> None:
        """Join; see `join`."""
        self._layout = layout
        self._settings = dict(settings)
        self._closing = threading.Event()
        self._guard = threading.Lock()  # over _connection
        self._connection: socket.socket | None
        self._connection, self.programs = attach(layout, programs, self._settings)
        self.dsn = layout.dsn
        self.data_dir = layout.root
        self._watcher = threading.Thread(target=self._watch, name="archibald-embedded", daemon=True)
        self._watcher.start()
        _joined.add(self)

    def __enter__(self) -> EmbeddedServer:
        """Be joined already."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave."""
        self.close()

    def close(self) -> None:
        """Leave the server; when this was the last command, returns after postgres has stopped (at most 10 s)."""
        self._closing.set()
        with self._guard:
            connection = self._connection
            if connection is None:
                return
            try:
                connection.shutdown(socket.SHUT_WR)
            except OSError as error:  # the supervisor is gone already
                _log.debug("leaving a supervisor that is gone: %s", error)
        self._watcher.join(_CLOSE_SECONDS)  # it reads on until the supervisor has let go of us
        with self._guard:
            connection.close()
            self._connection = None

    def _watch(self) -> None:
        """Read until the supervisor ends; unless we are leaving, replace it, so that the server stays."""
        connection = self._connection
        while connection is not None:
            read_to_end(connection)
            if self._closing.is_set():
                return
            connection.close()
            connection = self._rejoin()
            with self._guard:
                if self._closing.is_set():
                    if connection is not None:
                        connection.close()
                    return
                self._connection = connection

    def _rejoin(self) -> socket.socket | None:
        """Try until there is a supervisor again; None if we leave before that."""
        pause = _FIRST_PAUSE
        while not self._closing.is_set():
            try:
                connection, _ = attach(self._layout, self.programs, self._settings)
            except (ArchibaldError, OSError) as error:
                _log.warning("the embedded database's supervisor ended and cannot be replaced yet: %s", error)
                self._closing.wait(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
            else:
                _log.warning("the embedded database's supervisor ended; another one has taken over")
                return connection
        return None

    def _forget(self) -> None:
        """In a forked child: have no connection; the parent's is closed there."""
        self._connection = None
        self._guard = threading.Lock()  # another thread of the parent may have held it


_joined: weakref.WeakSet[EmbeddedServer] = weakref.WeakSet()


def _forget_all() -> None:
    for server in list(_joined):
        server._forget()


os.register_at_fork(after_in_child=_forget_all)


def join(data_dir: Path, programs: Programs | None = None, settings: Mapping[str, str] | None = None) -> EmbeddedServer:
    """Join the server of a data folder; it is made and started if need be.

    Args:
        data_dir: the folder; it need not exist.
        programs: PostgreSQL's programs, for the case that the server must be started; None: `find_programs()`.
        settings: further settings of postgres, for the same case; for tests.

    Raises:
        ConfigError: the folder cannot be used.
        DatabaseError: there are no programs, the data are of another version, or the server does not start.
    """
    layout = layout_of(data_dir)
    return EmbeddedServer(layout, programs or find_programs(), settings or {})


def running(data_dir: Path) -> bool:
    """Whether a living supervisor serves this data folder now."""
    connection = connect(layout_of(data_dir))
    if connection is None:
        return False
    connection.close()
    return True


def default_data_dir() -> Path:
    """Where a user's data belongs on this system; as root /var/lib/archibald-pgq."""
    if os.geteuid() == 0:
        return Path("/var/lib/archibald-pgq")
    import platformdirs  # the supervisor loads this module's siblings with the standard library only

    return Path(platformdirs.user_data_dir("archibald-pgq", appauthor=False))
