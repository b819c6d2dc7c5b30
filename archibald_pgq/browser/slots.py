"""Who has which place: a place is room for one context in one browser.

Guarantees: no browser has more places than it has room for; a place counts from before its context is opened until after it is closed; a
place is in use before whoever it is given to can look at it; what is in use is never taken away; an agent has one place at most. Must not:
open, close, or wait for, a context.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from archibald_pgq.browser.line import Line
from archibald_pgq.errors import BrowserError

C = TypeVar("C")


@dataclass(slots=True, eq=False)
class Place(Generic[C]):
    """Room for one context.

    Attributes:
        browser: the number of the browser.
        user_id: who has it, or had it last.
        content: what is kept in it: of whom, `kept_for` says; of another agent where it was taken for the sake of somebody else.
        lost: the browser is gone, and the room with it.
    """

    browser: int
    user_id: str
    content: C | None = None
    kept_for: str | None = None
    lost: bool = False


class Slots(Generic[C]):
    """The places of all browsers; every browser is down at first."""

    def __init__(self, browsers: int, contexts: int) -> None:
        """`contexts`: of each browser."""
        self._contexts = contexts
        self._count = [0] * browsers
        self._up = [False] * browsers
        self.avoided: set[int] = set()
        """Browsers that get a new place only where no other one has room."""
        self._busy: dict[str, Place[C]] = {}
        # The least recently used first. By agent; a place whose content is nobody's any more is there under itself.
        self._idle: dict[str | Place[C], Place[C]] = {}
        self._line: Line[Place[C]] = Line(self._serve, self._give_back)

    @property
    def capacity(self) -> int:
        """Places that can be had while the browsers are as they are."""
        return sum(self._up) * self._contexts

    @property
    def taken(self) -> int:
        """Places that there are, in use or not."""
        return sum(self._count)

    @property
    def busy(self) -> int:
        """Agents that have a place."""
        return len(self._busy)

    @property
    def idle(self) -> int:
        """Places that are kept and not in use."""
        return len(self._idle)

    @property
    def waiting(self) -> int:
        """How many wait for a place."""
        return len(self._line)

    def is_busy(self, user_id: str) -> bool:
        """True if the agent has a place."""
        return user_id in self._busy

    async def take(self, user_id: str, *, urgent: bool) -> Place[C]:
        """Wait for a place: the agent's own, or an empty one, or the least recently used one that is not in use."""
        return await self._line.stand(user_id, urgent=urgent)

    def keep(self, place: Place[C]) -> None:
        """Let go of a place, and keep its content for the same agent."""
        del self._busy[place.user_id]
        if not place.lost:
            place.kept_for = place.user_id
            self._idle[place.user_id] = place
        self._serve()

    def drop(self, place: Place[C]) -> None:
        """Let go of a place whose content is closed."""
        del self._busy[place.user_id]
        self._vacate(place)
        self._serve()

    def move(self, place: Place[C]) -> bool:
        """Give an empty place that is in use to the browser with the fewest; False if its own is gone, and no other one has room."""
        self._vacate(place)
        number = self._roomiest()
        if number is None:
            return False
        place.browser, place.lost = number, False
        self._count[number] += 1
        return True

    def up(self, browser: int) -> None:
        """A browser runs, and has no contexts yet."""
        self._up[browser] = True
        self.avoided.discard(browser)
        self._serve()

    def down(self, browser: int) -> None:
        """A browser is gone, and all contexts with it; whoever uses one still has to let go of it."""
        self._up[browser] = False
        self._count[browser] = 0
        for place in [*self._busy.values(), *self._idle.values()]:
            if place.browser == browser:
                place.lost = True
        self._idle = {key: place for key, place in self._idle.items() if not place.lost}

    def unused(self, browser: int) -> bool:
        """True if no context of a browser is in use."""
        return not any(place.browser == browser and not place.lost for place in self._busy.values())

    def close(self, why: str) -> None:
        """Send away those who wait, with a `BrowserError`."""
        self._line.send_away(why, BrowserError)

    def _serve(self) -> None:
        for waiter in self._line.waiting():
            if waiter.user_id in self._busy:
                continue
            place = self._idle.pop(waiter.user_id, None) or self._empty(waiter.user_id) or self._evicted(waiter.user_id)
            if place is None:
                return  # nothing is idle, so those behind have nothing of their own either
            self._busy[waiter.user_id] = place
            self._line.give(waiter, place)

    def _give_back(self, place: Place[C]) -> None:
        del self._busy[place.user_id]
        owner = place.kept_for
        if place.lost or owner is None:
            self._vacate(place)
        elif owner == place.user_id:
            self._idle[owner] = place
        elif owner in self._busy or owner in self._idle:
            self._idle = {place: place, **self._idle}
        else:
            place.user_id = owner
            self._idle = {owner: place, **self._idle}
        self._serve()

    def _empty(self, user_id: str) -> Place[C] | None:
        number = self._roomiest()
        if number is None:
            return None
        self._count[number] += 1
        return Place(number, user_id)

    def _evicted(self, user_id: str) -> Place[C] | None:
        if not self._idle:
            return None
        place = self._idle.pop(next(iter(self._idle)))
        place.user_id = user_id
        return place

    def _roomiest(self) -> int | None:
        room = [number for number, count in enumerate(self._count) if self._up[number] and count < self._contexts]
        return min(room, key=lambda number: (number in self.avoided, self._count[number]), default=None)

    def _vacate(self, place: Place[C]) -> None:
        if not place.lost:
            place.lost = True
            self._count[place.browser] -= 1
