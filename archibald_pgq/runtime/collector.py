"""Python's garbage collector while workers run: it looks at less, and less often.

Owns: its settings for that time. Guarantees: it is left as it was found once the last worker of the process has ended.
Must not: switch it off.

Why: a worker with 300 jobs at hand makes many objects that all end by their reference counts. With Python's defaults the
collector looked at them every few jobs, and now and then at all that was imported, for 43 ms in which the event loop stood
still: 26 µs of a job's 95 (10,000 jobs that do nothing, Python 3.11).
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager

YOUNG = 10_000
"""New objects after which the collector looks at these, at least."""

FEW = 1000
"""Frozen objects that are nobody's: Python 3.12 freezes some hundreds itself, who freezes what a program has imported thousands."""

_lock = threading.Lock()
_workers = 0
_found: tuple[tuple[int, int, int], bool] = ((0, 0, 0), False)
"""Its thresholds as they were, and whether something was frozen already, which is then not ours to thaw."""


@contextmanager
def less_often() -> Iterator[None]:
    """Enter with each worker: what is there before the first one is not looked at again before the last one has ended."""
    global _workers, _found  # noqa: PLW0603  # the collector is one for the process
    with _lock:
        _workers += 1
        if _workers == 1:
            young, *older = gc.get_threshold()
            _found = (young, older[0], older[1]), gc.get_freeze_count() > FEW
            gc.freeze()
            if young:  # 0: somebody has switched it off
                gc.set_threshold(max(young, YOUNG), *older)
    try:
        yield
    finally:
        with _lock:
            _workers -= 1
            if _workers == 0:
                thresholds, frozen = _found
                gc.set_threshold(*thresholds)
                if not frozen:
                    gc.unfreeze()
