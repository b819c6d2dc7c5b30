"""Proof of death on one machine: a file that each worker process keeps locked for its life.

Owns: this process's file, and the look at another one's. Guarantees: the file has a name of its own that nobody else could have taken
before, in a folder of this user or with the sticky bit, and is closed in child processes; after a clean end it is gone. Another one's
death is proven only by that very file (device and inode) of this boot of the kernel, free to be locked. Everything else, such as a file
that is missing, another mount namespace, another user's file, or a child that was forked with it and lives, proves nothing: then
the lease decides. Must not: talk to the database.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import logging
import os
import stat
import tempfile
from pathlib import Path

from archibald_pgq.store.workers import Mark

logger = logging.getLogger(__name__)

PREFIX = "archibald-pgq-worker-"

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_SHARED = Path("/dev/shm")  # noqa: S108  # sticky, and the file's name is new and random


class Witness:
    """This process's file."""

    def __init__(self, descriptor: int, mark: Mark) -> None:
        """Keep a file that is locked."""
        self._descriptor, self.mark = descriptor, mark

    def close(self) -> None:
        """To be called only when no handler code runs any more: the file goes, and with it the proof of life."""
        with contextlib.suppress(OSError):
            Path(self.mark.path).unlink()
        os.close(self._descriptor)


def make() -> Witness | None:
    """Make and lock this process's file; None where that cannot be done: then others wait for the lease."""
    try:
        boot = _boot()
        descriptor, path = tempfile.mkstemp(prefix=PREFIX, dir=_folder())
    except OSError as error:
        logger.info("no witness file, so that others wait for the lease if this process dies: %s", error)
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        logger.info("no witness file, so that others wait for the lease if this process dies: %s", error)
        Path(path).unlink()
        os.close(descriptor)
        return None
    return Witness(descriptor, Mark(boot, path, _identity(os.fstat(descriptor))))


class Death:
    """A file that was found free; it stays locked here, so that nobody takes it for another, until `bury`."""

    def __init__(self, descriptor: int, path: str) -> None:
        """Keep the file open."""
        self._descriptor, self._path = descriptor, path

    def bury(self, *, fenced: bool) -> None:
        """Let go of the file; once its worker is fenced, remove it: its process cannot any more."""
        if fenced:
            with contextlib.suppress(OSError):
                path = Path(self._path)
                if _identity(path.lstat()) == _identity(os.fstat(self._descriptor)):
                    path.unlink()
        os.close(self._descriptor)


def proof_of_death(mark: Mark) -> Death | None:
    """Return the proof that the process which locked this file has ended; None: there is none."""
    if not os.path.basename(mark.path).startswith(PREFIX):  # noqa: PTH119  # asked five times a second of each neighbour
        return None  # whatever somebody wrote into the table, no other file is touched
    try:
        descriptor = os.open(mark.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        found = os.fstat(descriptor)
        if (
            stat.S_ISREG(found.st_mode)
            and _identity(found) == mark.file
            and _boot() == mark.boot
            and os.geteuid() in {0, found.st_uid}
        ):
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return Death(descriptor, mark.path)
    except OSError:
        pass  # it is locked: alive
    os.close(descriptor)
    return None


@functools.cache
def _boot() -> str:
    """The kernel's boot, which no process outlives."""
    return _BOOT_ID.read_text().strip()


def _identity(found: os.stat_result) -> str:
    return f"{found.st_dev}:{found.st_ino}"


def _folder() -> Path:
    """A local folder of this user, else the machine's shared memory: a network's file system might lose a lock of a live process."""
    user = os.geteuid()
    given = os.environ.get("XDG_RUNTIME_DIR")
    candidates = [Path(given)] if given else []
    candidates.append(Path(f"/run/user/{user}") if user else Path("/run"))
    for path in candidates:
        with contextlib.suppress(OSError):
            found = path.stat()
            if (
                stat.S_ISDIR(found.st_mode)
                and found.st_uid == user
                and not found.st_mode & 0o022
                and os.access(path, os.W_OK | os.X_OK)
            ):
                return path
    return _SHARED
