"""`archibald-pgq demo`: parse, call, print."""

from __future__ import annotations

import json
from typing import Annotated

import typer

SLOWEST, FASTEST = 0.1, 20.0
INTERRUPTED = 130


def demo(
    speed: Annotated[float, typer.Option(help="Play the day so many times as fast.")] = 1.0,
    database: Annotated[str | None, typer.Option(help="DSN of an empty database (default: one of its own).")] = None,
    browser: Annotated[
        bool, typer.Option("--browser", help="Drive real browsers; else the ERP's pages over HTTP, which is faster.")
    ] = False,
    json_output: Annotated[bool, typer.Option("--json", help="Print the summary as JSON, progress on stderr.")] = False,
) -> None:
    """Play a day of 60 agents against a slow ERP (about 70 seconds).

    What the ERP counted is compared with what the queue says.
    """
    # Imported here: the ERP's web server and client would cost every other command a tenth of a second.
    from rich.console import Console

    from archibald_pgq.demo.display import print_summary
    from archibald_pgq.demo.run import run
    from archibald_pgq.processes.children import ChildDiedError

    # Written so that NaN is refused, too.
    if not SLOWEST <= speed <= FASTEST:
        raise typer.BadParameter(
            f"{speed:g} is no speed; it must be from {SLOWEST:g} to {FASTEST:g}", param_hint="--speed"
        )
    try:
        summary = run(speed, database, Console(stderr=json_output), browser=browser)
    except KeyboardInterrupt:
        typer.echo("interrupted; the demo's processes have ended", err=True)
        raise typer.Exit(INTERRUPTED) from None
    except ChildDiedError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None
    if json_output:
        typer.echo(json.dumps(summary.as_json(), indent=2))
    else:
        print_summary(Console(), summary)
    raise typer.Exit(1 if summary.problems else 0)
