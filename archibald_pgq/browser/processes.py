"""Processes that somebody else started: whether they live, what memory they take, and their end.

Guarantees: a signal reaches the process that was meant, or none; only children that a browser left to this process are waited for, never
those that others started. Must not: start a process.
"""

from __future__ import annotations

import asyncio
import os
import select
import signal
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

PROC = Path("/proc")
_ORPHANS = {"chrome_crashpad"}
"""Processes of a browser that leave its group."""


class Watched:
    """A process that is watched from now on until `close`."""

    def __init__(self, pid: int) -> None:
        """Begin.

        Raises:
            OSError: there is no such process, or this kernel cannot watch one (before Linux 5.3).
        """
        self.pid = pid
        self._handle = os.pidfd_open(pid)
        self.group = os.getpgid(pid)
        self._alive = True
        self._poll = select.poll()
        self._poll.register(self._handle, select.POLLIN)
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def alive(self) -> bool:
        """False once the process has ended, also where nobody has taken note of it."""
        self._alive = self._alive and not self._poll.poll(0)
        return self._alive

    def on_end(self, told: Callable[[], None]) -> None:
        """Have this called when the process has ended; needs a running loop."""
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._handle, told)

    def kill(self) -> None:
        """End it by force."""
        if self.alive:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._handle, signal.SIGKILL)

    def kill_group(self) -> None:
        """End it by force, and all of its group unless that is this process's own."""
        if self.alive and self.group != os.getpgrp():
            with suppress(ProcessLookupError):
                os.killpg(self.group, signal.SIGKILL)
        self.kill()

    def close(self) -> None:
        """Watch no more; it counts as ended."""
        if self._handle >= 0:
            self._alive = False
            if self._loop is not None:
                self._loop.remove_reader(self._handle)
            os.close(self._handle)
            self._handle = -1


def child_above(pid: int) -> int:
    """Return the child of this process that a process descends from.

    Raises:
        OSError: there is none.
    """
    while (parent := _stat(pid).parent) != os.getpid():
        pid = parent  # a wrapper script of a distribution may stand between a browser and who started it
    return pid


def memory_of(pid: int) -> int:
    """Return the bytes that a process and its descendants take, shared ones once; 0 if it has ended."""
    total = 0
    for one in _tree(pid, _all()):
        with suppress(OSError):  # it has ended meanwhile
            total += _memory(PROC / str(one))
    return total


def reap(groups: set[int]) -> tuple[set[int], bool]:
    """Take note of the ends of this process's children in some groups, and of those that had left their browser's group.

    The processes of a browser become children of process 1 when it ends; a worker in a container may be that one.

    Returns:
        The groups that still have members, and whether some of these live or may yet become children of this process.
    """
    members = {pid: stat for pid, stat in _all().items() if stat.group in groups or stat.name in _ORPHANS}
    left, more = set(), False
    for pid, stat in members.items():
        if stat.state == "Z" and stat.parent == os.getpid():
            with suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
            more = True  # its own children follow
        elif stat.group in groups:
            left.add(stat.group)
            more = more or stat.state != "Z" or stat.parent in members
    return left, more


class _Stat(NamedTuple):
    name: str
    state: str
    parent: int
    group: int


def _stat(pid: int) -> _Stat:
    """Return what /proc says of a process.

    Raises:
        OSError: there is no such process.
    """
    # The name in parentheses may hold anything, parentheses too.
    before, _, after = (PROC / str(pid) / "stat").read_text(errors="replace").rpartition(")")
    state, parent, group = after.split()[:3]
    return _Stat(before.partition("(")[2], state, int(parent), int(group))


def _all() -> dict[int, _Stat]:
    found = {}
    for folder in PROC.glob("[0-9]*"):
        with suppress(OSError):  # it has ended meanwhile
            found[int(folder.name)] = _stat(int(folder.name))
    return found


def _tree(pid: int, stats: dict[int, _Stat]) -> list[int]:
    """Return a process and its descendants."""
    children: defaultdict[int, list[int]] = defaultdict(list)
    for one, stat in stats.items():
        children[stat.parent].append(one)
    found = [pid]
    for one in found:
        found += children[one]
    return found


def _memory(folder: Path) -> int:
    try:
        for line in (folder / "smaps_rollup").read_bytes().splitlines():
            if line.startswith(b"Pss:"):
                return int(line.split()[1]) * 1024
    except PermissionError:  # a sandboxed process does not tell; what it has for itself is nearly the same
        _, resident, shared = (int(number) for number in (folder / "statm").read_bytes().split()[:3])
        return (resident - shared) * os.sysconf("SC_PAGE_SIZE")
    return 0
