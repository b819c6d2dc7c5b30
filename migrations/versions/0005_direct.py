"""New agents' jobs in the order in which they run, claimed without having been adopted; fewer statements for each."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import psycopg
from alembic import op

from archibald_pgq.store.sql import function

revision = "0005"
down_revision = "0004"
OLDEST_CODE = "0001"
DAYS = 7

SQL = Path(__file__).resolve().parent.parent / "sql"

TABLES = ("0005_indexes",)
FUNCTIONS = (
    "enqueue.v5",
    "pause_agent.v3",
    "refresh_lanes.v5",
    "wake_lanes.v5",
    "settle.v4",
    "turn.v5",
    "takeover.v4",
    "cancel_job.v3",
    "mend_lanes.v3",
    "review.v3",
    "security.v2",  # the last: it fixes what the others made
)


def upgrade() -> None:
    """Change two indexes and replace functions; workers of the code before go on meanwhile and after it."""
    driver = cast("psycopg.Connection", op.get_bind().connection.dbapi_connection)
    # In the order in which an enqueue takes them: see 0002.
    driver.execute("LOCK TABLE archibald.jobs, archibald.agents, archibald.workers")
    for name in TABLES:
        driver.execute((SQL / f"{name}.sql").read_text(encoding="utf-8"))
    for name in FUNCTIONS:
        driver.execute(function(name))
    # The first worker would make them beside its first turns, and each turn waited for each of them.
    driver.execute("SELECT archibald.make_history_partitions(%s)", (DAYS,))
    driver.execute(
        "INSERT INTO archibald.schema_revisions (revision, oldest_code) VALUES (%s, %s)", (revision, OLDEST_CODE)
    )
