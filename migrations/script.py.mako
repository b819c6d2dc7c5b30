"""${message}."""

from __future__ import annotations

from typing import cast

import psycopg
from alembic import op

from archibald_pgq.store.sql import function

revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
OLDEST_CODE = ${repr(up_revision)}  # the oldest code revision that still works on this schema


def upgrade() -> None:
    """Say here what changes and why it is safe beside running workers."""
    ${upgrades if upgrades else "pass"}
    driver = cast("psycopg.Connection", op.get_bind().connection.dbapi_connection)
    driver.execute("INSERT INTO archibald.schema_revisions (revision, oldest_code) VALUES (%s, %s)", (revision, OLDEST_CODE))
