"""How soon a write starts though syncs run, and how fair agents are to each other.

Real `archibald-pgq run` processes on an embedded Postgres of the bench's own. Prints a table, and ends with 1 where a bound was missed.
Other load on the machine distorts the figures; it is printed beside them.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from dataclasses import asdict

from tests.bench.preemption_scenes import SCENARIOS, Row, run


def table(rows: list[Row], load: list[float]) -> str:
    """Return the rows as a table for a terminal."""
    head = Row("scenario", "bound", "measured (p50 / max)", kept=True)
    widths = [max(len(getattr(row, name)) for row in [head, *rows]) for name in ("scenario", "bound")]
    lines = [
        f"{row.scenario:<{widths[0]}} | {row.bound:<{widths[1]}} | {row.measured}{'' if row.kept else '  MISSED'}"
        for row in [head, *rows]
    ]
    return "\n".join([*lines, f"load of the machine before and after (1 min): {load[0]:.1f}, {load[1]:.1f}"])


def main() -> int:
    """Parse the command line, measure, print; 1 where a bound was missed."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.preemption", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--only", default="", metavar="TEXT", help=f"only some of: {'; '.join(SCENARIOS)}")
    parser.add_argument("--json", action="store_true", help="print JSON")
    chosen = parser.parse_args()
    load = [os.getloadavg()[0]]
    rows = asyncio.run(run(chosen.only))
    load.append(os.getloadavg()[0])
    found = {"load": load, "rows": [asdict(row) for row in rows]}
    print(json.dumps(found, ensure_ascii=False, indent=1) if chosen.json else table(rows, load))  # noqa: T201
    return 0 if all(row.kept for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
