"""A transaction that stays open for the whole run, so that no dead row can be cleaned up: jobs per second with and without it.

Run as `python -m tests.bench.old_transaction`.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator

import psycopg

from archibald_pgq.bench.stage import jobs_of, makespan, overlaps
from tests.bench.scene import Play, main


def options(parser: argparse.ArgumentParser) -> None:
    """Sizes."""
    parser.add_argument("--users", type=int, default=60)
    parser.add_argument("--each", type=int, default=500, help="jobs of each of them")
    parser.add_argument("--rounds", type=int, default=3)


@contextlib.contextmanager
def _open_transaction(dsn: str, wanted: bool) -> Iterator[None]:
    if not wanted:
        yield
        return
    with psycopg.connect(dsn) as connection:
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        connection.execute("SELECT txid_current()")
        yield
        connection.rollback()


async def play(bench: Play) -> None:
    """Without it and beside it."""
    chosen = bench.options
    jobs = jobs_of([f"user-{n}" for n in range(chosen.users)], chosen.each)

    async def rate(wanted: bool) -> float:
        async with bench.stage() as stage:
            await stage.load(jobs)
            with _open_transaction(stage.dsn, wanted):
                runs = await stage.run(len(jobs))
        bench.problems += overlaps(runs)
        return len(runs) / makespan(runs)

    without, beside = await bench.in_turns({"without it": False, "beside it": True}, rate)
    bench.add(f"{chosen.users} users × {chosen.each} jobs that do nothing", without, "jobs/s")
    bench.add("… beside a transaction that stays open", beside, "jobs/s")
    bench.add("… ratio", beside / without, "×")


if __name__ == "__main__":
    sys.exit(main(__doc__, play, options))
