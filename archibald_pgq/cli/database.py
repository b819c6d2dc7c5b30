"""Commands about the database: migrate, roles, psql; and which database a command looks at."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import typer
from psycopg.conninfo import conninfo_to_dict
from psycopg.pq import Conninfo

from archibald_pgq import config
from archibald_pgq.cli.output import say
from archibald_pgq.config import Settings
from archibald_pgq.errors import ConfigError
from archibald_pgq.store import migrations
from archibald_pgq.store.dsn import redacted
from archibald_pgq.store.embedded import find_psql
from archibald_pgq.store.target import Target, demo_folder, open_target


def _environment(dsn: str) -> dict[str, str]:
    """Return `dsn` as the variables that libpq reads, so that no password is ever in argv."""
    names = {option.keyword.decode(): option.envvar.decode() for option in Conninfo.get_defaults() if option.envvar}
    return {
        names[key]: str(value) for key, value in conninfo_to_dict(dsn).items() if key in names and value is not None
    }


def open_for_looking(settings: Settings) -> Target:
    """Open the database that a command without any choice looks at; says so if that is a running demo's."""
    target = open_target(None, settings, look_at_demo=True)
    if target.server is not None and demo_folder(settings) in (target.server.data_dir, *target.server.data_dir.parents):
        sys.stderr.write("(looking at the running demo)\n")
    return target


def migrate() -> None:
    """Bring the database to this version's schema."""
    settings = config.load()
    with open_target(None, settings) as target:
        if not target.embedded:
            migrations.upgrade(settings.direct_url or target.dsn, lambda text: typer.echo(text, err=True))
        typer.echo(f"{redacted(target.dsn)}: schema archibald is at revision {migrations.CODE_REVISION}")


def roles() -> None:
    """Print the SQL that makes the database's roles.

    Read it, and give it to psql as a superuser: `archibald-pgq roles | archibald-pgq psql -v ON_ERROR_STOP=1`.
    """
    say(migrations.roles_sql().rstrip())


def psql(context: typer.Context) -> None:
    """Open psql on the queue's database; it gets all arguments."""
    settings = config.load()
    program = find_psql()
    if program is None:
        raise ConfigError("there is no psql, neither bundled nor on PATH; install PostgreSQL's client programs")
    with open_for_looking(settings) as target:
        # psql handles Ctrl-C itself (it cancels the query); this process only waits for it
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            ended = subprocess.run(  # the program is psql, the arguments are the user's own
                [str(program), *context.args],
                env={**os.environ, **_environment(target.dsn)},
                check=False,
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # no threads yet
            )
        finally:
            signal.signal(signal.SIGINT, before)
    raise typer.Exit(ended.returncode)
