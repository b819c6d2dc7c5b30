"""The demo from its database to its exit code.

Guarantees: the databases of the environment are never used; a given database with work in it is refused, because the
demo's worker would run that work against a pretended ERP; only one demo at a time uses a database. Must not: parse
arguments.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
from rich.console import Console
from rich.text import Text

from archibald_pgq import config
from archibald_pgq.demo.conductor import conduct
from archibald_pgq.demo.display import Display
from archibald_pgq.demo.summary import Summary
from archibald_pgq.errors import ConfigError, DatabaseError
from archibald_pgq.store import embedded, migrations
from archibald_pgq.store.dsn import redacted, to_libpq
from archibald_pgq.store.target import demo_folder


@dataclass(frozen=True, slots=True)
class Place:
    """Where a demo plays: the database, the folder of its logs, and how to look at it from another shell."""

    dsn: str
    logs: Path
    look: str


def run(speed: float, database: str | None, console: Console, *, browser: bool = False) -> Summary:
    """Play the day `speed` times as fast, in `database` or else in one of the demo's own; show it on `console`.

    `browser`: the agents drive real browsers, else the same pages over HTTP.

    Raises:
        ArchibaldError: it cannot begin, or cannot go on.
        KeyboardInterrupt: Ctrl-C, or SIGTERM; what was started has ended.
    """
    try:
        with _place(database) as place:
            console.print(Text(f"logs: {place.logs}"), soft_wrap=True)
            console.print(Text(f"look from another shell: {place.look}"), soft_wrap=True)
            program = _chromium() if browser else None
            driven = "the ERP's pages over HTTP; real browsers with --browser" if program is None else str(program)
            console.print(Text(f"the agents drive {driven}"), soft_wrap=True)
            with Display(console) as display:
                return asyncio.run(_interruptible(place, speed, display, browser=browser))
    except psycopg.Error as error:
        raise DatabaseError(f"the demo's database failed: {str(error).strip().splitlines()[0]}") from error


def _chromium() -> Path:
    """Return the browser, of which the worker would say less clearly that it is missing.

    Raises:
        ConfigError: there is none.
    """
    from archibald_pgq.browser.chromium import find_chromium, require_playwright  # no other command needs them

    require_playwright()
    return find_chromium(config.load().chromium)


async def _interruptible(place: Place, speed: float, display: Display, *, browser: bool) -> Summary:
    """Conduct so that SIGTERM ends it as Ctrl-C does."""
    conducting = asyncio.create_task(conduct(place.dsn, place.logs, speed, display.show, browser=browser))
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, conducting.cancel)
    try:
        return await conducting
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None


@contextlib.contextmanager
def _place(database: str | None) -> Iterator[Place]:
    """Yield where to play, migrated and without jobs: the given database, or a server of the demo's own."""
    settings = config.load()
    if database is not None:
        dsn = to_libpq(database)
        with _alone(dsn) as connection:
            _refuse_work_of_others(connection)
            migrations.upgrade(dsn)
            yield Place(dsn, Path(tempfile.mkdtemp(prefix="archibald-pgq-demo-")), f"psql on {redacted(dsn)}")
        return
    folder = demo_folder(settings)
    with embedded.join(folder, embedded.find_programs(settings.pg_bin)) as server, _alone(server.dsn) as connection:
        # Each day begins with an empty queue. Somebody who still looks at the last one is not waited for without end.
        connection.execute("SET lock_timeout = '5s'")
        connection.execute("DROP SCHEMA IF EXISTS archibald CASCADE")
        migrations.upgrade(server.dsn)
        logs = folder / "logs"
        logs.mkdir(exist_ok=True)
        given = f"ARCHIBALD_DATA_DIR={settings.data_dir} " if settings.data_dir else ""
        yield Place(server.dsn, logs, f"{given}archibald-pgq psql")


@contextlib.contextmanager
def _alone(dsn: str) -> Iterator[psycopg.Connection]:
    """Connect, and be the only demo on this database while the block lasts."""
    with psycopg.connect(dsn, autocommit=True, application_name="archibald-pgq demo") as connection:
        row = connection.execute("SELECT pg_try_advisory_lock(hashtextextended('archibald-pgq demo', 0))").fetchone()
        if row is None or not row[0]:
            raise ConfigError(f"another demo plays on {redacted(dsn)} at this moment; wait for its end")
        yield connection


def _refuse_work_of_others(connection: psycopg.Connection) -> None:
    """Refuse a database with live jobs; looked at before anything in it is changed."""
    row = connection.execute("SELECT to_regclass('archibald.jobs') IS NOT NULL").fetchone()
    if row is None or not row[0]:
        return
    row = connection.execute("SELECT count(*) FROM archibald.jobs").fetchone()
    if row is not None and row[0]:
        raise ConfigError(
            f"the given database has {row[0]} jobs that are not finished, which the demo's worker would run "
            "against a pretended ERP; give it a database of its own"
        )
