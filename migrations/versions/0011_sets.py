"""What an enqueue costs: of a set's jobs that are not special nothing is kept meanwhile, and less is read for each statement."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import psycopg
from alembic import op

from archibald_pgq.store.sql import function

revision = "0011"
down_revision = "0010"
OLDEST_CODE = "0001"

SQL = Path(__file__).resolve().parent.parent / "sql"

TABLES = ("0011_indexes",)
FUNCTIONS = (
    "enqueue.v8",
    "enqueue_many.v1",
    "security.v2",  # the last: it fixes what the others made
)


def upgrade() -> None:
    """Drop an index, and replace functions and triggers; workers of the code before go on meanwhile and after it."""
    driver = cast("psycopg.Connection", op.get_bind().connection.dbapi_connection)
    driver.execute("LOCK TABLE archibald.jobs")  # and no other: nothing of them is changed
    for name in TABLES:
        driver.execute((SQL / f"{name}.sql").read_text(encoding="utf-8"))
    for name in FUNCTIONS:
        driver.execute(function(name))
    driver.execute(
        "INSERT INTO archibald.schema_revisions (revision, oldest_code) VALUES (%s, %s)", (revision, OLDEST_CODE)
    )
