"""A server that is too old is refused in one sentence, before anything on it is changed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from archibald_pgq.errors import ConfigError
from archibald_pgq.store.embedded import find_programs
from archibald_pgq.store.embedded.account import account_for
from archibald_pgq.store.embedded.layout import Layout
from tests.commands import command
from tests.servers import TOO_OLD

PATIENCE = 30.0


@pytest.fixture(scope="module")
def programs() -> Path:
    """The folder of programs of PostgreSQL 13."""
    if TOO_OLD not in os.environ:
        pytest.skip(f"{TOO_OLD} does not name programs of PostgreSQL 13")
    return Path(os.environ[TOO_OLD])


@pytest.fixture(scope="module")
def old_server(programs: Path) -> Iterator[str]:
    """The URL of a database on PostgreSQL 13."""
    folder = Path(tempfile.mkdtemp(prefix="archibald-test-"))
    account = account_for(Layout(folder))
    run_as = account.run_as() if account else {}
    if account:
        os.chown(folder, account.uid, account.gid)
    data = folder / "data"
    subprocess.run(
        [programs / "initdb", "--username", "postgres", "--auth", "trust", "--locale", "C", "--pgdata", data],
        stdout=subprocess.DEVNULL,
        check=True,
        **run_as,
    )
    dsn = f"postgresql://postgres@/postgres?host={folder}"
    running = subprocess.Popen(
        [programs / "postgres", "-D", data, "-k", folder, "-c", "listen_addresses="],
        stderr=subprocess.DEVNULL,
        **run_as,
    )
    try:
        _wait_for(dsn)
        yield dsn
    finally:
        running.send_signal(signal.SIGINT)
        running.wait(PATIENCE)
        shutil.rmtree(folder)


def _wait_for(dsn: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            psycopg.connect(dsn).close()
        except psycopg.OperationalError:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        else:
            return


@pytest.mark.parametrize("arguments", [("migrate",), ("run", "archibald_pgq.examples.erp:app")])
def test_an_old_server_is_refused_and_left_as_it_is(old_server: str, arguments: tuple[str, ...]) -> None:
    refusal = command(*arguments, database=old_server).refused()
    assert refusal.endswith(
        "is on PostgreSQL 13, and 14 or newer is needed; upgrade that server, or set ARCHIBALD_DATABASE_URL to a database "
        "on a newer one"
    )
    with psycopg.connect(old_server) as connection:
        assert connection.execute("SELECT to_regnamespace('archibald')").fetchone() == (None,)


def test_old_programs_are_refused_for_the_embedded_server(programs: Path) -> None:
    with pytest.raises(ConfigError, match="holds PostgreSQL 13, and 14 or newer is needed"):
        find_programs(programs)
