"""`archibald-pgq bench`: parse, call, print."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from archibald_pgq.cli.output import plain, print_json, show
from archibald_pgq.cli.queue import AsJson

if TYPE_CHECKING:
    from archibald_pgq.bench.report import Report

BROKEN = 1
"""Exit code when a promise was broken."""

INTERRUPTED = 130


def bench(
    scenes: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[SCENE]...",
            help="drain, enqueue, pickup, serial, hot, backlog; all if none is named.",
            show_default=False,
        ),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Small sizes, one round: seconds instead of minutes.")] = False,
    as_json_: AsJson = False,
) -> None:
    """Measure this queue on this server, in databases of its own.

    Each figure stands beside what the server does at most.
    """
    # Imported here: every other command would pay for it.
    from archibald_pgq.bench.run import run
    from archibald_pgq.bench.scenes import SCENES
    from archibald_pgq.bench.stage import BenchError
    from archibald_pgq.processes.children import ChildDiedError

    for name in scenes or ():
        if name not in SCENES:
            raise typer.BadParameter(f"there is no scene {name!r}; there are {', '.join(SCENES)}", param_hint="SCENE")
    try:
        with _progress() as say:
            report = run(scenes or list(SCENES), say, quick=quick)
    except KeyboardInterrupt:
        typer.echo("interrupted; the databases of the bench are removed", err=True)
        raise typer.Exit(INTERRUPTED) from None
    except (ChildDiedError, BenchError) as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(BROKEN) from None
    if as_json_:
        print_json(report.as_json())
    else:
        show(*_tables(report))
    for problem in report.problems:
        typer.echo(problem, err=True)
    if report.problems:
        raise typer.Exit(BROKEN)


@contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """Show on stderr what is played: in one line that changes on a terminal, else a line each."""
    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        yield lambda text: console.print(plain(text), soft_wrap=True)
        return
    with console.status("starting") as status:
        yield lambda text: status.update(plain(text))


def _tables(report: Report) -> Iterator[Table]:
    server = Table(box=None, pad_edge=False, show_header=False)
    server.add_row("server", f"PostgreSQL {report.server_version}; one connection, plain SQL:")
    server.add_row("", f"{report.limits.round_trips:,.0f} round trips/s (SELECT 1)")
    server.add_row("", f"{report.limits.commits:,.0f} commits/s (INSERT of one row)")
    server.add_row("", f"{report.limits.copied_rows:,.0f} rows/s (COPY)")
    server.add_row()
    yield server
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("scene", no_wrap=True)
    table.add_column("what", overflow="fold")
    table.add_column("median", justify="right", no_wrap=True)
    table.add_column("beside", justify="right")
    table.add_column("ratio", justify="right", no_wrap=True)
    for row in report.rows:
        by = "" if row.by is None else f"{_figure(row.by)} {row.beside}"
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
        table.add_row(row.scene, plain(row.what), f"{_figure(row.median)} {row.unit}", by, ratio)
    yield table


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"
