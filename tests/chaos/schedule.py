"""What happens when: a pure function of the seed.

Owns: the kinds of faults, their times, how long each lasts and what it is aimed at. Must not: know any process; a target is a rank, taken
modulo what there is at that time. Faults overlap: the next one waits for none.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from enum import StrEnum

LEASE = 2.0
"""Of the workers, in seconds: what is short or long is measured by it."""

FIRST = 1.5
GAP = (0.4, 2.0)
"""Seconds from the start of a fault to the start of the next one."""


class Aim(StrEnum):
    """Whom a fault meets, and when."""

    ANY = "any"
    RUNNING = "running"
    """The worker with the most running handlers."""
    CLAIM = "claim"
    """A worker at the moment at which a handler starts."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of fault."""

    name: str
    aim: Aim = Aim.ANY
    seconds: tuple[float, float] = (0.0, 0.0)
    """How long it lasts: from, to."""
    times: int = 1
    """How often it comes for each time that a kind of 1 comes."""


SHORT, LONG = (LEASE / 10, LEASE * 0.4), (LEASE * 1.3, LEASE * 2.7)
KINDS = (
    Kind("kill"),
    Kind("kill in a handler", Aim.RUNNING),
    Kind("kill after a claim", Aim.CLAIM),
    Kind("term", times=2),
    Kind("stop short", Aim.RUNNING, SHORT),
    Kind("stop long", Aim.RUNNING, LONG, times=3),
    Kind("stop after a claim", Aim.CLAIM, LONG),
    Kind("black hole short", Aim.RUNNING, SHORT),
    Kind("black hole long", Aim.RUNNING, LONG, times=5),
    Kind("black hole after a claim", Aim.CLAIM, LONG),
    Kind("reset", times=2),
    Kind("enqueuers' black hole", seconds=LONG),
    Kind("enqueuers' reset"),
    Kind("end a backend", times=2),
    Kind("end all backends"),
    Kind("kill a backend"),
    Kind("restart"),
    Kind("crash"),
)


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault."""

    at: float
    """Seconds from the beginning."""
    kind: str
    aim: Aim
    seconds: float
    rank: int


def schedule(seed: int, seconds: float) -> list[Fault]:
    """Return the faults of a run, in order; all are over at its end. Each kind comes as often as it should before one comes again."""
    chance = random.Random(seed)  # repeatable is what it must be
    whole = [kind for kind in KINDS for _ in range(kind.times)]
    faults: list[Fault] = []
    at, bag = FIRST, list[Kind]()
    while at < seconds:
        if not bag:
            bag = chance.sample(whole, len(whole))
        kind = bag.pop()
        lasts, rank = round(chance.uniform(*kind.seconds), 3), chance.randrange(1 << 16)
        if at + lasts < seconds:
            faults.append(Fault(round(at, 3), kind.name, kind.aim, lasts, rank))
        at += chance.uniform(*GAP)
    return faults
