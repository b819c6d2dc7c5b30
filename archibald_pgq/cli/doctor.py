"""`archibald-pgq doctor`: what is wrong with the queue and its database, and what to do about it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from archibald_pgq import config
from archibald_pgq.cli.database import open_for_looking
from archibald_pgq.cli.output import as_json, in_one_line, print_json, show
from archibald_pgq.cli.queue import AsJson
from archibald_pgq.domain.doctor.finding import Finding, Severity

SERIOUS = 1
"""Exit code when a finding is serious."""

COLOURS = {Severity.OK: "green", Severity.NOTICE: "yellow", Severity.SERIOUS: "bold red"}


def doctor(
    fix: Annotated[bool, typer.Option("--fix", help="First repair lanes that contradict their jobs.")] = False,
    as_json_: AsJson = False,
) -> None:
    """Look for what is wrong, and name the remedies. Exit code 1 if anything is serious."""
    from archibald_pgq.store import doctor as store  # no other command needs to read all its SQL

    settings = config.load()
    with open_for_looking(settings) as target:
        mended = store.mend(target.dsn, settings.max_losses) if fix else []
        findings = store.examine(target.dsn, settings, settings.direct_url)
    for lane in mended:
        sys.stderr.write(f"repaired the lane of {in_one_line(lane.user_id)}: {lane.fault.replace('_', ' ')}\n")
    if as_json_:
        print_json([as_json(finding) for finding in findings])
    else:
        show(_table(findings))
    if any(finding.severity is Severity.SERIOUS for finding in findings):
        raise typer.Exit(SERIOUS)


def _table(findings: Sequence[Finding]) -> Table:
    """Return the findings as a table, the remedy below what was found, so that both fit into 80 columns."""
    table = Table(box=None, pad_edge=False, header_style="bold", expand=True)
    table.add_column("check", no_wrap=True)
    table.add_column("is", no_wrap=True)
    table.add_column("found", overflow="fold", ratio=1)
    for finding in findings:
        found = in_one_line(finding.found)
        if finding.remedy is not None:
            found = Text.assemble(found, "\n", in_one_line(f"→ {finding.remedy}", "bold"))
        table.add_row(finding.name, Text(finding.severity, COLOURS[finding.severity]), found)
    return table
