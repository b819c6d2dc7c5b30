"""The SQL that people read: one file per database function or hot statement, each with its purpose and lock order at its head.

Owns: finding these files. Functions are versioned (`turn.v1.sql`): a changed function is a new file and a new migration, and a file
that a migration reads is never edited again.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

_HERE = Path(__file__).resolve().parent


@cache
def function(name: str) -> str:
    """Return the DDL of a versioned database function, such as `turn.v1`."""
    return (_HERE / "functions" / f"{name}.sql").read_text(encoding="utf-8")


@cache
def statement(name: str) -> str:
    """Return a statement with psycopg's `%(name)s` parameters, such as `enqueue`."""
    return (_HERE / f"{name}.sql").read_text(encoding="utf-8")
