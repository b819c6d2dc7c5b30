"""What a pool has, and what it has done since it was made.

Guarantees: counters only grow. Must not: decide anything.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Counters:
    """What has happened, counted by whoever sees it; the meanings are those of `PoolStatistics`."""

    logins: int = 0
    failed_logins: int = 0
    reuses: int = 0
    expired: int = 0
    invalid: int = 0
    evictions: int = 0
    closed_by_failure: int = 0
    saturations: int = 0
    deaths: int = 0
    relaunches: int = 0
    failed_launches: int = 0
    recycled: int = 0


@dataclass(frozen=True, slots=True)
class PoolStatistics:
    """One look at a pool.

    Attributes:
        browsers: browsers that there should be.
        browsers_alive: those that run and take contexts.
        capacity: contexts that can be had now.
        contexts: those that are open, being opened or being closed; never more than `browsers` times the contexts of each.
        in_use: leases that have not been released.
        opening: acquires that have their place, and whose context is being checked, opened or logged in.
        idle: contexts that are kept and not in use.
        waiting: acquires that wait for a place.
        waiting_for_login: acquires that have their place and wait for the login budget.
        logins: logins that were started.
        failed_logins: those of them that failed or left no valid session.
        reuses: acquires that got the agent's own context again.
        expired: contexts that were replaced because of their age.
        invalid: contexts that were replaced because their session was over.
        evictions: contexts that were closed to make room for another agent.
        closed_by_failure: contexts that were released not to be kept, or could not be kept.
        saturations: acquires that waited in vain.
        deaths: browsers that ended without being told to.
        relaunches: browsers that were started in place of another one.
        failed_launches: launches that failed after the start of the pool.
        recycled: browsers that were ended because of their age or memory.
    """

    browsers: int
    browsers_alive: int
    capacity: int
    contexts: int
    in_use: int
    opening: int
    idle: int
    waiting: int
    waiting_for_login: int
    logins: int
    failed_logins: int
    reuses: int
    expired: int
    invalid: int
    evictions: int
    closed_by_failure: int
    saturations: int
    deaths: int
    relaunches: int
    failed_launches: int
    recycled: int
