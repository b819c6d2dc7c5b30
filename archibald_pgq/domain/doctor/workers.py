"""The workers: who is there, what nobody handles, and settings that contradict each other or what the server can carry."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import timedelta

from archibald_pgq.domain.doctor.finding import Finding, Severity, counted, graded, lasted, named

CONNECTIONS = 6
"""A worker holds four, and opens a few more for progress and the history."""

SPARE = 5
"""Connections that enqueuers and people need at the least."""

TIMEOUT_NOTICE, TIMEOUT_SERIOUS = 10.0, 1.0
"""Seconds that a statement of a worker should be given; it mostly needs milliseconds."""

COUNTED = 1000


@dataclass(frozen=True, slots=True)
class Worker:
    """A worker that has neither stopped nor was fenced; `silent`: no heartbeat for longer than its lease."""

    id: int
    host: str
    pid: int
    concurrency: int
    lease_s: float
    max_wait_s: float
    max_preemptions: int
    beat_ago: timedelta
    silent: bool


@dataclass(frozen=True, slots=True)
class Demand:
    """Jobs that are due (counted to 1001)."""

    due_jobs: int


@dataclass(frozen=True, slots=True)
class Unhandled:
    """A kind that no live worker handles, and how many agents wait with it (of those looked at)."""

    kind: str
    agents: int


@dataclass(frozen=True, slots=True)
class Capacity:
    """What the server carries: connections for ordinary roles, how many sessions there are, and places in its lock table."""

    max_connections: int
    sessions: int
    lock_places: int
    locks: int
    track_activities: bool


@dataclass(frozen=True, slots=True)
class Timeout:
    """A timeout that hits workers: its name, its value as Postgres writes it, and whose it is."""

    name: str
    value: str
    whose: str


def presence(workers: list[Worker], demand: Demand) -> list[Finding]:
    """Judge whether somebody works."""
    name = "workers"
    live = [worker for worker in workers if not worker.silent]
    silent = [worker for worker in workers if worker.silent]
    findings = []
    if not live:
        found = f"no worker is alive, and {counted(demand.due_jobs, 'job', COUNTED)} {'is' if demand.due_jobs == 1 else 'are'} due"
        bad = bool(demand.due_jobs)
        remedy = "start one with `archibald-pgq run`"
        findings.append(Finding(name, graded(True, bad), found, remedy))
    if silent:
        first = silent[0]
        found = (
            f"{counted(len(silent), 'worker')} silent and not taken over yet: worker {first.id} ({first.host}, process {first.pid}) "
            f"was last heard of {lasted(first.beat_ago)} ago, its lease is {first.lease_s:g} s"
        )
        remedy = "restart it; a live worker takes its agents over, so start one where none is alive"
        long = any(worker.beat_ago.total_seconds() > 2 * worker.lease_s for worker in silent)
        findings.append(Finding(name, graded(True, long), found, remedy))
    if findings:
        return findings
    oldest = max(worker.beat_ago for worker in live)
    consumers = sum(worker.concurrency for worker in live)
    found = f"{counted(len(live), 'live worker')} with {consumers:,} consumers; the oldest beat is {lasted(oldest)} old"
    return [Finding(name, Severity.OK, found)]


def kinds(unhandled: list[Unhandled], live_workers: int) -> list[Finding]:
    """Judge the kinds that wait and nobody handles; where no worker is alive, that is said elsewhere."""
    if not live_workers:
        return [Finding("kinds", Severity.OK, "no worker is alive (see workers), so that no kind is singled out")]
    if not unhandled:
        return [Finding("kinds", Severity.OK, "every kind that waits has a live worker that handles it")]
    each = [f"{one.kind} ({counted(one.agents, 'agent')})" for one in unhandled]
    found = f"no live worker handles {named(each)}: a free worker fails these jobs"
    remedy = "start a worker whose app has these operations, with `archibald-pgq run MODULE:APP`"
    return [Finding("kinds", Severity.SERIOUS, found, remedy)]


def settings(workers: list[Worker], server: Capacity, timeouts: list[Timeout]) -> list[Finding]:
    """Judge settings against each other; one finding for each contradiction."""
    live = [worker for worker in workers if not worker.silent]
    findings = [*_different(live), *_timeouts(timeouts), *_capacity(live, server)]
    return findings or [Finding("settings", Severity.OK, "no setting contradicts another or the server's")]


def _different(live: list[Worker]) -> list[Finding]:
    findings = []
    for variable, values in (
        ("ARCHIBALD_LEASE", sorted({worker.lease_s for worker in live})),
        ("ARCHIBALD_MAX_WAIT", sorted({worker.max_wait_s for worker in live})),
        ("ARCHIBALD_MAX_PREEMPTIONS", sorted({worker.max_preemptions for worker in live})),
    ):
        if len(values) > 1:
            found = f"live workers differ in {variable}: {named([f'{value:g}' for value in values])}"
            findings.append(Finding("settings", Severity.NOTICE, found, f"start all workers with the same {variable}"))
    return findings


def _timeouts(timeouts: list[Timeout]) -> list[Finding]:
    findings = []
    for timeout in timeouts:
        seconds = _seconds(timeout.value)
        limit = TIMEOUT_NOTICE if timeout.name == "statement_timeout" else float("inf")
        if 0 < seconds < limit:
            serious = timeout.name == "statement_timeout" and seconds < TIMEOUT_SERIOUS
            found = f"{timeout.name} is {seconds:g} s {timeout.whose}, and workers meet it"
            remedy = f"ALTER ROLE … SET {timeout.name} = 0 for the role of the workers"
            findings.append(Finding("settings", graded(True, serious), found, remedy))
    return findings


def _seconds(value: str) -> float:
    """Return a time as Postgres writes it; without a unit it is in milliseconds."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(us|ms|s|min|h|d)?\s*", value)
    units = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
    return float(match[1]) * units[match[2] or "ms"] if match else 0.0


def _capacity(live: list[Worker], server: Capacity) -> list[Finding]:
    findings = []
    needed = CONNECTIONS * len(live) + SPARE
    if needed > server.max_connections or server.sessions >= server.max_connections:
        found = (
            f"{counted(len(live), 'live worker')} and their enqueuers need {needed} connections, the server gives "
            f"{server.max_connections}, and {server.sessions} are in use"
        )
        findings.append(
            Finding("settings", Severity.SERIOUS, found, "ALTER SYSTEM SET max_connections = …, or fewer workers")
        )
    agents = sum(worker.concurrency for worker in live)
    if agents > server.lock_places // 4 or server.locks > server.lock_places // 2:
        found = (
            f"the server's lock table has {server.lock_places:,} places, {server.locks:,} are in use, and live workers may hold "
            f"{agents:,} agents' locks"
        )
        remedy = "ALTER SYSTEM SET max_locks_per_transaction = … (needs a restart)"
        findings.append(Finding("settings", graded(True, server.locks > server.lock_places * 3 // 4), found, remedy))
    if not server.track_activities:
        found = "track_activities is off: who holds a transaction open, and since when, cannot be seen"
        findings.append(
            Finding(
                "settings", Severity.NOTICE, found, "ALTER SYSTEM SET track_activities = on; SELECT pg_reload_conf()"
            )
        )
    return findings
