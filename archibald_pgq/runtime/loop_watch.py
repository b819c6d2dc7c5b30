"""Tells when the event loop stands still, and what holds it.

Owns: the time since the loop last answered, and what is said of it. Guarantees: one line when the loop has not answered for a second,
one every 30 s from then on, and one when it answers again. Time in which this whole process was stopped does not count. The stack is
told as file, line and function: no values. Must not: wait for the loop, or touch it but through `call_soon_threadsafe`.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
import traceback
from collections.abc import Callable

logger = logging.getLogger(__name__)

EVERY = 0.25
"""Seconds between two looks."""

BLOCKED = 1.0
AGAIN = 30.0
FRAMES = 12
"""The innermost frames are told."""


class LoopWatch:
    """Made in the loop's thread; `look` is called from another one, about every `EVERY` seconds."""

    def __init__(self, running: Callable[[], list[str]]) -> None:
        """`running` names the jobs whose handlers run, each as the name of its task and what to call it, with a blank between."""
        self._loop, self._thread, self._running = asyncio.get_running_loop(), threading.get_ident(), running
        self._asked = self._answered = 0
        self._lag = self._said = 0.0
        self._looked = time.monotonic()

    def look(self) -> None:
        """Ask the loop for an answer if the last one came, else say for how long it has not."""
        now = time.monotonic()
        passed, self._looked = min(now - self._looked, 2 * EVERY), now
        if self._answered == self._asked:
            if self._said:
                logger.warning("the event loop goes on after %.1f s", self._lag)
            self._lag = self._said = 0.0
            if not self._loop.is_closed():
                self._asked += 1
                self._loop.call_soon_threadsafe(self._answer)
            return
        self._lag += passed
        if self._lag >= (self._said + AGAIN if self._said else BLOCKED):
            self._said = self._lag
            logger.warning(
                "the event loop has been blocked for %.1f s by %s: %s", self._lag, self._culprit(), self._stack()
            )

    def _answer(self) -> None:
        self._answered = self._asked

    def _culprit(self) -> str:
        task = asyncio.current_task(self._loop)
        running = dict(text.split(" ", 1) for text in self._running())
        if task is not None and task.get_name() in running:
            return running[task.get_name()]
        return f"no handler's own task, while there run: {', '.join(running.values()) or 'none'}"

    def _stack(self) -> str:
        frame = sys._current_frames().get(self._thread)  # the documented way to a thread's stack
        frames = traceback.StackSummary.extract(traceback.walk_stack(frame), limit=FRAMES, lookup_lines=False)
        return " < ".join(f"{found.filename}:{found.lineno} in {found.name}" for found in frames)
