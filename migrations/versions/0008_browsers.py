"""Circuit breakers of agents and of their syncs, and what failed runs last saw in their browser."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import psycopg
from alembic import op

from archibald_pgq.store.sql import function

revision = "0008"
down_revision = "0007"
OLDEST_CODE = "0001"

SQL = Path(__file__).resolve().parent.parent / "sql"

TABLES = ("0008_browsers",)
FUNCTIONS = (
    "breaker.v1",
    "evidence.v1",
    "enqueue.v6",
    "pause_agent.v4",
    "security.v2",  # the last: it fixes what the others made
)


def upgrade() -> None:
    """Add tables, and add and replace functions; workers of the code before go on meanwhile and after it."""
    driver = cast("psycopg.Connection", op.get_bind().connection.dbapi_connection)
    # In the order in which an enqueue takes them: see 0002.
    driver.execute("LOCK TABLE archibald.jobs, archibald.agents, archibald.workers")
    for name in TABLES:
        driver.execute((SQL / f"{name}.sql").read_text(encoding="utf-8"))
    for name in FUNCTIONS:
        driver.execute(function(name))
    driver.execute(
        "INSERT INTO archibald.schema_revisions (revision, oldest_code) VALUES (%s, %s)", (revision, OLDEST_CODE)
    )
