"""What happens when: a pure function of the seed.

Owns: the kinds of faults and their times. Must not: know any process; a target is a rank, taken modulo what there is at that time.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

KINDS = (
    "kill",
    "term",
    "stop short",
    "stop long",
    "end a backend",
    "end all backends",
    "restart",
    "crash",
    "kill a backend",
    "black hole",
    "reset",
)


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault."""

    at: float
    """Seconds from the beginning."""
    kind: str
    rank: int


def schedule(seed: int, seconds: float) -> list[Fault]:
    """Return the faults of a run, in order. Each kind comes once before one comes again; the next one follows after 0.5 to 4 s."""
    chance = random.Random(seed)  # repeatable is what it must be
    faults: list[Fault] = []
    at, bag = 2.0, list[str]()
    while at < seconds:
        if not bag:
            bag = chance.sample(KINDS, len(KINDS))
        faults.append(Fault(round(at, 3), bag.pop(), chance.randrange(1 << 16)))
        at += chance.uniform(0.5, 4.0)
    return faults
