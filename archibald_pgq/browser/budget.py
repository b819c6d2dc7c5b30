"""How many logins may start within a minute.

Guarantees: never more than the budget within any 60 s; who waits goes on in turn, urgent ones first; a login that is given up before it
starts costs nothing. Must not: log in.
"""

from __future__ import annotations

import asyncio
from collections import deque

from archibald_pgq.browser.line import Line
from archibald_pgq.errors import BrowserError

WINDOW = 60.0


class LoginBudget:
    """The logins of one pool."""

    def __init__(self, per_minute: int) -> None:
        """Nothing is spent yet."""
        self._per_minute = per_minute
        self._starts: deque[float] = deque()
        self._line: Line[float] = Line(self._serve, self._not_spent)
        self._timer: asyncio.TimerHandle | None = None

    @property
    def waiting(self) -> int:
        """How many wait for a login."""
        return len(self._line)

    async def spend(self, user_id: str, *, urgent: bool) -> None:
        """Wait until a login may start, and count it."""
        await self._line.stand(user_id, urgent=urgent)

    def close(self, why: str) -> None:
        """Send away those who wait, with a `BrowserError`."""
        self._line.send_away(why, BrowserError)
        self._stop_timer()

    def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        while self._starts and self._starts[0] <= now - WINDOW:
            self._starts.popleft()
        waiting = deque(self._line.waiting())
        while waiting and len(self._starts) < self._per_minute:
            self._starts.append(now)
            self._line.give(waiting.popleft(), now)
        self._stop_timer()
        if waiting:
            self._timer = loop.call_at(self._starts[0] + WINDOW, self._serve)

    def _not_spent(self, start: float) -> None:
        self._starts.remove(start)
        self._serve()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
