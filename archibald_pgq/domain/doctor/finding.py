"""A finding of the doctor, and how numbers are said in one."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum


class Severity(StrEnum):
    """How bad it is."""

    OK = "ok"
    NOTICE = "notice"
    """Somebody should look at it; jobs run."""
    SERIOUS = "serious"
    """Jobs do not run, or soon will not."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check came to.

    Attributes:
        name: the check; severity: see `Severity`.
        found: what was found, in one sentence with its numbers.
        remedy: what to do, naming the command or the SQL; None where nothing is to be done.
    """

    name: str
    severity: Severity
    found: str
    remedy: str | None = None


def graded(notice: bool, serious: bool) -> Severity:
    """Return the worst that is true."""
    return Severity.SERIOUS if serious else Severity.NOTICE if notice else Severity.OK


def counted(number: int, what: str, limit: int | None = None) -> str:
    """Return "1 job", "2 jobs", or "over 1,000 jobs" where counting stopped behind the limit."""
    if limit is not None and number > limit:
        return f"over {limit:,} {what}s"
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def lasted(length: timedelta) -> str:
    """Return a length of time, such as "0.4 s", "12 s", "5 min"."""
    seconds = max(0.0, length.total_seconds())
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{int(seconds // size)} {unit}"
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"


def named(names: list[str], most: int = 3) -> str:
    """Return some names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{', '.join(names[:most])}{more}"


def session(pid: int | None, application: str | None, user: str | None = None, address: str | None = None) -> str:
    """Return a backend in words: its pid, application, user and address as far as known."""
    details = [
        f"application {application or 'without a name'}",
        *([f"user {user}"] if user else []),
        *([f"from {address}"] if address else []),
    ]
    return f"backend {pid} ({', '.join(details)})" if pid else "a prepared transaction"
