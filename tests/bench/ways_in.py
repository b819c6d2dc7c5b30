"""How long after its commit a job's handler starts, for every way into the queue: `python -m tests.bench.ways_in [--json]`.

A worker process with 10 consumers and handlers that do nothing waits for each job; the next one is enqueued when the handler of the one
before has started. Every second job is for an agent that the queue has never seen.

Both ends are read from one clock, the machine's CLOCK_REALTIME. The commit is the server's own commit timestamp: the same for all ways,
also for those that tell nobody when their COMMIT was acknowledged. It is taken just before the commit is written to the disk, so that
the figures include that write, and are upper bounds of "acknowledged to started". The start is the handler's first line. The server is
an embedded one of the benchmark's own, with PostgreSQL's settings for durability as they come.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psycopg

from archibald_pgq import Archibald, JobContext
from archibald_pgq.store import embedded, migrations
from tests.bench.ways import KIND, WAYS, Place, Way
from tests.commands import CHECKOUT, environment
from tests.node import NoNodeError

PATIENCE = 30.0
ROLLED_BACK = 5

SETUP = """
CREATE TABLE public.ways_in (user_id text, xid xid);
CREATE FUNCTION public.ways_in() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO public.ways_in VALUES (NEW.user_id, pg_current_xact_id()::xid);
  RETURN NULL;
END $$;
CREATE TRIGGER ways_in AFTER INSERT ON archibald.jobs FOR EACH ROW EXECUTE FUNCTION public.ways_in();
"""
COMMITS = """
SELECT user_id, extract(epoch FROM pg_xact_commit_timestamp(xid))::float8 FROM public.ways_in
 WHERE user_id LIKE %s || '%%' ORDER BY pg_xact_commit_timestamp(xid), user_id
"""

app = Archibald()


@app.operation(KIND)
async def note_the_start(ctx: JobContext, data: dict[str, Any]) -> None:
    """Tell the benchmark."""
    print(ctx.user_id, time.time(), flush=True)  # noqa: T201


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table; milliseconds. `started_though_rolled_back` is None where a way has no transaction of the caller's."""

    way: str
    jobs: int
    p50: float | None = None
    p99: float | None = None
    max: float | None = None
    started_though_rolled_back: int | None = None
    skipped: str | None = None


class Worker:
    """The worker process, and the starts that it has told."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.starts: list[tuple[str, float]] = []

    async def until_started(self, count: int) -> None:
        """Wait until so many handlers have started."""
        assert self.process.stdout is not None
        async with asyncio.timeout(PATIENCE):
            while len(self.starts) < count:
                user, at = (await self.process.stdout.readline()).decode().rsplit(maxsplit=1)
                self.starts.append((user, float(at)))


@asynccontextmanager
async def running(database: str) -> AsyncIterator[Worker]:
    """Run a worker process of this module's app."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "archibald_pgq", "run", "tests.bench.ways_in:app"),
        cwd=CHECKOUT,
        env=environment(database),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    log = b""
    while b" is ready: " not in log:
        line = await process.stderr.readline()
        assert line, log.decode()
        log += line
    rest = asyncio.create_task(process.stderr.read())
    try:
        yield Worker(process)
    finally:
        process.send_signal(signal.SIGTERM)
        await rest
        await process.wait()


async def measure(way: Way, place: Place, worker: Worker, jobs: int) -> Row:
    """Measure one way."""
    print(f"measuring {way.name}", file=sys.stderr)  # noqa: T201
    prefix = f"{way.name}: "
    transactions = min(max(1, jobs // way.at_once), way.at_most)
    worker.starts.clear()
    try:
        async with way.open(place) as enqueue:
            for number in range(transactions):
                users = [f"{prefix}{number // 2}-{place_}" for place_ in range(way.at_once)]
                await enqueue(users, True)
                await worker.until_started((number + 1) * way.at_once)
            for number in range(ROLLED_BACK if way.transaction else 0):
                await enqueue([f"{prefix}undone {number}-{place_}" for place_ in range(way.at_once)], False)
            if way.transaction:  # what would come of those has come when this one starts
                await enqueue([f"{prefix}last-{place_}" for place_ in range(way.at_once)], True)
                await worker.until_started((transactions + 1) * way.at_once)
    except NoNodeError as error:
        return Row(way.name, 0, skipped=str(error))
    async with await psycopg.AsyncConnection.connect(place.database) as connection:
        commits = await (await connection.execute(COMMITS, (prefix,))).fetchall()
    # of one agent the first start belongs to the first commit
    delays = sorted(
        1000 * (start - commit) for (_, start), (_, commit) in zip(sorted(worker.starts), sorted(commits), strict=True)
    )
    undone = sum(user.startswith(f"{prefix}undone") for user, _ in worker.starts)
    return Row(
        way.name,
        len(delays),
        round(delays[len(delays) // 2], 1),
        round(delays[min(len(delays) - 1, int(len(delays) * 0.99))], 1),
        round(delays[-1], 1),
        undone if way.transaction else None,
    )


async def run(jobs: int, only: str) -> list[Row]:
    """Measure the ways, on a server of their own."""
    with (
        tempfile.TemporaryDirectory(prefix="archibald-ways-data-") as data,
        tempfile.TemporaryDirectory(prefix="archibald-ways-") as folder,
        embedded.join(Path(data), settings={"track_commit_timestamp": "on"}) as server,
    ):
        migrations.upgrade(server.dsn)
        with psycopg.connect(server.dsn) as connection:
            connection.execute(SETUP)
        place = Place(server.dsn, server.programs.bin / "psql", Path(folder))
        async with running(server.dsn) as worker:
            return [await measure(way, place, worker, jobs) for way in WAYS if only in way.name]


def table(rows: list[Row]) -> str:
    """Return the rows as a table for a terminal."""
    lines = [f"{'way in':<40}{'jobs':>6}{'p50 ms':>9}{'p99 ms':>9}{'max ms':>9}  rolled back"]
    for row in rows:
        if row.skipped is not None:
            lines.append(f"{row.way:<40}  left out: {row.skipped}")
            continue
        undone = "-" if row.started_though_rolled_back is None else f"{row.started_though_rolled_back} started"
        lines.append(f"{row.way:<40}{row.jobs:>6}{row.p50:>9}{row.p99:>9}{row.max:>9}  {undone}")
    return "\n".join(lines)


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.ways_in", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--jobs", type=int, default=200, help="jobs for each way; 200 if not given")
    parser.add_argument("--only", default="", metavar="TEXT", help="only ways whose name has this in it")
    parser.add_argument("--json", action="store_true", help="print JSON")
    chosen = parser.parse_args()
    rows = asyncio.run(run(chosen.jobs, chosen.only))
    print(json.dumps([asdict(row) for row in rows], indent=1) if chosen.json else table(rows))  # noqa: T201


if __name__ == "__main__":
    main()
