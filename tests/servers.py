"""The Postgres that a test run uses, and fresh databases on it.

Owns: which server is used (`ARCHIBALD_TEST_POSTGRES`), its start and its end, and the copying of databases.
Guarantees: a server of the run's own; no server or data of anybody else is touched.
"""

from __future__ import annotations

import gc
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import docker
import psycopg
from docker.errors import DockerException
from psycopg import sql

from archibald_pgq.store import embedded

IMAGE = "postgres:18"

TOO_OLD = "ARCHIBALD_TEST_TOO_OLD_POSTGRES"
"""Names the folder of programs of PostgreSQL 13, on which the tests see that it is refused."""

# Nothing of a test run has to survive a power cut. 300 connections: some tests hold a hundred at once.
SETTINGS = {
    "max_connections": "300",
    "max_prepared_transactions": "5",
    "fsync": "off",
    "full_page_writes": "off",
    "max_wal_size": "256MB",
    # The embedded server's role is named like the schema; a name without its schema must not work here by that chance.
    "search_path": "public",
}

# The data lies in memory where that is possible. With 415 relations in the template a copy then takes 10 ms (WAL_LOG: 13 ms) at
# any time; on a disk that others use too it took 25 to 500 ms.
MEMORY = Path("/dev/shm")
MEMORY_NEEDED = 2 * 1024**3


@dataclass(frozen=True)
class Server:
    """A running Postgres: `name` says what it is, `admin_dsn` is the URL of its maintenance database as superuser."""

    name: str
    admin_dsn: str
    _admin: psycopg.Connection = field(repr=False)

    @property
    def version(self) -> str:
        """The server's version, such as 18.4."""
        return self._admin.info.parameter_status("server_version") or "unknown"

    def dsn(self, database: str) -> str:
        """Return the URL of one database of this server."""
        return urlsplit(self.admin_dsn)._replace(path=f"/{database}").geturl()

    def set_password(self, role: str, password: str) -> None:
        """Store a password."""
        self._admin.execute(sql.SQL("ALTER ROLE {} PASSWORD {}").format(sql.Identifier(role), sql.Literal(password)))

    def create_database(self, name: str, template: str = "template0") -> str:
        """Create a database as a copy of `template`, to which nobody may be connected, and return its URL."""
        # PostgreSQL 14 copies files always, and knows no other word for it.
        strategy = sql.SQL(" STRATEGY file_copy" if self._admin.info.server_version >= 150000 else "")
        self._admin.execute(
            sql.SQL("CREATE DATABASE {} TEMPLATE {}{}").format(sql.Identifier(name), sql.Identifier(template), strategy)
        )
        return self.dsn(name)

    def drop_database(self, name: str) -> None:
        """Drop a database, whoever is still connected to it."""
        self._admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@contextmanager
def start(wanted: str | None) -> Iterator[Server]:
    """Run the server that `wanted` names: `docker`, `embedded`, `embedded-16` or a folder of PostgreSQL programs.

    With None it is a container where an engine answers and can start one (it may have neither the image nor a way to a
    registry), else the embedded server.
    """
    with ExitStack() as stack:
        yield _start(wanted, stack)


def engine_answers() -> bool:
    """Say whether a Docker engine answers within two seconds."""
    with warnings.catch_warnings():
        # The client forgets to close its socket where it may not connect; here it is not a fault of a test.
        warnings.simplefilter("ignore", ResourceWarning)
        answers = _ping()
        gc.collect()
    return answers


def _ping() -> bool:
    try:
        client = docker.from_env(timeout=2)
    except DockerException:
        return False
    try:
        return bool(client.ping())
    except (DockerException, OSError):
        return False
    finally:
        client.close()


def _start(wanted: str | None, stack: ExitStack) -> Server:
    if wanted == "docker":
        return stack.enter_context(_container())
    if wanted == "embedded-16":
        return stack.enter_context(_embedded("embedded server", version=16))
    if wanted not in (None, "embedded"):
        if not Path(wanted, "postgres").is_file():
            raise ValueError(f"{wanted!r} is neither docker, embedded, embedded-16 nor a folder of PostgreSQL programs")
        return stack.enter_context(_embedded(f"programs in {wanted}", pg_bin=Path(wanted)))
    name = "embedded server"
    if wanted is None and engine_answers():
        try:
            return stack.enter_context(_container())
        except (DockerException, OSError, psycopg.OperationalError) as error:
            name += f", because the Docker engine could not run {IMAGE}: {error}"
    return stack.enter_context(_embedded(name))


@contextmanager
def _container() -> Iterator[Server]:
    # Imported here: it looks for an engine.
    from testcontainers.community.postgres import PostgresContainer

    # A log-in computes 4,096 hashes on each side, which was up to 6 % of a run's processor time; one proves as much.
    set_up = {**SETTINGS, "scram_iterations": "1"}
    command = " ".join(["postgres", *(f"-c {name}={value}" for name, value in set_up.items())])
    container = PostgresContainer(IMAGE, username="postgres", password="only-for-tests", dbname="postgres", driver=None)
    container.with_command(command).with_tmpfs_mount("/var/lib/postgresql")
    with container, _connected(f"container {IMAGE}", container.get_connection_url()) as server:
        server.set_password("postgres", "only-for-tests")  # anew, with one
        yield server


@contextmanager
def _embedded(name: str, pg_bin: Path | None = None, version: int | None = None) -> Iterator[Server]:
    data_dir = Path(tempfile.mkdtemp(prefix="archibald-test-", dir=MEMORY if _memory_serves() else None))
    try:
        programs = embedded.find_programs(pg_bin, version)
        with embedded.join(data_dir, programs, settings=SETTINGS) as running, _connected(name, running.dsn) as server:
            yield server
    finally:
        shutil.rmtree(data_dir, ignore_errors=True)


def _memory_serves() -> bool:
    """Room for the databases of a run; and programs may run there, because as root they may have to be copied into the folder."""
    if not MEMORY.is_dir() or shutil.disk_usage(MEMORY).free < MEMORY_NEEDED:
        return False
    return not os.statvfs(MEMORY).f_flag & os.ST_NOEXEC


@contextmanager
def _connected(name: str, admin_dsn: str) -> Iterator[Server]:
    with psycopg.connect(admin_dsn, autocommit=True, connect_timeout=10) as admin:
        yield Server(name, admin_dsn, admin)
