"""The first jobs of backlogs of several lengths: jobs per second, which should not fall with the length.

Run as `python -m tests.bench.backlog`.
"""

from __future__ import annotations

import argparse
import sys

from archibald_pgq.bench.stage import jobs_of, makespan
from tests.bench.scene import Play, main, numbers


def options(parser: argparse.ArgumentParser) -> None:
    """Sizes."""
    parser.add_argument("--sizes", type=numbers, default=[10_000, 200_000, 1_000_000], metavar="N,N", help="backlogs")
    parser.add_argument("--first", type=int, default=2000, help="jobs that are measured")
    parser.add_argument("--rounds", type=int, default=3)


async def play(bench: Play) -> None:
    """Each round has a database of its own for each size, for a run leaves dead rows."""
    chosen = bench.options

    async def rate(size: int) -> float:
        async with bench.stage() as stage:
            await stage.load(jobs_of((f"user-{n}" for n in range(size)), 1))
            runs = (await stage.run(chosen.first))[: chosen.first]
        return len(runs) / makespan(runs)

    rates = await bench.in_turns({f"backlog of {size:,}": size for size in chosen.sizes}, rate)
    for size, measured in zip(chosen.sizes, rates, strict=True):
        bench.add(f"the first {chosen.first:,} of {size:,} jobs", measured, "jobs/s")
        bench.add(f"… ratio to {chosen.sizes[0]:,}", measured / rates[0], "×")


if __name__ == "__main__":
    sys.exit(main(__doc__, play, options))
