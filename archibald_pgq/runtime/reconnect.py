"""What a part of a worker says, and how long it waits, while its connection is lost.

Guarantees: the loss and the end of an outage are one log line each, however many attempts lie between them; the waits double up to a
bound, and no two workers that lost the same server come back in step. Must not: connect.
"""

from __future__ import annotations

import logging
import random
import time

import psycopg

from archibald_pgq.store.connect import told

logger = logging.getLogger(__name__)

FIRST = 0.05
"""Seconds, on average, until the first attempt: most connections are lost alone, and the server is there."""


_SERVER_IN_NEED = ("53", "58")
"""Classes of SQLSTATE: a full disk, no memory, an I/O error. It says nothing about a job, so no job may fail by it."""


def in_need(error: psycopg.Error) -> bool:
    """True where the server is short of something: it has no other connection to give either."""
    return (error.sqlstate or "")[:2] in _SERVER_IN_NEED


def jittered(seconds: float) -> float:
    """Return between half and one and a half of it."""
    return seconds * random.uniform(0.5, 1.5)  # noqa: S311  # jitter, not a secret


class Outage:
    """The outages of one connection, one after the other."""

    def __init__(self, who: str, longest: float = 2.0, first: float = FIRST) -> None:
        """Prepare; `who` is the part's name in the log, `first` and `longest` the average seconds between attempts."""
        self._who, self._first, self._longest = who, first, longest
        self._began: float | None = None
        self._pause = first

    def goes_on(self, error: psycopg.Error) -> float:
        """Take note of a lost connection or a failed attempt; return the seconds until the next one."""
        if self._began is None:
            self._began = time.monotonic()
            logger.warning("%s lost its connection (%s) and reconnects", self._who, told(error))
        else:
            logger.debug("%s cannot reconnect yet: %s", self._who, told(error))
        pause, self._pause = self._pause, min(self._pause * 2, self._longest)
        return jittered(pause)

    def is_over(self) -> None:
        """Take note that the connection works."""
        if self._began is not None:
            logger.info("%s is connected again after %.1f s", self._who, time.monotonic() - self._began)
            self._began, self._pause = None, self._first
