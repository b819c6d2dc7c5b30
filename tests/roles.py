"""The roles of `archibald-pgq roles` on a test's database: made as a user makes them, with logins in each, and removed again."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from archibald_pgq.store.embedded import find_psql
from tests.commands import command

GROUPS = ("archibald_owner", "archibald_enqueuer", "archibald_worker", "archibald_inspector")
PASSWORD = "Geheim77"


def run_roles_sql(database: str) -> None:
    """As the documents say: `archibald-pgq roles | archibald-pgq psql -v ON_ERROR_STOP=1`."""
    printed = command("roles")
    assert (printed.code, printed.err) == (0, "")
    psql(database, printed.out)


def psql(database: str, script: str) -> None:
    """Run a script as psql does."""
    program = find_psql()
    assert program is not None
    ended = subprocess.run(
        [os.fspath(Path(program)), "-v", "ON_ERROR_STOP=1", "-q", "-d", database],
        input=script,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr


@contextlib.contextmanager
def logins(database: str, **groups: str) -> Iterator[dict[str, str]]:
    """Make a login for each name, a member of its group (or of none, if that is empty); yield their URLs; all is removed at the end.

    The roles of the groups go with them.
    """
    with psycopg.connect(database, autocommit=True) as admin:
        made: list[str] = []
        try:
            for name, group in groups.items():
                admin.execute(
                    sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(sql.Identifier(name), sql.Literal(PASSWORD))
                )
                made.append(name)
                if group:
                    admin.execute(sql.SQL("GRANT {} TO {}").format(sql.Identifier(group), sql.Identifier(name)))
            yield {name: make_conninfo(database, user=name, password=PASSWORD) for name in groups}
        finally:
            there = {name for (name,) in admin.execute("SELECT rolname FROM pg_roles")}
            for name in [*made, *(group for group in GROUPS if group in there)]:
                admin.execute(sql.SQL("DROP OWNED BY {} CASCADE").format(sql.Identifier(name)))
                admin.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(name)))
