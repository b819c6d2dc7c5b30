"""`python -m tests.chaos --seconds N --seed S [--daemons N]`: random faults, then the checker; exit code 1 on a violation.

The folder with the history and the workers' logs is kept in that case, and its path is printed.
"""

from __future__ import annotations

import asyncio
import secrets
import shutil
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from tests.acceptance.faults import own_server
from tests.chaos.conductor import Conductor, Result

console = Console()


def main(
    seconds: Annotated[float, typer.Option(min=1)] = 60,
    seed: Annotated[int | None, typer.Option()] = None,
    daemons: Annotated[int, typer.Option(min=2, max=10)] = 3,
) -> None:
    """Run random faults for so many seconds."""
    seed = secrets.randbelow(1 << 31) if seed is None else seed
    console.print(f"seed {seed}, {seconds:g} s, {daemons} daemons")
    folder = Path(tempfile.mkdtemp(prefix="archibald-chaos-"))
    with own_server() as server:
        result = asyncio.run(Conductor(server, folder, console, seed=seed, seconds=seconds, daemons=daemons).run())
    _show(result)
    if result.violations:
        for sentence in result.violations:
            console.print(sentence, markup=False, soft_wrap=True)
        console.print(f"the history and the logs are kept in {folder}", soft_wrap=True)
        raise typer.Exit(1)
    shutil.rmtree(folder)


def _show(result: Result) -> None:
    table = Table("what", "number")
    rows = {**result.jobs, **{f"fault: {kind}": count for kind, count in sorted(result.faults.items())}}
    rows |= {"takeovers": result.takeovers, "requeues": result.requeues, "violations": len(result.violations)}
    for what, count in rows.items():
        table.add_row(what, str(count))
    console.print(table)


if __name__ == "__main__":
    typer.run(main)
