"""How results look: rich tables for people, JSON for pipes."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from archibald_pgq.domain.job import JobRecord

PIPE_WIDTH = 200
"""Columns of a table that goes into a pipe, where there is no terminal to ask."""

COLOURS = {"running": "cyan", "completed": "green", "failed": "red", "needs_review": "magenta", "cancelled": "dim"}


def console() -> Console:
    """Return the console for stdout."""
    return Console(width=None if sys.stdout.isatty() else PIPE_WIDTH, soft_wrap=False, highlight=False)


def print_json(value: object) -> None:
    """Print one JSON document."""
    unicode = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    sys.stdout.write(json.dumps(value, ensure_ascii=not unicode, indent=2 if sys.stdout.isatty() else None) + "\n")


def as_json(record: JobRecord) -> dict[str, Any]:
    """Return a job with the column names of `archibald.all_jobs` as keys, and times in ISO 8601."""
    names = {"job_class": "class"}
    return {
        names.get(name, name): value.isoformat() if isinstance(value := getattr(record, name), datetime) else value
        for name in JobRecord.__slots__
    }


def _time(value: datetime | None) -> str:
    if value is None:
        return ""
    try:
        return value.astimezone().strftime("%Y-%m-%d %H:%M:%S")
    except (
        OverflowError,
        ValueError,
    ):  # the first or the last date that there is, shifted out of the calendar by this time zone
        return value.strftime("%Y-%m-%d %H:%M:%S")


def _state(record: JobRecord) -> Text:
    text = f"{record.state} ({record.wait_reason})" if record.wait_reason else str(record.state)
    return Text(text, COLOURS.get(record.state, ""))


def plain(value: object) -> Text:
    """Return a value as it is: no markup, no :emoji:, and control characters made visible, for a terminal would obey them."""
    return Text("".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in str(value)))


def job_table(record: JobRecord) -> Table:
    """Return one job as a table of names and values."""
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    rows: list[tuple[str, object]] = [
        ("job", record.id),
        ("user_id", record.user_id),
        ("kind", f"{record.kind} ({record.job_class}, priority {record.priority})"),
        ("attempts", f"{record.attempt} of {record.max_attempts} spent"),
        ("requeued", f"{record.requeue_count} times" if record.requeue_count else None),
        ("workers lost", record.losses or None),
        ("worker", record.worker_id),
        ("progress", None if record.progress is None else f"{record.progress} % {record.progress_label or ''}"),
        ("key", record.idempotency_key),
        ("created", _time(record.created_at)),
        ("not before", _time(record.run_after) if record.wait_reason else None),
        ("started", _time(record.started_at)),
        ("finished", _time(record.finished_at)),
        ("retried from", record.retried_from),
        ("payload", json.dumps(record.payload, ensure_ascii=False)),
        ("result", None if record.result is None else json.dumps(record.result, ensure_ascii=False)),
        ("error", record.error),
    ]
    for name, value in rows:
        if value not in (None, ""):
            table.add_row(name, plain(value))
        if name == "kind":
            table.add_row("state", _state(record))
    return table


def jobs_table(records: Sequence[JobRecord], width: int) -> Table:
    """Return jobs as a table, one a row, for `width` columns."""
    # expand: the note takes what the others leave; a long user_id is folded
    table = Table(box=None, pad_edge=False, header_style="bold", expand=True)
    table.add_column("id", justify="right", no_wrap=True)
    table.add_column("user_id", overflow="fold", max_width=max(10, width // 5))
    table.add_column("kind", no_wrap=True)
    table.add_column("state", no_wrap=True)
    table.add_column("created", no_wrap=True)
    table.add_column("note", overflow="ellipsis", no_wrap=True, ratio=1)
    for record in records:
        table.add_row(
            str(record.id),
            plain(record.user_id),
            plain(record.kind),
            _state(record),
            _time(record.created_at)[5:],
            plain(_note(record).replace("\n", " ")),
        )
    return table


def _note(record: JobRecord) -> str:
    if record.error:
        return record.error
    if record.progress is not None and not record.finished:
        return f"{record.progress} % {record.progress_label or ''}"
    return f"requeued {record.requeue_count} times" if record.requeue_count else ""
