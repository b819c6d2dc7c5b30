"""Fewer rows read for each job of a new agent and for each lane that is freed; a second look whose plan fits any number of agents."""

from __future__ import annotations

from typing import cast

import psycopg
from alembic import op

from archibald_pgq.store.sql import function

revision = "0006"
down_revision = "0005"
OLDEST_CODE = "0001"

FUNCTIONS = (
    "agent_lock.v3",
    "preempt.v3",
    "refresh_lanes.v6",
    "wake_lanes.v6",
    "settle.v5",
    "security.v2",  # the last: it fixes what the others made
)


def upgrade() -> None:
    """Replace functions; workers of the code before go on meanwhile and after it."""
    driver = cast("psycopg.Connection", op.get_bind().connection.dbapi_connection)
    # In the order in which an enqueue takes them: see 0002.
    driver.execute("LOCK TABLE archibald.jobs, archibald.agents, archibald.workers")
    for name in FUNCTIONS:
        driver.execute(function(name))
    driver.execute(
        "INSERT INTO archibald.schema_revisions (revision, oldest_code) VALUES (%s, %s)", (revision, OLDEST_CODE)
    )
