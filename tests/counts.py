"""What sessions have read, as the server's statistics tell it.

Guarantees: after `until_counted` all that these sessions did before is in `pg_stat_user_tables`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import psycopg

from tests.support import PATIENCE, Look

FORCED_SINCE = 150000
"""From this version on, a session can be told to write its counts at once."""


async def until_counted(look: Look, sessions: Sequence[psycopg.AsyncConnection[tuple[Any, ...]]]) -> None:
    """Return when the counts of these sessions are written."""
    if look.connection.info.server_version >= FORCED_SINCE:
        for session in sessions:
            await session.execute("SELECT pg_stat_force_next_flush()")
        return
    # PostgreSQL 14 sends them at most twice a second, at the end of a statement, all together and in order: when the count of a read
    # that came last has arrived, so have the others.
    for session in sessions:
        mark = f"public.read_by_{session.info.backend_pid}"
        await look.rows(f"CREATE TABLE IF NOT EXISTS {mark} ()")
        seen = await look.value(f"SELECT pg_stat_get_numscans('{mark}'::regclass)")
        await session.execute(f"TABLE {mark}")
        async with asyncio.timeout(PATIENCE):
            while await look.value(f"SELECT pg_stat_get_numscans('{mark}'::regclass)") == seen:
                await session.execute("SELECT pg_sleep(0.01)")
