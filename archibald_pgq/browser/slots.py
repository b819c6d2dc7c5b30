"""Who may have a context: so many at once, one for each agent, urgent ones first, then in the order in which they asked.

Guarantees: never more at once than the capacity; nobody gets a place after having given up; a place that is free goes to whoever waits, at
once. Must not: know what a context is.
"""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import dataclass, field


@dataclass(order=True)
class _Waiter:
    """In the order in which they are served."""

    place: tuple[bool, int]
    user_id: str = field(compare=False)
    granted: asyncio.Future[None] = field(compare=False)


class Slots:
    """The places of one pool."""

    def __init__(self, capacity: int) -> None:
        """All are free."""
        self._capacity = capacity
        self._numbers = itertools.count()
        self._waiting: list[_Waiter] = []
        self.taken: set[str] = set()
        """The agents that have a place."""

    @property
    def capacity(self) -> int:
        """Places in all; where it falls, those who have one keep it."""
        return self._capacity

    @capacity.setter
    def capacity(self, value: int) -> None:
        self._capacity = value
        self._grant()

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._waiting)

    async def take(self, user_id: str, *, urgent: bool, patience: float) -> None:
        """Wait for a place, at most `patience` seconds; `urgent` goes before all that are not.

        Raises:
            TimeoutError: there was none in time.
        """
        waiter = _Waiter((not urgent, next(self._numbers)), user_id, asyncio.get_running_loop().create_future())
        self._waiting.append(waiter)
        self._waiting.sort()
        self._grant()
        try:
            async with asyncio.timeout(patience):
                await waiter.granted
        except BaseException:
            if waiter in self._waiting:
                self._waiting.remove(waiter)
            elif waiter.granted.done() and not waiter.granted.cancelled():
                self.free(user_id)  # it was granted at the moment in which its caller gave up
            raise

    def free(self, user_id: str) -> None:
        """Give a place back."""
        self.taken.discard(user_id)
        self._grant()

    def _grant(self) -> None:
        for waiter in list(self._waiting):
            if len(self.taken) >= self._capacity:
                return
            if waiter.user_id not in self.taken and not waiter.granted.done():  # done: its caller is about to give up
                self._waiting.remove(waiter)
                self.taken.add(waiter.user_id)
                waiter.granted.set_result(None)
