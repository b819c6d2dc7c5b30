"""The processes of a browser, as /proc shows them; where there is no /proc nothing is known."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

_PROC = Path("/proc")


def pid_of(argument: str) -> int | None:
    """Return the process that was started with this argument; not those of its own that were given it too."""
    found = {
        int(folder.name): _parent(folder)
        for folder in _PROC.glob("[0-9]*")
        if argument.encode() in _read(folder / "cmdline").split(b"\0")
    }
    return next((pid for pid, parent in found.items() if parent not in found), None)


def memory_of(pid: int) -> int:
    """Return the bytes that a process and its descendants take, what they share counted once (PSS)."""
    children = defaultdict(list)
    for folder in _PROC.glob("[0-9]*"):
        children[_parent(folder)].append(int(folder.name))
    total, left = 0, [pid]
    while left:
        one = left.pop()
        left += children[one]
        total += next(
            (
                int(line.split()[1]) * 1024
                for line in _read(_PROC / str(one) / "smaps_rollup").splitlines()
                if line.startswith(b"Pss:")
            ),
            0,
        )
    return total


def _parent(folder: Path) -> int:
    # the name in brackets may hold anything; behind it the state, and then the parent
    fields = _read(folder / "stat").rpartition(b")")[2].split()
    return int(fields[1]) if len(fields) > 1 else 0


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # it has ended, or is somebody else's
        return b""
