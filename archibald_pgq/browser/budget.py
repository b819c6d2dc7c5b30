"""So many logins a minute and no more: the system that they go to is slow, and must not be flooded."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable

MINUTE = 60.0


class LoginBudget:
    """Counts the begins of the last minute; who comes when it is spent waits, in order."""

    def __init__(self, logins: int, clock: Callable[[], float] = time.monotonic) -> None:
        """`logins` may begin within any minute, by `clock` in seconds."""
        self._logins, self._clock = logins, clock
        self._begins: deque[float] = deque()
        self._order = asyncio.Lock()

    def left(self) -> float:
        """Return the seconds until the next login may begin."""
        now = self._clock()
        while self._begins and now - self._begins[0] >= MINUTE:
            self._begins.popleft()
        return 0.0 if len(self._begins) < self._logins else self._begins[0] + MINUTE - now

    async def spend(self) -> None:
        """Wait until a login may begin, and count it."""
        async with self._order:
            while (left := self.left()) > 0:  # noqa: ASYNC110  # time passes, nothing happens
                await asyncio.sleep(left)
            self._begins.append(self._clock())
