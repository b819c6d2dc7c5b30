"""What the scenes of this folder share: where they play, how they look at a worker, and how they print.

They play as `archibald-pgq bench` does: on the server of ARCHIBALD_DATABASE_URL, else on the embedded one, in databases of their own that
are removed at the end, with workers that are processes of `archibald-pgq run`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import psutil
import psycopg

from archibald_pgq.bench.run import place
from archibald_pgq.bench.stage import Stage, stage
from archibald_pgq.errors import ArchibaldError

KIND = "bench"
T = TypeVar("T")

LEAVING = 5.0
"""Seconds that a process which has ended may be seen: its parent has to take note of it."""


@dataclass(slots=True)
class Play:
    """What a scene gets: its options, an empty queue on demand, and the place of its figures.

    A figure is (what, value, unit).
    """

    options: argparse.Namespace
    stage: Callable[[], AbstractAsyncContextManager[Stage]]
    figures: list[tuple[str, float, str]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def add(self, what: str, value: float, unit: str) -> None:
        """Report a figure."""
        self.figures.append((what, value, unit))

    def say(self, text: str) -> None:
        """Tell how far it is."""
        print(text, file=sys.stderr, flush=True)  # noqa: T201

    async def in_turns(self, cases: Mapping[str, T], play: Callable[[T], Awaitable[float]]) -> list[float]:
        """Play each case once a round, and return the medians in the order of the cases.

        Another case goes first in each round: what changes on the machine meanwhile is no case's own.
        """
        found: dict[str, list[float]] = {name: [] for name in cases}
        rounds, names = self.options.rounds, list(cases)
        for number in range(rounds):
            first = number % len(names)
            for name in names[first:] + names[:first]:
                self.say(f"round {number + 1} of {rounds}, {name}")
                found[name].append(await play(cases[name]))
        return [statistics.median(values) for values in found.values()]


def main(
    doc: str | None, play: Callable[[Play], Awaitable[None]], options: Callable[[argparse.ArgumentParser], object]
) -> int:
    """Parse the command line, play, print a table or JSON; 1 if a promise was broken."""
    lines = (doc or "").strip().splitlines()
    parser = argparse.ArgumentParser(description=lines[0])
    parser.add_argument("--json", action="store_true", help="print JSON")
    options(parser)
    chosen = parser.parse_args()
    load = [os.getloadavg()[0]]
    try:
        with place() as databases, tempfile.TemporaryDirectory(prefix="archibald-pgq-bench-") as folder:
            played = Play(chosen, lambda: stage(databases, Path(folder)))
            asyncio.run(_play(play, played))
    except (ArchibaldError, KeyboardInterrupt) as error:
        sys.exit(str(error) or "interrupted; the databases are removed")
    load.append(os.getloadavg()[0])
    print(_json(played, load) if chosen.json else _table(played, load))  # noqa: T201
    return 1 if played.problems else 0


async def _play(play: Callable[[Play], Awaitable[None]], played: Play) -> None:
    await play(played)


def _json(played: Play, load: list[float]) -> str:
    rows = [{"what": what, "value": value, "unit": unit} for what, value, unit in played.figures]
    return json.dumps({"load": load, "rows": rows, "problems": played.problems}, ensure_ascii=False, indent=1)


def _table(played: Play, load: list[float]) -> str:
    width = max(len(what) for what, _, _ in played.figures)
    lines = [f"{what:<{width}} | {value:>12,.2f} {unit}" for what, value, unit in played.figures]
    return "\n".join(
        [*lines, *played.problems, f"load of the machine before and after (1 min): {load[0]:.1f}, {load[1]:.1f}"]
    )


def numbers(text: str) -> list[int]:
    """Read whole numbers with commas in between."""
    return [int(part) for part in text.split(",")]


def value(dsn: str, query: str) -> Any:
    """Return one value of the database."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        row = connection.execute(query).fetchone()
    return row[0] if row else None


def memory(pid: int) -> tuple[float, float]:
    """RSS and PSS of a process in MB; PSS counts what is shared with others in part."""
    found = psutil.Process(pid).memory_full_info()
    return found.rss / 1e6, getattr(found, "pss", found.rss) / 1e6
