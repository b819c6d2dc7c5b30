"""What a fork of this process waits for.

Owns: what is being opened, by which thread. Guarantees: a fork waits, at most five seconds, until no other thread is inside `opening`; a
child gets the locks that such a thread holds at that moment (OpenSSL's, the resolver's, those of `subprocess` and of an import), and
would wait for them for ever. Must not: know what is opened, or how.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

LONGEST = 5.0
"""Seconds for which a fork waits; what takes longer waits for the network, and holds no lock meanwhile."""


class _Openings:
    """What is being opened: the thread of each."""

    def __init__(self) -> None:
        self._under_way: list[int] = []
        self.renew()

    def renew(self) -> None:
        """In a child: the locks may be held by threads that are not there."""
        self._door = threading.RLock()  # held by who forks; a signal handler may fork while its own thread is in here
        self._changed = threading.Condition()
        self._under_way = [who for who in self._under_way if who == threading.get_ident()]

    def enter(self) -> None:
        with self._door, self._changed:
            self._under_way.append(threading.get_ident())

    def leave(self) -> None:
        with self._changed:
            self._under_way.remove(threading.get_ident())
            self._changed.notify_all()

    def shut(self) -> None:
        """Let nobody in, and wait for the others who are."""
        self._door.acquire()
        me = threading.get_ident()
        with self._changed:
            self._changed.wait_for(lambda: all(who == me for who in self._under_way), LONGEST)

    def open_again(self) -> None:
        self._door.release()


_openings = _Openings()


@contextmanager
def opening() -> Iterator[None]:
    """Open something that a fork must not cut through; waits while another thread forks."""
    _openings.enter()
    try:
        yield
    finally:
        _openings.leave()


os.register_at_fork(before=_openings.shut, after_in_parent=_openings.open_again, after_in_child=_openings.renew)
