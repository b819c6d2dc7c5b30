"""What a set of jobs costs: of jobs that are not special nothing is kept while they are enqueued."""

from __future__ import annotations

from typing import cast

import psycopg
from alembic import op

from archibald_pgq.store.sql import function

revision = "0011"
down_revision = "0010"
OLDEST_CODE = "0001"

FUNCTIONS = (
    "enqueue_many.v1",
    "security.v2",  # the last: it fixes what the others made
)


def upgrade() -> None:
    """Replace functions and triggers; workers of the code before go on meanwhile and after it."""
    driver = cast("psycopg.Connection", op.get_bind().connection.dbapi_connection)
    # In the order in which an enqueue takes them: see 0002.
    driver.execute("LOCK TABLE archibald.jobs, archibald.agents, archibald.workers")
    for name in FUNCTIONS:
        driver.execute(function(name))
    driver.execute(
        "INSERT INTO archibald.schema_revisions (revision, oldest_code) VALUES (%s, %s)", (revision, OLDEST_CODE)
    )
