"""Which user runs the server, and what that user can reach.

Owns: the choice of an unprivileged user when the command runs as root (PostgreSQL refuses to run as root), the check
of what that user can enter, and a copy of the wheel's programs where their own place is closed to that user.
Guarantees: no user is created and nothing outside the data folder is changed. Must not: start the server.
"""

from __future__ import annotations

import errno
import os
import pwd
import shutil
import stat
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from archibald_pgq.errors import ConfigError, DatabaseError
from archibald_pgq.processes.forking import opening
from archibald_pgq.store.embedded.layout import Layout
from archibald_pgq.store.embedded.programs import WHEEL, Programs

_CANDIDATES = ("postgres", "nobody")
_PASSABLE_FOR_ALL = stat.S_IXGRP | stat.S_IXOTH
_FOLDERS_OF_A_SERVER = ("bin", "lib", "share")


class RunAs(TypedDict, total=False):
    """The part of subprocess.Popen's arguments that changes the user."""

    user: int
    group: int
    extra_groups: list[int]


@dataclass(frozen=True, slots=True)
class Account:
    """A user other than the one that this process runs as."""

    name: str
    uid: int
    gid: int

    def run_as(self) -> RunAs:
        """What makes subprocess run a program as this user, without any other group."""
        return {"user": self.uid, "group": self.gid, "extra_groups": []}


def account_for(layout: Layout) -> Account | None:
    """The user that initdb and postgres must run as; None: the one that this process runs as, which is not root.

    A data folder that exists keeps its user.

    Raises:
        ConfigError: this is root, and there is no unprivileged user.
    """
    if os.geteuid() != 0:
        return None
    known = {entry.pw_uid: entry for entry in pwd.getpwall() if entry.pw_name in _CANDIDATES and entry.pw_uid != 0}
    if layout.private.exists() and (owner := layout.private.stat()).st_uid != 0:
        name = known[owner.st_uid].pw_name if owner.st_uid in known else f"number {owner.st_uid}"
        return Account(name, owner.st_uid, owner.st_gid)
    for candidate in _CANDIDATES:
        for entry in known.values():
            if entry.pw_name == candidate:
                return Account(entry.pw_name, entry.pw_uid, entry.pw_gid)
    raise ConfigError(
        "PostgreSQL cannot run as root, and this system has neither the user postgres nor nobody to run it as: run "
        "the command as an ordinary user, or set ARCHIBALD_DATABASE_URL to a database that runs already"
    )


def prepare_folder(layout: Layout) -> Account | None:
    """Make the data folder, open for passing to the server's user when that is another one.

    Returns:
        the server's user, as `account_for`.

    Raises:
        ConfigError: the folder cannot be made or used, or the server's user cannot reach it.
    """
    account = account_for(layout)
    try:
        if account is not None:
            # First what is not ours, so that a folder that cannot work is not even made.
            _require_passable(account, layout, [path for path in reversed(layout.root.parents) if path.exists()])
        layout.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        owner = layout.root.stat().st_uid
        if owner != os.geteuid():
            # Root, too, stays out: the owner could not use what it left there, and could mislead it by links.
            raise PermissionError(f"it belongs to user number {owner}")
        if account is not None:
            if layout.private.exists() or not any(layout.root.iterdir()):  # ours: else it is left as it is
                layout.root.chmod(layout.root.stat().st_mode | _PASSABLE_FOR_ALL)
            _require_passable(account, layout, [*reversed(layout.root.parents), layout.root])
        elif not os.access(layout.root, os.R_OK | os.W_OK | os.X_OK):
            raise PermissionError("its owner may not write to it")
    except OSError as error:
        raise ConfigError(
            f"the data folder {str(layout.root)!r} cannot be used ({error.strerror or error}): run the command as the "
            "user to whom it belongs, or set ARCHIBALD_DATA_DIR to another folder"
        ) from error
    return account


