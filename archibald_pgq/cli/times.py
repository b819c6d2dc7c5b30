"""Times and durations for people: "2026-03-02 09:30:00 (3m 12s ago)".

By this machine's clock and in its time zone: what must be exact is in the JSON. Must not: fail, whatever time a row holds.
"""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime
from itertools import pairwise

_UNITS = ((86400, "d"), (3600, "h"), (60, "m"), (1, "s"))


def span(seconds: float) -> str:
    """Return a duration in its two largest units."""
    left = max(0, int(seconds))
    for (size, unit), (smaller, rest) in pairwise(_UNITS):
        if left >= size:
            return f"{left // size}{unit} {left % size // smaller}{rest}"
    return f"{left}s"


def since(value: datetime | None) -> str:
    """Return how long ago a time was; nothing for none."""
    return "" if value is None else span((datetime.now(UTC) - value).total_seconds())


def distance(value: datetime) -> str:
    """Return how far away a time is: "3m 12s ago", "in 5s"."""
    seconds = (value - datetime.now(UTC)).total_seconds()
    return f"in {span(seconds)}" if seconds > 0 else f"{span(-seconds)} ago"


def clock(value: datetime) -> str:
    """Return a time with its date."""
    # the first or the last date that there is may be shifted out of the calendar by this time zone
    with suppress(OverflowError, ValueError):
        value = value.astimezone()
    return value.strftime("%Y-%m-%d %H:%M:%S")


def when(value: datetime | None) -> str:
    """Return a time and how far away it is; nothing for none."""
    return "" if value is None else f"{clock(value)} ({distance(value)})"
