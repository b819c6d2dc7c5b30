"""Who does what in the ERP at this moment: the count that shows from outside that each login does one thing at a time.

Owns: the numbers of `/stats`. Guarantees: an entry that was refused is counted, and what was let in is counted out when
its block ends, however it ends. Must not: wait, or know what a request does.

Two things are counted apart. A *request* is one HTTP request. An *operation* is all that a job does between its first
and its last request; it lasts as long as the connection that announces it, so that a killed worker's operation ends
with the worker.

The orders are counted, too, by the reference that their agent gave them. It is no key of the ERP: a reference that
counts twice is an order that was placed twice, also when one of the two was deleted since.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager


class BusyError(Exception):
    """The login does something else already; the text names it."""


class Ledger:
    """Counts of requests and operations, now and at most."""

    def __init__(self) -> None:
        """Start with nothing counted."""
        self.requests = 0
        self.logins = 0
        self.operations = 0
        self.refused_requests = 0
        self.refused_operations = 0
        self.most_logins_at_once = 0
        self.most_requests_per_login = 0
        self.most_operations_per_login = 0
        self.orders: Counter[tuple[str, str]] = Counter()
        """How many orders were placed, by login and reference; the reference is empty where none was given."""
        self._requests_now: Counter[str] = Counter()
        self._operations_now: Counter[str] = Counter()

    @contextmanager
    def request(self, login: str) -> Iterator[None]:
        """Count a request in and out.

        Raises:
            BusyError: another request of this login is being served; this one is counted as refused.
        """
        now = self._requests_now
        now[login] += 1
        self.requests += 1
        self.most_requests_per_login = max(self.most_requests_per_login, now[login])
        try:
            if now[login] > 1:
                self.refused_requests += 1
                raise BusyError(f"{login} has another request under way")
            self._note_logins()
            yield
        finally:
            _count_out(now, login)

    @contextmanager
    def operation(self, login: str, name: str) -> Iterator[None]:
        """Count an operation in and out.

        Raises:
            BusyError: another operation of this login is open; this one is counted as refused.
        """
        now = self._operations_now
        now[login] += 1
        self.operations += 1
        self.most_operations_per_login = max(self.most_operations_per_login, now[login])
        try:
            if now[login] > 1:
                self.refused_operations += 1
                raise BusyError(f"{login} has another operation open, so that {name} cannot begin")
            self._note_logins()
            yield
        finally:
            _count_out(now, login)

    def place(self, login: str, reference: str) -> None:
        """Count an order that was saved just now."""
        self.orders[login, reference] += 1

    def _note_logins(self) -> None:
        active = len(self._requests_now.keys() | self._operations_now.keys())
        self.most_logins_at_once = max(self.most_logins_at_once, active)

    def stats(self) -> dict[str, int]:
        """Return the numbers.

        `simultaneous` is all that was refused because the login did something else; `orders_twice` counts each order
        whose reference its login had used before.
        """
        return {
            "simultaneous": self.refused_requests + self.refused_operations,
            "refused_requests": self.refused_requests,
            "refused_operations": self.refused_operations,
            "most_logins_at_once": self.most_logins_at_once,
            "most_per_login": max(self.most_requests_per_login, self.most_operations_per_login),
            "requests": self.requests,
            "operations": self.operations,
            "logins": self.logins,
            "orders": self.orders.total(),
            "orders_twice": sum(count - 1 for (_, reference), count in self.orders.items() if reference),
        }


def _count_out(now: Counter[str], login: str) -> None:
    now[login] -= 1
    if not now[login]:
        del now[login]
