"""Other people's sessions: who keeps dead rows alive, holds agents' locks, or lets enqueuers wait."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from archibald_pgq.domain.doctor.finding import Finding, Severity, counted, graded, lasted, named, session

OPEN_NOTICE, OPEN_SERIOUS = timedelta(minutes=1), timedelta(minutes=10)
"""How long a transaction that holds back vacuum may be open."""

SLOT_NOTICE, SLOT_SERIOUS = 1_000_000, 10_000_000
"""How many transactions a replication slot may be behind."""

BLOCKED_NOTICE, BLOCKED_SERIOUS = timedelta(seconds=1), timedelta(minutes=1)
"""How long the transaction that others wait for may be open."""


@dataclass(frozen=True, slots=True)
class Holder:
    """What keeps dead rows from being removed: a session, a prepared transaction or a replication slot.

    Attributes:
        sort: "session", "prepared" or "slot"; name: the application, or the transaction's or the slot's own name.
        open_for: since its transaction began; None for a slot, and where it may not be seen.
        state: of a session, such as "idle in transaction"; xids: how many transactions have begun since its oldest snapshot.
    """

    sort: str
    pid: int | None
    name: str | None
    user: str | None
    open_for: timedelta | None
    state: str | None
    xids: int


@dataclass(frozen=True, slots=True)
class LockHolder:
    """A session that holds an agent's lock and is not the worker that runs its lane; `runs`: another worker runs it."""

    user_id: str
    pid: int
    application: str | None
    address: str | None
    connected_for: timedelta | None
    runs: bool


@dataclass(frozen=True, slots=True)
class Blocker:
    """A transaction that lets `waiting` sessions wait which write to the queue; `pid` None: a prepared one."""

    pid: int | None
    application: str | None
    user: str | None
    state: str | None
    open_for: timedelta | None
    waiting: int
    waiting_pids: list[int]
    longest: timedelta


def oldest_transaction(holders: list[Holder]) -> list[Finding]:
    """Judge the one that holds back vacuum the furthest; holders come with the oldest first."""
    name = "oldest_transaction"
    if not holders:
        return [Finding(name, Severity.OK, "no open transaction keeps dead rows from being removed")]
    worst = max(holders, key=lambda holder: (_grade(holder) is Severity.SERIOUS, _grade(holder) is Severity.NOTICE))
    grade = _grade(worst)
    more = sum(_grade(holder) is not Severity.OK for holder in holders) - 1
    others = f"; so {'does' if more == 1 else 'do'} {more} more" if more > 0 else ""
    found = f"{_described(worst)} keeps dead rows of the last {counted(worst.xids, 'transaction')} from being removed"
    return [Finding(name, grade, found + others, None if grade is Severity.OK else _ending(worst))]


def _grade(holder: Holder) -> Severity:
    if holder.sort == "slot":
        return graded(holder.xids > SLOT_NOTICE, holder.xids > SLOT_SERIOUS)
    length = holder.open_for or timedelta(0)
    return graded(length > OPEN_NOTICE, length > OPEN_SERIOUS)


def _described(holder: Holder) -> str:
    since = f", open for {lasted(holder.open_for)}" if holder.open_for is not None else ""
    if holder.sort == "session":
        return f"{session(holder.pid, holder.name, holder.user)}{since}, {holder.state or 'in an unknown state'},"
    if holder.sort == "prepared":
        return f"the prepared transaction {holder.name!r} of {holder.user}{since},"
    return f"the replication slot {holder.name} ({holder.state})"


def _ending(holder: Holder) -> str:
    if holder.sort == "session":
        return f"let it commit, or SELECT pg_terminate_backend({holder.pid})"
    if holder.sort == "prepared":
        return f"COMMIT PREPARED or ROLLBACK PREPARED {_literal(holder.name)}"
    return f"start its receiver, or SELECT pg_drop_replication_slot({_literal(holder.name)})"


def _literal(text: str | None) -> str:
    return "'" + (text or "").replace("'", "''") + "'"


def agent_locks(holders: list[LockHolder]) -> list[Finding]:
    """Judge who holds agents' locks."""
    name = "agent_locks"
    if not holders:
        return [Finding(name, Severity.OK, "only workers hold agents' locks")]
    first = max(holders, key=lambda holder: holder.runs)
    since = f", connected for {lasted(first.connected_for)}" if first.connected_for is not None else ""
    found = (
        f"{counted(len(holders), 'agent')} locked from outside ({named([holder.user_id for holder in holders])}): the lock of "
        f"{first.user_id} is held by {session(first.pid, first.application, address=first.address)}{since}"
    )
    if first.runs:
        remedy = f"find out what it does, then SELECT pg_terminate_backend({first.pid})"
        return [Finding(name, Severity.SERIOUS, f"{found}, while a worker runs a job of this agent", remedy)]
    remedy = f"its jobs wait: let it unlock_agent, or SELECT pg_terminate_backend({first.pid})"
    return [Finding(name, Severity.NOTICE, found, remedy)]


def blocked(blockers: list[Blocker]) -> list[Finding]:
    """Judge the transactions that others who write to the queue wait for."""
    name = "blocked"
    if not blockers:
        return [Finding(name, Severity.OK, "nobody who writes to the queue waits for another transaction")]
    first = max(blockers, key=lambda blocker: (blocker.open_for or timedelta(0), blocker.waiting))
    length = first.open_for or first.longest
    grade = graded(length > BLOCKED_NOTICE, length > BLOCKED_SERIOUS)
    waiting = sum(blocker.waiting for blocker in blockers)
    wait = "waits" if waiting == 1 else "wait"
    found = (
        f"{counted(waiting, 'session')} (such as backend {first.waiting_pids[0]}) {wait} for up to {lasted(first.longest)} for "
        f"{session(first.pid, first.application, first.user)}, {first.state or 'in an unknown state'}, whose transaction is open for "
        f"{lasted(length)}"
    )
    end = f"SELECT pg_terminate_backend({first.pid})" if first.pid else "COMMIT PREPARED (see pg_prepared_xacts)"
    remedy = f"commit it soon after enqueueing (the same key or sync waits for it), or {end}"
    return [Finding(name, grade, found, None if grade is Severity.OK else remedy)]
