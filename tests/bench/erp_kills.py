"""Orders in the example ERP while the worker is killed at random moments: how many there are, and how each job ended.

Run as `python -m tests.bench.erp_kills`. The ERP answers half a second after it has saved, so that many a worker dies in between.
`--blind`: nothing can be looked up in the ERP; `--http`: without browsers.
"""

from __future__ import annotations

import argparse
import sys

import psutil

from tests.acceptance.faults import scene
from tests.acceptance.placing import STATES, placed
from tests.bench.scene import LEAVING, Play, main


def options(parser: argparse.ArgumentParser) -> None:
    """How many, and in which way."""
    parser.add_argument("--orders", type=int, default=200)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--blind", action="store_true", help="steps have no `verify`")
    parser.add_argument("--http", action="store_true", help="over HTTP, without browsers")
    parser.add_argument("--seed", type=int, default=1)


async def play(bench: Play) -> None:
    """Play it once."""
    chosen, before = bench.options, _browsers()
    async with (
        bench.stage() as stage,
        scene(stage.dsn) as faults,
        placed(
            faults, chosen.orders, chosen.kills, looks=not chosen.blind, browser=not chosen.http, seed=chosen.seed
        ) as site,
    ):
        ended, erp = dict(await faults.look.rows(STATES)), site.ledger.stats()
    left = psutil.wait_procs(_browsers() - before, timeout=LEAVING)[1]
    for state, count in sorted(ended.items()):
        bench.add(f"jobs {state}", count, "")
    for name in ("orders", "orders_twice", "simultaneous", "logins"):
        bench.add(f"{name}, as the ERP counted", erp[name], "")
    bench.add("browser processes that were left", len(left), "")
    allowed = {"completed", "needs_review"} if chosen.blind else {"completed"}
    if ended.keys() - allowed or sum(ended.values()) != chosen.orders:
        bench.problems.append(f"the jobs ended as {ended}")
    if erp["orders_twice"] or erp["simultaneous"] or left:
        bench.problems.append("an order is there twice, a login was used twice at once, or a browser was left")
    if not chosen.blind and erp["orders"] != chosen.orders:
        bench.problems.append(f"{chosen.orders} orders were placed, {erp['orders']} are there")


def _browsers() -> set[psutil.Process]:
    """All of this machine: those of a killed worker are nobody's children."""
    return {process for process in psutil.process_iter() if "chrom" in process.name()}


if __name__ == "__main__":
    sys.exit(main(__doc__, play, options))
