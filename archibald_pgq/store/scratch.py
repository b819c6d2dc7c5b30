"""Databases for a moment: made on a given server, each a copy of one migrated database, and removed again.

Guarantees: the database that is given is not changed; what was made is gone when the block ends, however it ends, and what a process that
was killed left is removed by the next one of the same role. Must not: be used for work that anybody wants to keep.
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from archibald_pgq.errors import NotPermittedError
from archibald_pgq.store import migrations
from archibald_pgq.store.connect import CONNECT_TIMEOUT
from archibald_pgq.store.dsn import redacted, to_libpq, with_options
from archibald_pgq.store.refusals import Translated

PREFIX = "archibald_bench_"
_LOOK_EVERY = 0.005

_MADE = r"SELECT datname FROM pg_database WHERE datname ~ ('^' || %s || '_[0-9]+$') ORDER BY 1"
# The name of the session that made them says that they are in use. Everybody may see that name.
_LEFT = f"""
SELECT d.datname FROM pg_database d
 WHERE d.datname ~ '^{PREFIX}[0-9a-f]{{12}}_[0-9]+$' AND pg_get_userbyid(d.datdba) = current_user
   AND NOT EXISTS (SELECT FROM pg_stat_activity a WHERE a.application_name = 'archibald-pgq ' || regexp_replace(d.datname, '_[0-9]+$', ''))
"""  # noqa: S608  # a constant


class Scratch:
    """The databases of one process; made by `scratch`."""

    def __init__(self, dsn: str, name: str) -> None:
        """Connect under the name that says whose they are; nothing is made yet."""
        self._dsn, self._name = dsn, name
        self._numbers = itertools.count()
        self._admin = self._connect()

    def _connect(self) -> psycopg.Connection[Any]:
        options = with_options(self._dsn, connect_timeout=CONNECT_TIMEOUT)
        return psycopg.connect(make_conninfo(options, application_name=f"archibald-pgq {self._name}"), autocommit=True)

    @property
    def server_version(self) -> str:
        """The server's version, such as 18.4."""
        return self._admin.info.parameter_status("server_version") or "unknown"

    def make_template(self) -> None:
        """Make the database of which the others are copies.

        Raises:
            NotPermittedError: the role may not create databases.
        """
        try:
            template = self._create("template0")
        except psycopg.errors.InsufficientPrivilege:
            role = self._admin.info.user
            raise NotPermittedError(
                f"the role {role!r} may not create databases at {redacted(self._dsn)}, and the bench uses some of its own; "
                "give it CREATEDB, or use the embedded Postgres"
            ) from None
        migrations.upgrade(template)
        self._template = f"{self._name}_0"

    def copy(self) -> str:
        """Make an empty migrated database and return its DSN."""
        return self._create(self._template)

    def _create(self, template: str) -> str:
        name = f"{self._name}_{next(self._numbers)}"
        self._admin.execute(
            sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(template))
        )
        return make_conninfo(self._dsn, dbname=name)

    def drop(self, dsn: str) -> None:
        """Remove one of them, whoever is still connected to it."""
        self._drop(psycopg.conninfo.conninfo_to_dict(dsn)["dbname"])

    def drop_left(self) -> None:
        """Remove what processes that were killed have left."""
        for (name,) in self._admin.execute(_LEFT).fetchall():
            with suppress(psycopg.Error):  # another process removes it too
                self._drop(name)

    def close(self) -> None:
        """Remove all of them."""
        if self._admin.closed:  # an interrupted statement, or a server that was restarted
            self._admin = self._connect()
        with self._admin:
            for (name,) in self._admin.execute(_MADE, (self._name,)).fetchall():
                self._drop(name)

    def _drop(self, name: object) -> None:
        self._admin.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(str(name))))


def vacuum(dsn: str) -> None:
    """Bring the statistics of a database that was just filled up to date, and its pages to disk: every round then starts alike."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("VACUUM (ANALYZE)")
        with suppress(psycopg.errors.InsufficientPrivilege):  # only superusers may, and those whom they let
            connection.execute("CHECKPOINT")


async def until_empty(dsn: str) -> None:
    """Return as soon as the queue has no live job left."""
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        while (await (await connection.execute("SELECT FROM archibald.jobs LIMIT 1")).fetchone()) is not None:  # noqa: ASYNC110  # others empty it
            await asyncio.sleep(_LOOK_EVERY)


@contextmanager
def scratch(dsn: str) -> Iterator[Scratch]:
    """Yield what makes databases beside that of `dsn`; Ctrl-C and SIGTERM wait until all are removed. For the main thread.

    Raises:
        ConfigError: the DSN cannot be read; DatabaseError: it cannot be used; NotPermittedError: see `Scratch.make_template`.
    """
    dsn = to_libpq(dsn)
    with Translated(dsn, ours=True), interruptible():
        made = Scratch(dsn, PREFIX + secrets.token_hex(6))
        try:
            made.drop_left()
            made.make_template()
            yield made
        finally:
            with _undisturbed():
                made.close()


@contextmanager
def interruptible() -> Iterator[None]:
    """Let SIGTERM end the block as Ctrl-C does."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Put SIGINT and SIGTERM off until the end of the block."""
    came: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        came.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if came:
        raise KeyboardInterrupt
