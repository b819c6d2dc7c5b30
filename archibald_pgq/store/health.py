"""The probe's look at workers: one connection, one statement.

Guarantees: nothing is started, migrated or written; a database that cannot be used is an error within seconds. Must not: judge.
"""

from __future__ import annotations

import psycopg
from psycopg.rows import dict_row

from archibald_pgq.domain.health import Pulse
from archibald_pgq.domain.views import Health
from archibald_pgq.store.connect import CONNECT_TIMEOUT
from archibald_pgq.store.dsn import with_options
from archibald_pgq.store.refusals import Translated
from archibald_pgq.store.sql import statement


def pulses(dsn: str, *, host: str | None = None, worker: int | None = None) -> list[Pulse]:
    """Return the workers of a host (None: of any), or one worker; those that said goodbye are left out unless asked for.

    Raises:
        DatabaseError, SchemaError: the database cannot be reached, or has no schema.
    """
    options = with_options(dsn, connect_timeout=CONNECT_TIMEOUT, application_name="archibald-pgq health")
    with (
        Translated(dsn, ours=True),
        psycopg.connect(options, autocommit=True, prepare_threshold=None, row_factory=dict_row) as connection,
    ):
        rows = connection.execute(statement("health"), {"host": host, "worker": worker}).fetchall()
    return [Pulse(**{**row, "health": Health(row["health"])}) for row in rows]