def make_private(layout: Layout, account: Account | None) -> None:
    """Make the server's own folder, which only its user (and root) can enter.

    Raises:
        OSError: it cannot be made.
    """
    layout.private.mkdir(mode=0o700, exist_ok=True)
    if account is not None and layout.private.stat().st_uid == 0:
        os.chown(layout.private, account.uid, account.gid)


def reachable(programs: Programs, account: Account | None, layout: Layout) -> Path:
    """The folder of programs for the server's user: their own place, else a copy in the data folder.

    Raises:
        DatabaseError: the user cannot reach them, and they are not the wheel's, whose files work elsewhere.
        OSError: the copy failed.
    """
    home = programs.bin.parent
    needed = [*reversed(programs.bin.parents), programs.bin, programs.bin / "postgres", programs.bin / "initdb"]
    if (
        account is None
        or _first_closed(account, [*needed, *(p for p in (home / "share", home / "lib") if p.exists())]) is None
    ):
        return programs.bin
    if home.parent.name != WHEEL:
        raise DatabaseError(
            f"the user {account.name}, who runs the embedded server for root, cannot run PostgreSQL's programs in "
            f"{str(programs.bin)!r}: set ARCHIBALD_PG_BIN to programs that everyone can run, or unset it"
        )
    server = (programs.bin / "postgres").stat()
    copy = layout.programs / f"{programs.major}-{server.st_size}-{server.st_mtime_ns}"  # another wheel, another name
    if not copy.exists():
        if layout.programs.exists():  # of an earlier wheel, or not finished
            shutil.rmtree(layout.programs)
        unfinished = layout.programs / "unfinished"
        for folder in _FOLDERS_OF_A_SERVER:
            _copy_tree(home / folder, unfinished / WHEEL / home.name / folder)
        libraries = home.parent.with_name(f"{WHEEL}.libs")  # the programs' RPATH is relative to it
        if libraries.is_dir():
            _copy_tree(libraries, unfinished / libraries.name)
        for made in (layout.programs, unfinished, *(path for path in unfinished.rglob("*") if path.is_dir())):
            made.chmod(0o755)
        unfinished.rename(copy)
    return copy / WHEEL / home.name / "bin"


def _copy_tree(source: Path, target: Path) -> None:
    """Hard-link files that everyone may read, copy the others and those of another file system."""

    def link_or_copy(file: str, to: str) -> None:
        mode = Path(file).stat().st_mode
        if mode & stat.S_IROTH:
            try:
                os.link(file, to)
            except OSError as error:
                if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP):
                    raise  # a full disk, for example; the others: another file system, or one without links
            else:
                return
        # Not a link: giving that to others would give the original, which is not ours to give.
        shutil.copyfile(file, to)
        Path(to).chmod(0o755 if mode & stat.S_IXUSR else 0o644)

    shutil.copytree(source, target, copy_function=link_or_copy)


def _require_passable(account: Account, layout: Layout, folders: list[Path]) -> None:
    closed = _first_closed(account, folders)
    if closed is not None:
        raise ConfigError(
            f"the data folder {str(layout.root)!r} cannot be used by root: the server runs as the user {account.name}, "
            f"who cannot enter {str(closed)!r}; set ARCHIBALD_DATA_DIR to a folder that others can pass, such as "
            "/var/lib/archibald-pgq, or run the command as an ordinary user"
        )


def _first_closed(account: Account, paths: list[Path]) -> Path | None:
    """The first path that the user cannot enter (folder) or run (file); the kernel is asked, so that ACLs count too."""
    script = 'for path; do test -x "$path" || { printf %s "$path"; exit 0; }; done'
    # A child that is forked meanwhile would keep the pipe open, and this would wait for that child's end.
    with opening():
        # S603: a fixed script; the paths are its arguments, not part of it.
        ran = subprocess.run(
            ["/bin/sh", "-c", script, "sh", *map(os.fspath, paths)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            cwd="/",
            **account.run_as(),
        )
    if ran.returncode != 0:
        raise OSError(
            f"/bin/sh cannot be run as the user {account.name}: {ran.stderr.decode(errors='replace').strip()}"
        )
    return Path(os.fsdecode(ran.stdout)) if ran.stdout else None
