"""Another language at the queue: Node.js with its usual driver, the npm package `pg`, which is installed into a folder of the caller's."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from psycopg.conninfo import conninfo_to_dict

PROGRAM = Path(__file__).with_name("node_insert.js")

INSTALL_SECONDS = 120

# Without a network npm would try again for over a minute.
QUIETLY = ("--silent", "--no-audit", "--no-fund", "--fetch-retries=1", "--fetch-retry-mintimeout=1000")


class NoNodeError(Exception):
    """Node, npm or the package is not to be had; the text says which."""


def install(folder: Path) -> None:
    """Install `pg` into `folder`.

    Raises:
        NoNodeError: it cannot be had here.
    """
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            raise NoNodeError(f"there is no {program}")
    install = ["npm", "install", *QUIETLY, "--prefix", os.fspath(folder), "pg@8"]
    try:
        subprocess.run(install, check=True, capture_output=True, cwd=folder, timeout=INSTALL_SECONDS)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        raise NoNodeError(f"npm cannot install the package pg: {type(error).__name__}") from error


def command(folder: Path, database: str) -> tuple[list[str], dict[str, str]]:
    """Return the command line and environment of `node_insert.js` for a database; see its head for what it reads and writes."""
    names = {"host": "PGHOST", "port": "PGPORT", "user": "PGUSER", "password": "PGPASSWORD", "dbname": "PGDATABASE"}
    parts = conninfo_to_dict(database)
    variables = {names[name]: str(parts[name]) for name in names if parts.get(name)}
    return ["node", os.fspath(PROGRAM)], {**os.environ, **variables, "NODE_PATH": os.fspath(folder / "node_modules")}
