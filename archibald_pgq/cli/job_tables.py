"""Jobs on the screen: one, a list, and those that need a person."""

from __future__ import annotations

import json
from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from archibald_pgq.cli.output import cut, in_one_line, listing, plain
from archibald_pgq.cli.times import clock, distance, when
from archibald_pgq.domain.job import JobRecord
from archibald_pgq.domain.states import State

COLOURS = {"running": "cyan", "completed": "green", "failed": "red", "needs_review": "magenta", "cancelled": "dim"}

ROOMY = 120
"""Columns from which on a list has room for dates."""

PAYLOAD_SHOWN = 300
"""Characters of a payload in the review; the command `job` shows all of it."""

HOW_TO_DECIDE = (
    "Look where the job acts whether it was done.\n"
    "  done:      archibald-pgq discard ID   puts it away\n"
    "  not done:  archibald-pgq retry ID     runs it again"
)


def job_table(record: JobRecord, retries: Sequence[JobRecord]) -> Table:
    """Return one job as a table of names and values; `retries`: the jobs that it was run again as."""
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    rows: list[tuple[str, object]] = [
        ("job", record.id),
        ("user_id", record.user_id),
        ("kind", f"{record.kind} ({record.job_class}, priority {record.priority})"),
        ("state", _state(record)),
        ("attempts", f"{record.attempt} of {record.max_attempts} spent"),
        ("requeued", f"{record.requeue_count} times" if record.requeue_count else None),
        ("workers lost", record.losses or None),
        ("worker", record.worker_id),
        ("progress", None if record.progress is None else _progress(record)),
        ("key", record.idempotency_key),
        ("created", when(record.created_at)),
        ("not before", when(record.run_after) if record.wait_reason else None),
        ("started", when(record.started_at)),
        ("finished", when(record.finished_at)),
        ("retried from", record.retried_from),
        ("retried by", ", ".join(f"{job.id} ({job.state})" for job in retries)),
        ("payload", json.dumps(record.payload, ensure_ascii=False)),
        ("result", None if record.result is None else json.dumps(record.result, ensure_ascii=False)),
        ("error", record.error),
        ("to decide", f"retry {record.id}, or discard {record.id}" if record.state == State.NEEDS_REVIEW else None),
    ]
    for name, value in rows:
        if value not in (None, ""):
            table.add_row(name, value if isinstance(value, Text) else plain(value))
    return table


def jobs_table(records: Sequence[JobRecord], width: int) -> Table:
    """Return jobs as a table, one a row, for `width` columns."""
    table = listing()
    table.add_column("id", justify="right", no_wrap=True)
    table.add_column("user_id", overflow="fold", max_width=max(10, width // 5))
    table.add_column("kind", no_wrap=True, overflow=cut())
    table.add_column("state", no_wrap=True)
    table.add_column("created", no_wrap=True)
    table.add_column("note", overflow=cut(), no_wrap=True, ratio=1)
    for record in records:
        table.add_row(
            str(record.id),
            plain(record.user_id),
            plain(record.kind),
            _state(record),
            clock(record.created_at)[5:] if width >= ROOMY else distance(record.created_at),
            in_one_line(_note(record)),
        )
    return table


def review_table(records: Sequence[JobRecord]) -> Table:
    """Return the jobs that need a person: each with what was asked for, and why it stopped."""
    table = Table(show_header=False, box=None, pad_edge=False, padding=(0, 2, 1, 0))
    table.add_column(justify="right", no_wrap=True, vertical="top", style="bold")
    table.add_column(overflow="fold")
    for record in records:
        payload = json.dumps(record.payload, ensure_ascii=False)
        if len(payload) > PAYLOAD_SHOWN:
            payload = f"{payload[:PAYLOAD_SHOWN]} and more: archibald-pgq job {record.id}"
        table.add_row(
            str(record.id),
            Text("\n").join(
                [
                    plain(f"{record.kind} of {record.user_id}, asked for {distance(record.created_at)}", "magenta"),
                    plain(payload),
                    plain(f"started {when(record.started_at)}"),
                    plain(f"stopped: {record.error or 'nobody knows why'}"),
                ]
            ),
        )
    return table


def _state(record: JobRecord) -> Text:
    text = f"{record.state} ({record.wait_reason})" if record.wait_reason else str(record.state)
    return Text(text, COLOURS.get(record.state, ""))


def _progress(record: JobRecord) -> str:
    return f"{record.progress} % {record.progress_label or ''}"


def _note(record: JobRecord) -> str:
    if record.error:
        return record.error
    if record.progress is not None and not record.finished:
        return _progress(record)
    return f"requeued {record.requeue_count} times" if record.requeue_count else ""
