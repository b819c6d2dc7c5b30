"""Which database: the one that was given, else the embedded one.

Guarantees: whoever opens the embedded database finds it migrated; a given one is never changed by opening it.
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

import psycopg

from archibald_pgq.config import Settings
from archibald_pgq.errors import DatabaseError
from archibald_pgq.store import embedded, migrations
from archibald_pgq.store.connect import CONNECT_TIMEOUT, unreachable
from archibald_pgq.store.dsn import redacted, to_libpq, with_options


class Target:
    """An opened database: its DSN, and the hold on the embedded server if it is that one."""

    def __init__(self, dsn: str, server: embedded.EmbeddedServer | None = None) -> None:
        """Made by `open_target` and `open_embedded`."""
        self.dsn = dsn
        self.server = server

    @property
    def embedded(self) -> bool:
        """True for the embedded Postgres."""
        return self.server is not None

    def close(self) -> None:
        """Let go of the embedded server; it stops when the last command has."""
        if self.server is not None:
            self.server.close()

    def __enter__(self) -> Target:
        """Use as a context manager."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()


def data_folder(settings: Settings) -> Path:
    """Return the folder of everything that this product keeps on this machine."""
    return settings.data_dir or embedded.default_data_dir()


def demo_folder(settings: Settings) -> Path:
    """Return the folder of the demo's own server, beside the embedded one's and never in it."""
    return data_folder(settings) / "demo"


def open_embedded(settings: Settings, folder: Path | None = None) -> Target:
    """Join (or start) the embedded Postgres and bring it to this code's schema.

    Raises:
        DatabaseError, ConfigError: it cannot be started; the message says why.
    """
    server = embedded.join(folder or data_folder(settings) / "postgres", embedded.find_programs(settings.pg_bin))
    try:
        if not migrations.ready(server.dsn):
            migrations.upgrade(server.dsn)
    except BaseException:
        server.close()
        raise
    return Target(server.dsn, server)


def open_target(database_url: str | None, settings: Settings, *, look_at_demo: bool = False) -> Target:
    """Return the given database, or the embedded one; `look_at_demo`: the running demo's, if only that one is up.

    Raises:
        ConfigError: the DSN cannot be read.
        DatabaseError: the embedded server cannot be started.
    """
    dsn = database_url or settings.database_url
    if dsn:
        return Target(to_libpq(dsn))
    own = data_folder(settings) / "postgres"
    if look_at_demo and not embedded.running(own) and embedded.running(demo_folder(settings)):
        return open_embedded(settings, demo_folder(settings))
    return open_embedded(settings, own)


def open_running(settings: Settings) -> Target:
    """Return the given database, or the embedded one if it is up; for probes, which must start and migrate nothing.

    Raises:
        ConfigError: the DSN cannot be read.
        DatabaseError: the embedded server is not running.
    """
    if settings.database_url:
        return Target(to_libpq(settings.database_url))
    own = data_folder(settings) / "postgres"
    if not embedded.running(own):
        raise DatabaseError(f"the embedded Postgres in {own} is not running; start a worker with `archibald-pgq run`")
    server = embedded.join(own, embedded.find_programs(settings.pg_bin))
    return Target(server.dsn, server)


def check_target(target: Target) -> None:
    """Refuse a database that cannot be reached or whose schema does not serve this code.

    Raises:
        DatabaseError, SchemaError: see above; the message names the mend.
    """
    try:
        with psycopg.connect(with_options(target.dsn, connect_timeout=CONNECT_TIMEOUT), autocommit=True) as connection:
            migrations.check(connection, target.dsn)
    except psycopg.OperationalError as error:
        raise unreachable(target.dsn, error) from None
    except psycopg.Error as error:
        reason = str(error).strip().splitlines()[0]
        raise DatabaseError(f"the database at {redacted(target.dsn)} refuses: {reason}") from None
