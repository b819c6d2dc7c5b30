"""The server, the way to it, its clock, and what the connected role may do there."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from archibald_pgq.domain.doctor.finding import Finding, Severity, graded, lasted, named, session

SKEW = timedelta(seconds=1)
"""A host's clock may be so far off before anybody is told; nothing of the queue depends on it."""

NOTIFY_NOTICE, NOTIFY_SERIOUS = 0.1, 0.5
"""Parts of the server's queue of notifications that are in use. When it is full, every NOTIFY fails; ours are left out before."""


@dataclass(frozen=True, slots=True)
class Way:
    """How a URL leads to the server.

    Attributes:
        setting: the variable that holds the URL; place: host, port and database.
        pooler: True if there is a connection pooler in between; None: it cannot be reached, `refusal` says why.
    """

    setting: str
    place: str
    pooler: bool | None
    refusal: str = ""


@dataclass(frozen=True, slots=True)
class Clock:
    """The database's clock less this host's, and how far that may be wrong (half of the round trip)."""

    ahead: timedelta
    bound: timedelta


@dataclass(frozen=True, slots=True)
class Server:
    """The server's version, and the use of its queue of notifications (0 to 1)."""

    version: str
    version_num: int
    notify_usage: float


@dataclass(frozen=True, slots=True)
class NotifyHolder:
    """The session that keeps the queue of notifications from being emptied: it listens, and takes no notification.

    Attributes:
        named: the server itself named it. Otherwise its transaction is the oldest on the server, which is a guess: who listens, and what
            each has read, is not to be seen.
        waits: the event that it waits for, such as "Client:ClientWrite" of one whose program does not read.
    """

    pid: int
    application: str | None
    user: str | None
    database: str | None
    state: str | None
    waits: str | None
    open_for: timedelta | None
    named: bool


@dataclass(frozen=True, slots=True)
class Rights:
    """What the connected role lacks of what a worker and an enqueuer need, and whether it sees other people's sessions."""

    role: str
    worker_lacks: list[str]
    enqueuer_lacks: list[str]
    sees_sessions: bool


def connection(main: Way, direct: Way | None) -> list[Finding]:
    """Judge the ways to the server: a worker needs one without a pooler."""
    name = "connection"
    if direct is not None:
        if direct.pooler is None:
            found = f"{direct.setting} ({direct.place}) cannot be used: {direct.refusal}"
            return [Finding(name, Severity.SERIOUS, found, f"correct {direct.setting}, or start that server")]
        if direct.pooler:
            found = f"{direct.setting} ({direct.place}) leads to a connection pooler, where a worker refuses to start"
            remedy = f"set {direct.setting} to the address of Postgres itself"
            return [Finding(name, Severity.SERIOUS, found, remedy)]
    kind = "goes through a connection pooler" if main.pooler else "is direct"
    found = f"the connection to {main.place} {kind}"
    if main.pooler and direct is None:
        remedy = "give workers the address of Postgres itself in ARCHIBALD_DIRECT_URL; enqueueing and looking work through the pooler"
        return [Finding(name, Severity.NOTICE, f"{found}, where a worker refuses to start", remedy)]
    return [Finding(name, Severity.OK, found + (f", and {direct.setting} is direct" if direct else ""))]


def clock(seen: Clock) -> list[Finding]:
    """Judge the host's clock."""
    off, bound = abs(seen.ahead), seen.bound
    way = "behind" if seen.ahead > timedelta(0) else "ahead of"
    if off <= bound:
        found = f"this host's clock is the database's, to within {bound.total_seconds() * 1000:.1f} ms"
    else:
        found = (
            f"this host's clock is {off.total_seconds():.3f} s {way} the database's (± {bound.total_seconds():.3f} s)"
        )
    remedy = "run NTP on this host; the queue goes by the database's clock, only logs and screens are off"
    bad = off - bound > SKEW
    return [Finding("clock", graded(bad, False), found, remedy if bad else None)]


def server(seen: Server, oldest: int) -> list[Finding]:
    """Judge the version."""
    old = seen.version_num // 10000 < oldest
    remedy = f"upgrade the server to PostgreSQL {oldest} or newer" if old else None
    return [Finding("server", graded(False, old), f"the server is PostgreSQL {seen.version}", remedy)]


def notify_queue(usage: float, holder: NotifyHolder | None) -> list[Finding]:
    """Judge the queue of notifications; `holder` is asked for where it is not nearly empty, and may not be known."""
    bad = graded(usage > NOTIFY_NOTICE, usage > NOTIFY_SERIOUS)
    found = f"{usage:.1%} of the server's queue of notifications is in use"
    if bad is Severity.OK:
        return [Finding("notify_queue", bad, found)]
    log = (
        'the server\'s log names the session that listens and does not end its transaction ("NOTIFY queue is …% full")'
    )
    if holder is None:
        return [Finding("notify_queue", bad, f"{found}, and who holds it back cannot be seen", f"{log}: end it")]
    since = f", its transaction open for {lasted(holder.open_for)}" if holder.open_for is not None else ""
    waits = f", waiting for {holder.waits}" if holder.waits else ""
    who = (
        f"{session(holder.pid, holder.application, holder.user)} of database {holder.database}, "
        f"{holder.state or 'in an unknown state'}{waits}{since}"
    )
    end = f"let it end its transaction and read, or SELECT pg_terminate_backend({holder.pid})"
    if holder.named:
        return [Finding("notify_queue", bad, f"{found}; the server says that it waits for {who}", end)]
    guess = (
        f"{found}; who holds it back cannot be seen, most likely it is the session with the oldest transaction: {who}"
    )
    return [Finding("notify_queue", bad, guess, f"{log}; if it is this one, {end}")]


def rights(seen: Rights) -> list[Finding]:
    """Judge what the connected role may do."""
    found: list[str] = []
    for who, lacks in (("an enqueuer", seen.enqueuer_lacks), ("a worker", seen.worker_lacks)):
        has = f"lacks what {who} needs ({named(lacks)})" if lacks else f"has what {who} needs"
        found.append(has)
    some = bool(seen.worker_lacks and seen.enqueuer_lacks)
    remedy = "that is right for one that only looks; else grant it, or connect as the role that owns the schema"
    findings = [
        Finding("rights", graded(some, False), f"the role {seen.role} {' and '.join(found)}", remedy if some else None)
    ]
    if not seen.sees_sessions:
        findings.append(
            Finding(
                "sight",
                Severity.NOTICE,
                f"the role {seen.role} does not see what other roles' sessions do, so that some checks see less",
                f"GRANT pg_read_all_stats TO {seen.role}",
            )
        )
    return findings
