"""Ten users with very many jobs each, and others with a few: when the others are done, beside without the ten.

Run as `python -m tests.bench.hot_users`.
"""

from __future__ import annotations

import argparse
import sys

from archibald_pgq import NewJob
from archibald_pgq.bench.stage import jobs_of, overlaps
from tests.bench.scene import Play, main


def options(parser: argparse.ArgumentParser) -> None:
    """Sizes."""
    parser.add_argument("--hot", type=int, default=10, help="users with very many jobs")
    parser.add_argument("--each", type=int, default=2000, help="jobs of each of them")
    parser.add_argument("--light", type=int, default=50, help="users with a few")
    parser.add_argument("--few", type=int, default=5, help="jobs of each of them")
    parser.add_argument("--seconds", type=float, default=0.005, help="how long a job takes")
    parser.add_argument("--rounds", type=int, default=3)


async def play(bench: Play) -> None:
    """The light users alone, and behind the hot ones."""
    chosen = bench.options
    hot = jobs_of([f"hot-{n}" for n in range(chosen.hot)], chosen.each, chosen.seconds)
    light = jobs_of([f"light-{n}" for n in range(chosen.light)], chosen.few, chosen.seconds)

    async def until_done(before: list[NewJob]) -> float:
        async with bench.stage() as stage:
            await stage.load([*before, *light])
            runs = await stage.run(len(before) + len(light))
        bench.problems += overlaps(runs)
        end = max(run.end for run in runs if run.user_id.startswith("light"))
        return end - min(run.start for run in runs)

    alone, behind = await bench.in_turns({"alone": [], "behind": hot}, until_done)
    bench.add(f"{len(light)} jobs of {chosen.light} light users done, alone", alone, "s")
    bench.add(f"… behind {chosen.hot} hot users × {chosen.each:,} jobs", behind, "s")
    bench.add("… ratio", behind / alone, "×")


if __name__ == "__main__":
    sys.exit(main(__doc__, play, options))
