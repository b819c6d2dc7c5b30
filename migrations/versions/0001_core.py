"""The core: tables, functions, the catalogue of operations."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import psycopg
from alembic import op

from archibald_pgq.store.sql import function

revision = "0001"
down_revision = None
OLDEST_CODE = "0001"

TABLES = Path(__file__).resolve().parent.parent / "sql" / "0001_tables.sql"
FUNCTIONS = (
    "lock_key.v1",
    "requeue_delay.v1",
    "refresh_lanes.v1",
    "enqueue.v1",
    "agent_lock.v1",
    "settle.v1",
    "wake_lanes.v1",
    "turn.v1",
    "takeover.v1",
    "cancel_job.v1",
    "review.v1",
    "pause_agent.v1",
    "history_partitions.v1",
    "drop_history.v1",
)
# Written out here, and not read from the code's catalogue: a migration never reads what later work edits.
OPERATIONS = """
INSERT INTO archibald.operations (kind, class, priority, timeout_s, max_attempts, backoff, backoff_s) VALUES
  ('submit-order',          'write', 1,  120, 1, NULL, 0),
  ('create-customer',       'write', 2,  120, 1, NULL, 0),
  ('update-customer',       'write', 3,  120, 1, NULL, 0),
  ('send-to-verona',        'write', 4,  120, 1, NULL, 0),
  ('edit-order',            'write', 5,  120, 1, NULL, 0),
  ('delete-order',          'write', 6,  60,  1, NULL, 0),
  ('download-ddt-pdf',      'read',  7,  60,  2, 'fixed', 5),
  ('download-invoice-pdf',  'read',  8,  60,  2, 'fixed', 5),
  ('sync-order-articles',   'read',  9,  180, 1, NULL, 0),
  ('sync-customers',        'sync',  10, 300, 3, 'exponential', 30),
  ('sync-orders',           'sync',  11, 300, 3, 'exponential', 30),
  ('sync-ddt',              'sync',  12, 300, 3, 'exponential', 30),
  ('sync-invoices',         'sync',  13, 300, 3, 'exponential', 30),
  ('sync-products',         'sync',  14, 300, 3, 'exponential', 30),
  ('sync-prices',           'sync',  15, 300, 3, 'exponential', 30)
"""


def upgrade() -> None:
    """Create everything; nothing of ours can be running yet."""
    # The driver's own connection: SQLAlchemy would read placeholders into the functions' percent signs and colons.
    driver = cast("psycopg.Connection", op.get_bind().connection.dbapi_connection)
    driver.execute(TABLES.read_text(encoding="utf-8"))
    for name in FUNCTIONS:
        driver.execute(function(name))
    driver.execute(OPERATIONS)
    driver.execute("SELECT archibald.make_history_partitions(7)")
    driver.execute(
        "INSERT INTO archibald.schema_revisions (revision, oldest_code) VALUES (%s, %s)", (revision, OLDEST_CODE)
    )
