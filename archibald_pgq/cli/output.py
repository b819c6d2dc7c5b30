"""How results get out: tables for people, JSON for pipes, one sentence where that is enough.

Owns: stdout, the console, and how a value is shown whatever it holds. Guarantees: what was read from the database is never obeyed by a
terminal; a reader that stops reading gets no traceback. Must not: know what a job or an agent is.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console, OverflowMethod, RenderableType
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

PIPE_WIDTH = 200
"""Columns of a table that goes into a pipe, where there is no terminal to ask."""

PIECE = 4096
"""Characters that are written at once."""

READER_GONE = 141
"""Exit code when nobody reads on: what a shell shows for a program that SIGPIPE ended."""


def say(text: str) -> None:
    """Print a text and a line break."""
    _write(f"{text}\n")


def print_json(value: object) -> None:
    """Print one JSON document."""
    say(json.dumps(value, ensure_ascii=not _unicode(), indent=2 if sys.stdout.isatty() else None))


def as_json(record: DataclassInstance) -> dict[str, Any]:
    """Return a record with the names of its columns as keys, and times in ISO 8601."""
    names = {"job_class": "class"}  # Python reserves the column's own name
    return {names.get(field.name, field.name): _value(getattr(record, field.name)) for field in fields(record)}


def _value(value: Any) -> Any:
    if isinstance(value, list):
        return [_value(each) for each in value]
    if is_dataclass(value) and not isinstance(value, type):
        return as_json(value)
    return value.isoformat() if isinstance(value, datetime) else value


def width() -> int:
    """Return the number of columns that a table may take."""
    return _console().width


def show(*parts: RenderableType) -> None:
    """Print tables and texts for people; in a pipe without colours, and without blanks that would wrap on a narrow screen."""
    screen = _console()
    with screen.capture() as captured:
        screen.print(*parts, sep="\n")
    text = captured.get()
    _write(text if sys.stdout.isatty() else "".join(f"{line.rstrip()}\n" for line in text.splitlines()))


def show_list(table: Table, records: Sequence[object], limit: int) -> None:
    """Print a table of records; a person is told if there may be more of them than `limit`."""
    if sys.stdout.isatty() and len(records) == limit:
        show(table, Text(f"at most {limit} are shown; --limit changes that", "dim"))
    else:
        show(table)


def listing() -> Table:
    """Return an empty table for a list, one record a row; a column with a ratio takes the columns that the others leave."""
    return Table(box=None, pad_edge=False, header_style="bold", expand=True)


def cut() -> OverflowMethod:
    """Return how a text that is too long is cut: with an ellipsis where the output has a letter for it."""
    return "ellipsis" if _unicode() else "crop"


def plain(value: object, style: str = "") -> Text:
    """Return a value as it is: no markup, no :emoji:, and what is no letter here made visible, for a terminal would obey it."""
    encoding = sys.stdout.encoding or "ascii"
    # before the table is laid out: \xfc takes more columns than one letter
    text = str(value).encode(encoding, "backslashreplace").decode(encoding)
    return Text(
        "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text), style
    )


def in_one_line(value: object, style: str = "") -> Text:
    """Return a value as `plain` does, its line breaks as blanks."""
    return plain(str(value).replace("\n", " "), style)


def _unicode() -> bool:
    return (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"


def _console() -> Console:
    return Console(width=None if sys.stdout.isatty() else PIPE_WIDTH, soft_wrap=False, highlight=False)


def _write(text: str) -> None:
    try:
        # in pieces: an unbuffered stdout (PYTHONUNBUFFERED) gives up a long text without a word when its reader goes
        for start in range(0, len(text), PIECE):
            sys.stdout.write(text[start : start + PIECE])
        sys.stdout.flush()
    except BrokenPipeError:
        # or the interpreter would try once more at its end, and complain
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(READER_GONE) from None
