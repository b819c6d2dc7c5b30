"""Very many jobs through one worker: how its memory and the tables grow.

Run as `python -m tests.bench.long_run --jobs 1000000`. Jobs are enqueued while it runs, so that the backlog stays short.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time

import psycopg

from archibald_pgq import NewJob
from tests.bench.scene import KIND, Play, main, memory, value

BATCH = 1000
LOOK_EVERY = 0.05
LEFT = "SELECT count(*) FROM (SELECT FROM archibald.jobs LIMIT {limit}) AS first_ones"
DONE = "SELECT coalesce(sum(n_tup_ins), 0)::bigint FROM pg_stat_user_tables WHERE relname ~ '^job_history'"
_SIZES = """
SELECT CASE WHEN relname ~ '^job_history' THEN 'job_history' ELSE relname END, sum(pg_table_size(oid)), sum(pg_indexes_size(oid))
  FROM pg_class WHERE relnamespace = 'archibald'::regnamespace AND relkind = 'r'
 GROUP BY 1 HAVING sum(pg_total_relation_size(oid)) > 100000 ORDER BY 1
"""


def options(parser: argparse.ArgumentParser) -> None:
    """Sizes."""
    parser.add_argument("--jobs", type=int, default=1_000_000)
    parser.add_argument("--users", type=int, default=1000)
    parser.add_argument("--backlog", type=int, default=20_000, help="live jobs from which on enqueueing pauses")
    parser.add_argument("--looks", type=int, default=10, help="how often memory is reported")


async def play(bench: Play) -> None:
    """Enqueue and look until all have run."""
    chosen = bench.options
    async with bench.stage() as stage, stage.worker(keep=False) as worker:
        (record,) = await worker.registered()
        begin, enqueued, reported = time.monotonic(), 0, 0
        first, _ = memory(record.pid)
        bench.add("RSS at the start", first, "MB")
        with psycopg.connect(stage.dsn, autocommit=True) as connection:

            def left() -> int:
                row = connection.execute(LEFT.format(limit=chosen.backlog)).fetchone()
                return int(row[0]) if row else 0

            while (waiting := left()) or enqueued < chosen.jobs:
                done = enqueued - waiting
                if done * chosen.looks // chosen.jobs > reported:
                    reported = done * chosen.looks // chosen.jobs
                    rss, _ = memory(record.pid)
                    bench.say(f"{done:,} jobs after {time.monotonic() - begin:.0f} s: RSS {rss:.1f} MB")
                    bench.add(f"RSS after {done:,} jobs", rss, "MB")
                if enqueued < chosen.jobs and waiting < chosen.backlog:
                    count = min(BATCH, chosen.jobs - enqueued)
                    jobs = [
                        NewJob(KIND, user_id=f"user-{(enqueued + n) % chosen.users}", data={"seq": enqueued + n})
                        for n in range(count)
                    ]
                    await stage.app.enqueue_many(jobs)
                    enqueued += count
                else:
                    await asyncio.sleep(LOOK_EVERY)
            seconds = time.monotonic() - begin
            last, _ = memory(record.pid)
            bench.add("RSS at the end", last, "MB")
            bench.add("… grown by", last - first, "MB")
            bench.add(f"{chosen.jobs:,} jobs enqueued and run", chosen.jobs / seconds, "jobs/s")
            for name, table, indexes in connection.execute(_SIZES).fetchall():
                bench.add(f"{name}: table", float(table) / 1e6, "MB")
                bench.add(f"{name}: indexes", float(indexes) / 1e6, "MB")
        ended = value(stage.dsn, "SELECT count(*) FROM archibald.job_history WHERE state = 'completed'")
        if ended != chosen.jobs:
            bench.problems.append(f"{ended} of {chosen.jobs} jobs completed")


if __name__ == "__main__":
    sys.exit(main(__doc__, play, options))
