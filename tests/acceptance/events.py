"""What handlers really did, written down by themselves outside the database.

Each line is one JSON object, appended by a single write to a file opened with O_APPEND: lines of several processes do not mix, and what
was written stays whatever happens to the process. Times are of the clock that all processes of this machine share and that goes on while
it sleeps. Handlers write `start` and `end`; the test that kills, stops and continues processes writes `killed`, `stopped`, `continued`.
Must not: judge; that is `history` and `order`.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

BEYOND = 2**22
"""No process has a number as high."""

END_STATES = frozenset({"completed", "failed", "cancelled", "needs_review"})


def now() -> float:
    """Seconds on the clock of the history."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@dataclass(frozen=True, slots=True)
class Event:
    """One line.

    Of a handler: all fields. Of a process (`spawned`, `killed`, `stopped`, `continued`): no job. Of the test: `enqueued`, and `maybe`
    before an enqueue whose commit may come to be in doubt; `retried` before and `put back` after a person's retry; `locked` once an
    operator has an agent to themselves, and `unlocked` with the last time at which they certainly still had.
    """

    at: float
    what: str
    pid: int = 0
    worker: str = ""
    job_id: int = 0
    user_id: str = ""
    how: str = ""
    """With `end`: `returned`, or the exception's name. With `maybe`: the key. With `enqueued`: the seconds of its
    delay, if it has one. With `locked` and `unlocked`: the session."""
    worker_id: int = 0
    epoch: int = 0
    """Which owner a handler runs for; 0 if that is not known."""


@dataclass(frozen=True, slots=True)
class JobRow:
    """What the database says of a job in the end."""

    job_id: int
    user_id: str
    priority: int
    state: str
    is_sync: bool = False
    worker_id: int | None = None
    epoch: int | None = None
    """Of a finished job: the owner that wrote its end, if one did."""
    key: str | None = None
    doubtful: bool = False
    """A write that must not be repeated: once interrupted, a person decides."""

    @property
    def shares(self) -> bool:
        """True if it may share a turn, and so an epoch, with other jobs of its agent."""
        return not self.is_sync and not self.doubtful


@dataclass(frozen=True, slots=True)
class Interval:
    """A stretch of time in which handler code of a job may have run."""

    user_id: str
    job_id: int
    pid: int
    start: float
    end: float
    how: str
    worker_id: int = 0
    epoch: int = 0


def append(path: Path, event: Event) -> None:
    """Add one line."""
    line = json.dumps(asdict(event)) + "\n"
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        written = os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)
    if written != len(line.encode()):
        raise OSError(f"only {written} bytes of a line of the history were written")


def read(path: Path) -> list[Event]:
    """Return the lines in the order in which they were written, with a number of its own for each process."""
    if not path.exists():
        return []
    text = path.read_text()
    whole = text[: text.rfind("\n") + 1]  # what is being written while it is read may be there in part
    return list(_told_apart(Event(**json.loads(line)) for line in whole.splitlines()))


def _told_apart(events: Iterable[Event]) -> Iterator[Event]:
    """A number is given to another process once its process has died: within ten minutes on a busy machine that numbers to 32,768."""
    spawned: Counter[int] = Counter()
    for event in events:
        spawned[event.pid] += event.what == "spawned"
        again = max(spawned[event.pid] - 1, 0)
        yield replace(event, pid=event.pid + again * BEYOND) if again else event
