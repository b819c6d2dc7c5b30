"""Operations: what kinds of jobs there are and the policy of each.

Owns: `JobClass`, `Policy` and the catalogue of the 15 operations of the ERP. Policies live as rows of `archibald.operations`; the
catalogue is what the first migration writes there.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from archibald_pgq.domain.backoff import Backoff

KIND_PATTERN = re.compile(r"[a-z0-9][a-z0-9._:-]{0,99}")


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return _is_whole(value) or isinstance(value, float)


class JobClass(StrEnum):
    """What a job is to the people who wait; the text is what the column `class` holds."""

    WRITE = "write"
    """A person asked for it and waits; it changes something outside."""
    READ = "read"
    """A person asked for it; it only fetches, so it may be repeated."""
    SYNC = "sync"
    """Scheduled; goes behind everything else of its agent, and equal ones become one."""


@dataclass(frozen=True, slots=True)
class Policy:
    """How jobs of one kind are treated.

    Attributes:
        job_class: write, read or sync.
        priority: lower runs first; 0 to 32767.
        timeout: seconds a handler may run; over it the job fails and is not retried.
        max_attempts: attempts in all, at least 1.
        backoff: the wait between attempts; None tries again at once.
        idempotent: an interrupted write may simply be run again (no `needs_review`).
    """

    job_class: JobClass = JobClass.WRITE
    priority: int = 100
    timeout: float = 120.0
    max_attempts: int = 1
    backoff: Backoff | None = None
    idempotent: bool = False

    def __post_init__(self) -> None:
        """Check the ranges that the table `archibald.operations` checks too.

        Raises:
            ValueError: a value is out of its range.
        """
        if not _is_whole(self.priority) or not 0 <= self.priority <= 32767:
            raise ValueError(f"priority is a whole number from 0 to 32767, not {self.priority!r}")
        if not _is_number(self.timeout) or not 0 < self.timeout <= 86400:
            raise ValueError(f"timeout is above 0 and at most 86400 seconds, not {self.timeout!r}")
        if not _is_whole(self.max_attempts) or not 1 <= self.max_attempts <= 100:
            raise ValueError(f"max_attempts is a whole number from 1 to 100, not {self.max_attempts!r}")
        if not isinstance(self.idempotent, bool):
            raise ValueError(f"idempotent is True or False, not {self.idempotent!r}")
        if not isinstance(self.backoff, Backoff | None):
            raise ValueError(f"backoff is Backoff.fixed(…) or Backoff.exponential(…), not {self.backoff!r}")

    @property
    def repeatable(self) -> bool:
        """True if an interrupted run may be repeated without asking a person."""
        return self.job_class is not JobClass.WRITE or self.idempotent


def _write(priority: int, timeout: float = 120.0) -> Policy:
    return Policy(JobClass.WRITE, priority, timeout)


def _download(priority: int) -> Policy:
    return Policy(JobClass.READ, priority, 60.0, 2, Backoff.fixed(5))


def _sync(priority: int) -> Policy:
    return Policy(JobClass.SYNC, priority, 300.0, 3, Backoff.exponential(30))


CATALOGUE: dict[str, Policy] = {
    "submit-order": _write(1),
    "create-customer": _write(2),
    "update-customer": _write(3),
    "send-to-verona": _write(4),
    "edit-order": _write(5),
    "delete-order": _write(6, 60.0),
    "download-ddt-pdf": _download(7),
    "download-invoice-pdf": _download(8),
    "sync-order-articles": Policy(JobClass.READ, 9, 180.0),
    "sync-customers": _sync(10),
    "sync-orders": _sync(11),
    "sync-ddt": _sync(12),
    "sync-invoices": _sync(13),
    "sync-products": _sync(14),
    "sync-prices": _sync(15),
}
