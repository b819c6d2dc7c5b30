"""A loop whose time passes only while everything waits, and then at once.

Guarantees: nothing in a test depends on how fast the machine is; a test in which nothing can happen any more fails at once.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, ParamSpec

P = ParamSpec("P")


class VirtualLoop(asyncio.SelectorEventLoop):
    """Time is what timers have waited for."""

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0
        selector: Any = self._selector  # type: ignore[attr-defined]
        select = selector.select

        def pass_time(timeout: float | None) -> Any:
            events = select(0)
            if timeout is None and not events:
                raise AssertionError("everybody waits, and nothing will ever happen")
            self._now += timeout or 0.0
            return events

        selector.select = pass_time

    def time(self) -> float:
        return self._now


def in_virtual_time(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Make a test of a coroutine function; it runs in a loop of its own."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            runner.run(test(*args, **kwargs))

    return run


async def settle() -> None:
    """Wait until everything that can go on without time passing has done so."""
    await asyncio.sleep(0.001)


async def ended(*tasks: Awaitable[Any]) -> list[Any]:
    """Return what these came to, errors too."""
    return await asyncio.gather(*tasks, return_exceptions=True)
