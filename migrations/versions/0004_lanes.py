"""Fewer looks and writes for each job: agents known before their jobs, one wake for a set of jobs, lanes written by their places."""

from __future__ import annotations

from typing import cast

import psycopg
from alembic import op

from archibald_pgq.store.sql import function

revision = "0004"
down_revision = "0003"
OLDEST_CODE = "0001"

FUNCTIONS = (
    "hint.v2",
    "enqueue.v4",
    "refresh_lanes.v4",
    "wake_lanes.v4",
    "settle.v3",
    "turn.v4",
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
