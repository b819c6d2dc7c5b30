"""Fixtures of all tests: one server for the run, a fresh migrated database for each test that asks for one."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime

import pytest
from hypothesis import HealthCheck, settings

from archibald_pgq import Archibald
from tests import servers
from tests.reporting import pytest_sessionfinish, pytest_terminal_summary, pytest_testnodedown, say
from tests.support import Look, looking

__all__ = ["pytest_sessionfinish", "pytest_terminal_summary", "pytest_testnodedown"]  # hooks

# How long an example takes says nothing on a machine that others use too.
settings.register_profile(
    "archibald", deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
settings.load_profile("archibald")

WANTED = "ARCHIBALD_TEST_POSTGRES"

_numbers = itertools.count(1)


def pytest_sessionstart() -> None:
    """Forget what the environment says about databases and settings: no test may depend on it, or reach a real database."""
    for name in set(os.environ) - {WANTED, servers.TOO_OLD}:
        if name.startswith(("ARCHIBALD_", "PG")) or name in ("DATABASE_URL", "WORKER_CONCURRENCY"):
            del os.environ[name]
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        # Run in the background of a script: the processes under test must not inherit that, their Ctrl-C is tested.
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever takes long is slow too: `-m "not slow"` leaves both out."""
    for item in items:
        if item.get_closest_marker("long"):
            item.add_marker("slow")


@pytest.fixture(scope="session")
def server(pytestconfig: pytest.Config) -> Iterator[servers.Server]:
    """The Postgres of this run; `ARCHIBALD_TEST_POSTGRES` chooses it, see `servers.start`."""
    with servers.start(os.environ.get(WANTED) or None) as running:
        say(pytestconfig, f"Tests ran on PostgreSQL {running.version} ({running.name}).")
        yield running


@pytest.fixture(scope="session")
def migrated() -> set[str]:
    """The templates that there are on the server of this run."""
    return set()


@pytest.fixture
def template(server: servers.Server, migrated: set[str]) -> str:
    """The name of a database that has been migrated to head; copied, never connected to.

    It is today's: migrating makes the history's partitions from its day on, and a run may pass midnight.
    """
    from archibald_pgq.store import migrations

    name = f"migrated_{datetime.now(UTC):%Y%m%d}"
    if name not in migrated:
        migrations.upgrade(server.create_database(name))
        migrated.add(name)
    return name


@pytest.fixture
def database(server: servers.Server, template: str) -> Iterator[str]:
    """The URL of a fresh, migrated database."""
    yield from _fresh(server, template)


@pytest.fixture
def empty_database(server: servers.Server) -> Iterator[str]:
    """The URL of a fresh database without the schema."""
    yield from _fresh(server, "template0")


def _fresh(server: servers.Server, template: str) -> Iterator[str]:
    name = f"test_{next(_numbers)}"
    yield server.create_database(name, template)
    server.drop_database(name)


@pytest.fixture
async def app(database: str) -> AsyncIterator[Archibald]:
    """An app without operations on a fresh database."""
    async with Archibald(database) as made:
        yield made


@pytest.fixture
async def look(database: str) -> AsyncIterator[Look]:
    """A connection to the same database, for looking and for acting from outside."""
    async with looking(database) as made:
        yield made
