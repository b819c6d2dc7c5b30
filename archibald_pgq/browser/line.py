"""Waiting one's turn: urgent ones first, then first come first served.

Guarantees: what is given to somebody who gives up in the same moment is taken back, never lost. Must not: know what is waited for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class Waiter(Generic[T]):
    """Somebody in the line."""

    user_id: str
    answer: asyncio.Future[T]


class Line(Generic[T]):
    """A line in which callers wait until something is given to them."""

    def __init__(self, serve: Callable[[], None], take_back: Callable[[T], None]) -> None:
        """Empty.

        Args:
            serve: gives what there is to those in the line; called when somebody has joined it.
            take_back: takes back what was given to somebody who had just given up.
        """
        self._serve, self._take_back = serve, take_back
        self._urgent: dict[Waiter[T], None] = {}
        self._others: dict[Waiter[T], None] = {}

    def __len__(self) -> int:
        return len(self.waiting())

    def waiting(self) -> list[Waiter[T]]:
        """Those who wait, in the order in which they are served."""
        # Whose answer is done has been cancelled, and only not yet left.
        return [waiter for waiter in (*self._urgent, *self._others) if not waiter.answer.done()]

    async def stand(self, user_id: str, *, urgent: bool) -> T:
        """Wait until something is given; it is the caller's to bound this."""
        waiter = Waiter[T](user_id, asyncio.get_running_loop().create_future())
        queue = self._urgent if urgent else self._others
        queue[waiter] = None
        try:
            self._serve()
            return await waiter.answer
        except BaseException:
            answer = waiter.answer
            if answer.done() and not answer.cancelled() and answer.exception() is None:
                self._take_back(answer.result())
            raise
        finally:
            del queue[waiter]

    def give(self, waiter: Waiter[T], what: T) -> None:
        """End somebody's waiting."""
        waiter.answer.set_result(what)

    def send_away(self, why: str, error: type[Exception]) -> None:
        """End everybody's waiting with an error."""
        for waiter in self.waiting():
            waiter.answer.set_exception(error(why))
