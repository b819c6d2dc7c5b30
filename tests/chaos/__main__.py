"""`python -m tests.chaos --seconds N --seed S`: random faults, then the checker; exit code 1 on a violation.

The folder with the history and the workers' logs is kept in that case, and its path is printed. `--mutant NAME` spoils the product first.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from tests.acceptance.faults import own_server
from tests.chaos.conductor import Conductor, Result
from tests.chaos.mutants import MUTANTS

console = Console(stderr="--json" in sys.argv)


def main(  # noqa: PLR0917  # typer names them
    seconds: Annotated[float, typer.Option(min=1)] = 60,
    seed: Annotated[
        int | None, typer.Option(help="The same seed plays the same faults; without one, by chance.")
    ] = None,
    daemons: Annotated[int, typer.Option(min=2, max=10)] = 4,
    mutant: Annotated[str | None, typer.Option(help=f"Spoil the product first: {', '.join(MUTANTS)}.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    keep: Annotated[bool, typer.Option(help="Keep the history and the logs in any case.")] = False,
) -> None:
    """Run random faults for so many seconds."""
    if mutant is not None and mutant not in MUTANTS:
        raise typer.BadParameter(f"there is no {mutant}; there are {', '.join(MUTANTS)}", param_hint="--mutant")
    spoilt = MUTANTS[mutant] if mutant is not None else None
    seed = secrets.randbelow(1 << 31) if seed is None else seed
    console.print(
        f"seed {seed}, {seconds:g} s, {daemons} workers" + (f"; {spoilt.broken}" if spoilt else ""), highlight=False
    )
    folder = Path(tempfile.mkdtemp(prefix="archibald-chaos-"))
    columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
    with own_server(max_connections="120") as server, Progress(*columns, console=console, transient=True) as progress:
        conductor = Conductor(server, folder, progress, seed=seed, seconds=seconds, daemons=daemons, mutant=spoilt)
        result = asyncio.run(conductor.run())
    if as_json:
        print(json.dumps({"seed": seed, "seconds": seconds, "mutant": mutant, "folder": str(folder), **vars(result)}))  # noqa: T201
    else:
        _show(result)
    for sentence in result.violations:
        console.print(sentence, markup=False, highlight=False, soft_wrap=True)
    if result.violations or keep:
        console.print(f"the history and the logs are kept in {folder}", highlight=False, soft_wrap=True)
    else:
        shutil.rmtree(folder)
    if result.violations:
        raise typer.Exit(1)


def _show(result: Result) -> None:
    table = Table("what", "number")
    table.columns[1].justify = "right"
    for part in (
        {f"jobs {state}": count for state, count in sorted(result.jobs.items())},
        {f"fault: {kind}": count for kind, count in sorted(result.faults.items())},
        result.counts,
        {"from the last fault to the last end": f"{result.last_end:.1f} s"},
        {"longest time an agent stood still": f"{result.longest_still:.1f} s", "violations": len(result.violations)},
    ):
        for what, count in part.items():
            table.add_row(what, str(count))
        table.add_section()
    console.print(table)


if __name__ == "__main__":
    typer.run(main)
