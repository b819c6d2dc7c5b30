"""Very many agents with one job each that is not due yet, and sixty with due ones: jobs per second with and without the former.

Run as `python -m tests.bench.future_jobs`.
"""

from __future__ import annotations

import argparse
import sys

from archibald_pgq import NewJob
from archibald_pgq.bench.stage import jobs_of, makespan, overlaps
from tests.bench.scene import KIND, Play, main

DAY = 86_400.0


def options(parser: argparse.ArgumentParser) -> None:
    """Sizes."""
    parser.add_argument("--future", type=int, default=100_000, help="agents with a job that is not due")
    parser.add_argument("--each", type=int, default=100, help="due jobs of each of the sixty")
    parser.add_argument("--rounds", type=int, default=3)


async def play(bench: Play) -> None:
    """Without them and with them."""
    chosen = bench.options
    due = jobs_of([f"due-{n}" for n in range(60)], chosen.each)
    later = [NewJob(KIND, user_id=f"later-{n}", data={"seq": n}, delay=DAY) for n in range(chosen.future)]

    async def rate(before: list[NewJob]) -> float:
        async with bench.stage() as stage:
            await stage.load([*before, *due])
            runs = await stage.run(len(due))
        bench.problems += overlaps(runs)
        return len(runs) / makespan(runs)

    without, with_them = await bench.in_turns({"without": [], "with": later}, rate)
    bench.add(f"60 agents × {chosen.each} due jobs, alone", without, "jobs/s")
    bench.add(f"… beside {chosen.future:,} agents with a future job", with_them, "jobs/s")
    bench.add("… ratio", with_them / without, "×")


if __name__ == "__main__":
    sys.exit(main(__doc__, play, options))
