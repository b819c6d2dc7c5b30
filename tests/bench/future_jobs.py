"""Very many agents with one job each that is not due yet, and sixty with due ones: jobs per second with and without the former.

Run as `python -m tests.bench.future_jobs`.
"""

from __future__ import annotations

import argparse
import statistics
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
    """Each round: without them, then with them."""
    chosen = bench.options
    due = jobs_of([f"due-{n}" for n in range(60)], chosen.each)
    later = [NewJob(KIND, user_id=f"later-{n}", data={"seq": n}, delay=DAY) for n in range(chosen.future)]
    rates: dict[str, list[float]] = {"without": [], "with": []}
    for number in range(1, chosen.rounds + 1):
        for name, before in (("without", []), ("with", later)):
            bench.say(f"round {number} of {chosen.rounds}, {name}")
            async with bench.stage() as stage:
                await stage.load([*before, *due])
                runs = await stage.run(len(due))
            bench.problems += overlaps(runs)
            rates[name].append(len(runs) / makespan(runs))
    without, with_them = statistics.median(rates["without"]), statistics.median(rates["with"])
    bench.add(f"60 agents × {chosen.each} due jobs, alone", without, "jobs/s")
    bench.add(f"… beside {chosen.future:,} agents with a future job", with_them, "jobs/s")
    bench.add("… ratio", with_them / without, "×")


if __name__ == "__main__":
    sys.exit(main(__doc__, play, options))
