"""What a pool did and has, in numbers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Counters:
    """What a pool counts on its way; each only grows."""

    logins: int = 0
    reuses: int = 0
    expired: int = 0
    evictions: int = 0
    closed_after_failure: int = 0
    launches: int = 0
    deaths: int = 0
    recycled: int = 0
    saturations: int = 0


@dataclass(frozen=True, slots=True)
class PoolStatistics:
    """A pool at one moment.

    Attributes:
        browsers: browser processes that run.
        capacity: contexts that can be had: fewer while a browser is down.
        contexts: contexts that are open.
        in_use: of these and of those being opened, the ones that somebody has.
        waiting: who waits for one.
        logins: logins that were begun.
        reuses: contexts that were found logged in.
        expired: contexts that were too old, or no longer logged in.
        evictions: contexts that made room for another agent's.
        closed_after_failure: contexts that were given back as not to be kept.
        launches: browsers that were started.
        deaths: browsers that ended by themselves.
        recycled: browsers that were started anew because of their age or memory.
        saturations: who waited in vain.
    """

    browsers: int
    capacity: int
    contexts: int
    in_use: int
    waiting: int
    logins: int
    reuses: int
    expired: int
    evictions: int
    closed_after_failure: int
    launches: int
    deaths: int
    recycled: int
    saturations: int
