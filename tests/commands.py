"""Running the command line as users do: a process of its own for each command, with a clean environment."""

from __future__ import annotations

import atexit
import base64
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

CHECKOUT = Path(__file__).resolve().parent.parent
PROGRAM = [sys.executable, "-m", "archibald_pgq"]
PATIENCE = 60.0


@dataclass(frozen=True, slots=True)
class Ended:
    """What a command came to."""

    code: int
    out: str
    err: str

    def refused(self) -> str:
        """Return the sentence of a command that refused its input: one line on stderr, exit code 2, nothing on stdout."""
        assert (self.code, self.out) == (2, ""), self
        assert self.err.startswith("archibald-pgq: "), self
        assert self.err.endswith("\n"), self
        (line,) = self.err.splitlines()
        return line.removeprefix("archibald-pgq: ")

    def usage_error(self) -> str:
        """Return what the framework says about a command line that cannot be parsed: on stderr, exit code 2, no traceback."""
        assert (self.code, self.out) == (2, ""), self
        assert self.err.startswith("Usage: "), self
        assert "Traceback" not in self.err, self
        return self.err.splitlines()[-1]


def environment(database: str | None = None, **variables: str) -> dict[str, str]:
    """Return the environment for a command that looks at `database`."""
    return {
        **os.environ,  # conftest has removed what names databases and settings
        "PYTHONPATH": str(CHECKOUT),
        **({"ARCHIBALD_DATABASE_URL": database} if database is not None else {}),
        **variables,
    }


@dataclass(frozen=True, slots=True)
class Call:
    """One command line with what surrounds it."""

    arguments: tuple[str, ...]
    env: dict[str, str]
    cwd: Path | None = None
    stdin: bytes = b""


def call(
    *arguments: str | bytes,
    database: str | None = None,
    stdin: str | bytes = b"",
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> Call:
    """Prepare a command that looks at `database`, for `together`."""
    return Call(
        tuple(map(os.fsdecode, arguments)),
        environment(database, **(env or {})),
        cwd,
        stdin.encode() if isinstance(stdin, str) else stdin,
    )


def command(*arguments: str | bytes, **surroundings: Any) -> Ended:
    """Run `archibald-pgq` to its end; the keywords are those of `call`."""
    (ended,) = together([call(*arguments, **surroundings)])
    return ended


def together(calls: Iterable[Call]) -> list[Ended]:
    """Run commands one after the other, each in a process of its own.

    A Python that has imported the package forks them, for a start costs half a second. A command that does not end is the test's timeout's
    business.
    """
    server = fork_server()
    assert server.stdin
    assert server.stdout
    ended = []
    try:
        for one in calls:
            surroundings = {
                "arguments": one.arguments,
                "env": one.env,
                "cwd": os.fspath(one.cwd or Path.cwd()),
                "stdin": base64.b64encode(one.stdin).decode(),
            }
            server.stdin.write(f"{json.dumps(surroundings)}\n")
            server.stdin.flush()
            ended.append(Ended(*json.loads(server.stdout.readline())))
    except BaseException:  # a timeout: the next test must not get this one's answer
        server.kill()
        fork_server.cache_clear()
        raise
    return ended


@cache
def fork_server(*arguments: str) -> subprocess.Popen[str]:
    """Start what forks, see `tests/forks.py`; it ends when this process closes its stdin, at the latest by its own end."""
    server = subprocess.Popen(
        [sys.executable, os.fspath(Path(__file__).with_name("forks.py")), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment(),
        text=True,
    )
    atexit.register(_end, server)
    return server


def _end(server: subprocess.Popen[str]) -> None:
    with server:
        assert server.stdin
        server.stdin.close()


def alembic(database: str | None, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Alembic's own command with the top-level alembic.ini."""
    return subprocess.run(
        [sys.executable, "-m", "alembic", *arguments],
        cwd=CHECKOUT,
        env=environment(database),
        capture_output=True,
        text=True,
        check=False,
    )


def fingerprint(database: str) -> dict[str, tuple[int, str]]:
    """Return how many rows each relation of a database's own schemas has, and what they hold; nothing else tells that nothing changed."""
    with psycopg.connect(database, autocommit=True) as connection:
        names = connection.execute(
            "SELECT relnamespace::regnamespace::text, relname FROM pg_class WHERE relkind IN ('r', 'p') "
            "AND relnamespace::regnamespace::text NOT IN ('pg_catalog', 'information_schema') ORDER BY 1, 2"
        ).fetchall()
        found = {}
        for schema, name in names:
            row = connection.execute(
                sql.SQL(
                    "SELECT count(*), md5(coalesce(string_agg(t::text, chr(10) ORDER BY t::text), '')) FROM {} t"
                ).format(sql.Identifier(schema, name))
            ).fetchone()
            assert row is not None
            found[f"{schema}.{name}"] = row
        return found
