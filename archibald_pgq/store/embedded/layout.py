"""The names inside a data folder, and what follows from its path.

Owns: where each file of the embedded server lies, the DSN, and which paths cannot work. Guarantees: a `Layout` that
exists has a path short enough for its Unix sockets and one that libpq can read. Must not: create or change anything.

    DATA_DIR/                 this user only; as root also passable (not readable) for the server's user
      joining.lock            flock: the one command that may start a supervisor now
      supervisor.lock         flock: held by the supervisor for as long as it lives; holds its process id as text
      supervisor.sock         the commands' connections
      server.log              what postgres, initdb and the supervisor say
      programs/               as root only: PostgreSQL's programs, where their own place is closed to the server's user
      pg/                     0700, the server's user (and root) only: that is the database's whole access control
        .s.PGSQL.5432         the database's Unix socket
        data/                 PostgreSQL's data folder; it appears complete or not at all
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from archibald_pgq.errors import ConfigError

ROLE = "archibald"
DATABASE = "archibald"
PORT = 5432  # part of the socket's file name, never a TCP port

_SOCKET_PATH_LIMIT = 103 if sys.platform == "darwin" else 107  # bytes of a Unix socket's path, without the closing zero


@dataclass(frozen=True, slots=True)
class Layout:
    """The paths of one data folder; `root` is absolute and without symbolic links."""

    root: Path

    @property
    def joining_lock(self) -> Path:
        """The lock of the command that starts a supervisor."""
        return self.root / "joining.lock"

    @property
    def supervisor_lock(self) -> Path:
        """The lock that a living supervisor holds."""
        return self.root / "supervisor.lock"

    @property
    def supervisor_socket(self) -> Path:
        """Where commands join."""
        return self.root / "supervisor.sock"

    @property
    def log(self) -> Path:
        """What postgres and the supervisor say."""
        return self.root / "server.log"

    @property
    def programs(self) -> Path:
        """Copies of PostgreSQL's programs."""
        return self.root / "programs"

    @property
    def private(self) -> Path:
        """The folder of the server's user."""
        return self.root / "pg"

    @property
    def database_socket(self) -> Path:
        """The database's Unix socket."""
        return self.private / f".s.PGSQL.{PORT}"

    @property
    def data(self) -> Path:
        """PostgreSQL's own data folder."""
        return self.private / "data"

    @property
    def dsn(self) -> str:
        """A libpq URL without a password: who may enter the folder `private` may use the database."""
        return f"postgresql://{ROLE}@/{DATABASE}?host={quote(os.fsencode(self.private), safe='')}&port={PORT}"

    def data_version(self) -> int | None:
        """The major version of PostgreSQL that made the data; None without data.

        Raises:
            OSError: the folder cannot be read.
        """
        try:
            return int((self.data / "PG_VERSION").read_text())
        except FileNotFoundError:
            return None


def layout_of(data_dir: Path) -> Layout:
    """Check the path of a data folder, which need not exist yet.

    A path that is too long is refused and not moved to some short place in the temp folder: two commands with different
    TMPDIR would miss each other there, and cleaners of the temp folder remove sockets.

    Raises:
        ConfigError: its Unix sockets would have too long a path, or libpq would misread it.
    """
    layout = Layout(data_dir.expanduser().resolve())
    length = max(len(os.fsencode(path)) for path in (layout.database_socket, layout.supervisor_socket))
    if length > _SOCKET_PATH_LIMIT:
        spare = _SOCKET_PATH_LIMIT - (length - len(os.fsencode(layout.root)))
        raise ConfigError(
            f"the data folder {str(layout.root)!r} has too long a path for the Unix sockets in it "
            f"({len(os.fsencode(layout.root))} bytes, at most {spare}): set ARCHIBALD_DATA_DIR to a shorter one"
        )
    if "," in str(layout.root):
        raise ConfigError(
            f"the data folder {str(layout.root)!r} has a comma in its path, which PostgreSQL's clients read as a list "
            "of hosts: set ARCHIBALD_DATA_DIR to a path without one"
        )
    return layout
