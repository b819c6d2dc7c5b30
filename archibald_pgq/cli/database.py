"""Commands about the database: migrate, psql; and which database a command looks at."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import typer
from psycopg.conninfo import conninfo_to_dict

from archibald_pgq import config
from archibald_pgq.config import Settings
from archibald_pgq.errors import ConfigError
from archibald_pgq.store import migrations
from archibald_pgq.store.dsn import redacted
from archibald_pgq.store.embedded import find_psql
from archibald_pgq.store.target import Target, demo_folder, open_target

# What libpq reads from the environment, so that no password is ever in argv.
_ENVIRONMENT = {
    "host": "PGHOST",
    "hostaddr": "PGHOSTADDR",
    "port": "PGPORT",
    "dbname": "PGDATABASE",
    "user": "PGUSER",
    "password": "PGPASSWORD",
    "sslmode": "PGSSLMODE",
    "sslrootcert": "PGSSLROOTCERT",
    "sslcert": "PGSSLCERT",
    "sslkey": "PGSSLKEY",
    "options": "PGOPTIONS",
    "target_session_attrs": "PGTARGETSESSIONATTRS",
    "connect_timeout": "PGCONNECT_TIMEOUT",
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
            migrations.upgrade(target.dsn)
        typer.echo(f"{redacted(target.dsn)}: schema archibald is at revision {migrations.CODE_REVISION}")


def psql(context: typer.Context) -> None:
    """Open psql on the queue's database; arguments go to psql, such as -c "select * from archibald.all_jobs"."""
    settings = config.load()
    program = find_psql()
    if program is None:
        raise ConfigError("there is no psql, neither bundled nor on PATH; install PostgreSQL's client programs")
    with open_for_looking(settings) as target:
        parts = conninfo_to_dict(target.dsn)
        given = {
            _ENVIRONMENT[key]: str(value) for key, value in parts.items() if key in _ENVIRONMENT and value is not None
        }
        # psql handles Ctrl-C itself (it cancels the query); this process only waits for it
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            ended = subprocess.run(  # the program is psql, the arguments are the user's own
                [str(program), *context.args],
                env={**os.environ, **given},
                check=False,
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # no threads yet
            )
        finally:
            signal.signal(signal.SIGINT, before)
    raise typer.Exit(ended.returncode)
