"""A step of a job: what is known of an effect outside Postgres when a run comes to it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from archibald_pgq.errors import InvalidJobError

LONGEST_NAME = 200
"""Characters of a step's name, and of a key."""


class StepState(StrEnum):
    """What a run is told when it begins a step."""

    BEGUN = "begun"
    """It is this run's to do; that it was begun is committed."""
    DONE = "done"
    """An earlier run did it."""
    UNKNOWN = "unknown"
    """An earlier run began it, and whether it acted is not known."""


@dataclass(frozen=True, slots=True)
class Step:
    """The answer to a begin.

    Attributes:
        state: see `StepState`.
        result: what came of it, only where it is done.
        age: seconds since an earlier run began it, only where its end is unknown.
    """

    state: StepState
    result: Any = None
    age: float = 0.0


def check_name(name: object, what: str) -> str:
    """Return a step's name or key.

    Raises:
        InvalidJobError: it is no text of 1 to 200 characters, or has a NUL in it.
    """
    if not isinstance(name, str) or not 1 <= len(name) <= LONGEST_NAME or "\x00" in name:
        raise InvalidJobError(f"a {what} is a text of 1 to {LONGEST_NAME} characters, not {name!r:.100}")
    return name
