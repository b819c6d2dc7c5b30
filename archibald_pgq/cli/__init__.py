"""The command line: parse, call, print.

Guarantees: what a user got wrong is one sentence on stderr and exit code 2, never a traceback, and what a job's state does not allow is one
with exit code 1; nothing is printed to stdout but what was asked for. Must not: hold SQL or decisions about jobs.
"""

from __future__ import annotations

import io
import sys
from typing import Annotated

import typer

from archibald_pgq.app import VERSION
from archibald_pgq.cli import agents, database, jobs, overview, review
from archibald_pgq.cli.bench import bench
from archibald_pgq.cli.demo import demo
from archibald_pgq.cli.doctor import doctor
from archibald_pgq.cli.evidence import evidence
from archibald_pgq.cli.explain import explain
from archibald_pgq.cli.health import health
from archibald_pgq.cli.run import run
from archibald_pgq.errors import ArchibaldError, JobStateError

NOT_DONE = 1
BAD_INPUT = 2

app = typer.Typer(
    name="archibald-pgq",
    help="A Postgres job queue for work that must go one at a time per key.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"archibald-pgq {VERSION}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """A Postgres job queue for work that must go one at a time per key."""


app.command()(run)
app.command()(database.migrate)
app.command()(database.roles)
app.command()(jobs.enqueue)
app.command()(jobs.job)
app.command(name="jobs")(jobs.jobs)
app.command()(explain)
app.command()(evidence)
app.command()(jobs.cancel)
app.command(name="agents")(agents.agents)
app.add_typer(agents.agent, name="agent")
app.command()(overview.stats)
app.command()(overview.workers)
app.command()(doctor)
app.command()(health)
app.command(name="review")(review.review)
app.command()(review.retry)
app.command()(review.discard)
app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []})(
    database.psql
)
app.command()(demo)
app.command()(bench)


def main() -> None:
    """Run the command line and exit the process."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a user_id may hold what this terminal has no letter for
    try:
        app()
    except ArchibaldError as error:
        # one line, whatever a message quotes
        sys.stderr.write(f"archibald-pgq: {' '.join(str(error).split())}\n")
        sys.exit(NOT_DONE if isinstance(error, JobStateError) else BAD_INPUT)
