"""What a server can do at most with plain SQL on one connection: the measure for what the queue makes of it.

Must not: touch the queue's tables; it makes a plain one, in a database that is removed anyway.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import psycopg

COPIED = 20_000
"""Rows of one COPY."""


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """Per second, on one connection.

    Attributes:
        round_trips: `SELECT 1`.
        commits: a row inserted and committed.
        copied_rows: rows of a COPY into a table that is written to disk.
    """

    round_trips: float
    commits: float
    copied_rows: float


def measure(dsn: str, seconds: float) -> ServerLimits:
    """Measure each limit for so long."""
    with psycopg.connect(dsn, autocommit=True, prepare_threshold=0) as connection:
        connection.execute(
            "CREATE TABLE public.plain (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, payload text NOT NULL)"
        )

        def copy() -> None:
            with (
                connection.cursor() as cursor,
                cursor.copy("COPY public.plain (payload) FROM STDIN") as rows,
            ):
                rows.write('{"seq": 1}\n' * COPIED)

        return ServerLimits(
            round_trips=_rate(lambda: connection.execute("SELECT 1"), seconds),
            commits=_rate(lambda: connection.execute("INSERT INTO public.plain (payload) VALUES ('{}')"), seconds),
            copied_rows=COPIED * _rate(copy, seconds),
        )


def _rate(once: Callable[[], object], seconds: float) -> float:
    once()  # prepared, and in the caches
    count, begin = 0, time.monotonic()
    while (passed := time.monotonic() - begin) < seconds:
        once()
        count += 1
    return count / passed
