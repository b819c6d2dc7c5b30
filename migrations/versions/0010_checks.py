"""What an enqueue of its own costs: no CHECKs to read, and no trigger where there is nothing for it to decide."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import psycopg
from alembic import op

from archibald_pgq.store.sql import function

revision = "0010"
down_revision = "0009"
OLDEST_CODE = "0001"

SQL = Path(__file__).resolve().parent.parent / "sql"

TABLES = ("0010_checks",)
FUNCTIONS = (
    "sound.v1",
    "enqueue.v7",
    "security.v2",  # the last: it fixes what the others made
)


def upgrade() -> None:
    """Put a trigger in the place of the jobs' CHECKs, and replace functions; workers of the code before go on meanwhile and after it."""
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
