"""What makes the queue's promises hold in every fault: proof of death, quotas, roles, looks for the doctor."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import psycopg
from alembic import op

from archibald_pgq.store.sql import function

revision = "0002"
down_revision = "0001"
OLDEST_CODE = "0001"

SQL = Path(__file__).resolve().parent.parent / "sql"

TABLES = ("0002_doctor", "0002_lease", "0002_limits")
FUNCTIONS = (
    "lock_key.v2",
    "refresh_lanes.v2",
    "enqueue.v2",
    "wake_lanes.v2",
    "turn.v2",
    "takeover.v2",
    "mend_lanes.v1",
    "security.v1",  # the last: it fixes what the others made
)


def upgrade() -> None:
    """Add to the tables and replace functions; workers of the code before go on meanwhile and after it."""
    driver = cast("psycopg.Connection", op.get_bind().connection.dbapi_connection)
    # In the order in which an enqueue takes them. The other way round (a column of agents, then an index of jobs) enqueues met a deadlock,
    # and it was they that failed.
    driver.execute("LOCK TABLE archibald.jobs, archibald.agents, archibald.workers")
    for name in TABLES:
        driver.execute((SQL / f"{name}.sql").read_text(encoding="utf-8"))
    for name in FUNCTIONS:
        driver.execute(function(name))
    driver.execute(
        "INSERT INTO archibald.schema_revisions (revision, oldest_code) VALUES (%s, %s)", (revision, OLDEST_CODE)
    )
