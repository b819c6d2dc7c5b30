"""What makes the queue fast, and keeps it fast: functions whose plans stay good, whatever the statistics say."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import psycopg
from alembic import op

from archibald_pgq.store.sql import function

revision = "0003"
down_revision = "0002"
OLDEST_CODE = "0001"

SQL = Path(__file__).resolve().parent.parent / "sql"

TABLES = ("0003_enqueue", "0003_turn")
FUNCTIONS = (
    "hint.v1",
    "enqueue.v3",
    "agent_lock.v2",
    "cancel_job.v2",
    "mend_lanes.v2",
    "pause_agent.v2",
    "preempt.v2",
    "review.v2",
    "refresh_lanes.v3",
    "wake_lanes.v3",
    "settle.v2",
    "turn.v3",
    "takeover.v3",
    "security.v1",  # the last: it fixes what the others made
)


def upgrade() -> None:
    """Add to the tables and replace functions; workers of the code before go on meanwhile and after it."""
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
