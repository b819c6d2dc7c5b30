"""A worker without jobs: its share of a core, its transactions per second, and its memory.

Run as `python -m tests.bench.idle`. What the look itself asks of the database is taken off.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time

import psutil
import psycopg

from tests.bench.scene import Play, main, memory

# Flushed at most once a second by each session, so the two looks are a settling time apart from what they count.
_TRANSACTIONS = "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = current_database()"
_STATEMENTS = """
SELECT sum(s.calls) FROM pg_stat_statements s JOIN pg_database d ON d.oid = s.dbid WHERE d.datname = current_database()
"""
SETTLING = 5.0


def options(parser: argparse.ArgumentParser) -> None:
    """Sizes."""
    parser.add_argument("--seconds", type=float, default=30.0, help="how long it is watched")


def _look(connection: psycopg.Connection, query: str) -> int | None:
    try:
        row = connection.execute(query).fetchone()
    except psycopg.errors.UndefinedTable:  # the extension is not there
        return None
    return None if row is None or row[0] is None else int(row[0])


async def play(bench: Play) -> None:
    """Let it settle, then watch it."""
    seconds = bench.options.seconds
    async with bench.stage() as stage, stage.worker() as worker:
        (record,) = await worker.registered()
        await stage.app.close()  # its sessions must not be counted
        process = psutil.Process(record.pid)
        await asyncio.sleep(SETTLING)
        with psycopg.connect(stage.dsn, autocommit=True, prepare_threshold=None) as connection:
            begin, cpu = time.monotonic(), process.cpu_times()
            transactions, statements = _look(connection, _TRANSACTIONS), _look(connection, _STATEMENTS)
            looks = 2
            bench.say(f"watching for {seconds:.0f} s")
            await asyncio.sleep(seconds)
            passed, used = time.monotonic() - begin, process.cpu_times()
            then, then_statements = _look(connection, _TRANSACTIONS), _look(connection, _STATEMENTS)
        rss, pss = memory(record.pid)
    busy = used.user + used.system - cpu.user - cpu.system
    bench.add("CPU, of one core", 100 * busy / passed, "%")
    if transactions is not None and then is not None:
        bench.add("transactions (a statement each, as it has no others)", (then - transactions - looks) / passed, "/s")
    if statements is not None and then_statements is not None:
        bench.add("statements, by pg_stat_statements", (then_statements - statements - looks) / passed, "/s")
    bench.add("RSS", rss, "MB")
    bench.add("PSS", pss, "MB")


if __name__ == "__main__":
    sys.exit(main(__doc__, play, options))
