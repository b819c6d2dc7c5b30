"""Our tables: dead rows, autovacuum, and the days of the history."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime, timedelta

from archibald_pgq.domain.doctor.finding import Finding, Severity, counted, graded, lasted, named

DEAD_NOTICE, DEAD_SERIOUS = 10_000, 1_000_000
"""Dead rows of a table that has fewer live ones."""

LATE = timedelta(days=2)
"""A day of the history is dropped by an hourly look, and a day may be one behind because of late jobs."""


@dataclass(frozen=True, slots=True)
class Table:
    """A table: its rows by the server's statistics, when it was last vacuumed, and whether autovacuum looks after it."""

    name: str
    live: int
    dead: int
    vacuumed_at: datetime | None
    autovacuum: bool


@dataclass(frozen=True, slots=True)
class Vacuum:
    """The server's own switches."""

    autovacuum: bool
    track_counts: bool


def dead_rows(tables: list[Table], now: datetime) -> list[Finding]:
    """Judge the table with the most dead rows."""
    worst = max(tables, key=lambda table: (table.dead > max(table.live, DEAD_NOTICE), table.dead))
    many = worst.dead > worst.live
    grade = graded(many and worst.dead > DEAD_NOTICE, many and worst.dead > DEAD_SERIOUS)
    last = f"{lasted(now - worst.vacuumed_at)} ago" if worst.vacuumed_at else "never"
    if grade is Severity.OK:
        most = f"the most has {worst.name}: {worst.dead:,} beside {worst.live:,} live ones"
        return [Finding("dead_rows", grade, f"no table is full of dead rows; {most}")]
    found = f"archibald.{worst.name} has {worst.dead:,} dead rows beside {worst.live:,} live ones, last vacuumed {last}"
    remedy = f"look at oldest_transaction and autovacuum, then VACUUM archibald.{worst.name}"
    return [Finding("dead_rows", grade, found, remedy)]


def autovacuum(seen: Vacuum, tables: list[Table]) -> list[Finding]:
    """Judge whether autovacuum can look after all tables."""
    name = "autovacuum"
    for switch, on in (("autovacuum", seen.autovacuum), ("track_counts", seen.track_counts)):
        if not on:
            remedy = f"ALTER SYSTEM SET {switch} = on; SELECT pg_reload_conf()"
            return [Finding(name, Severity.SERIOUS, f"{switch} is off on this server: no table is vacuumed", remedy)]
    without = [table.name for table in tables if not table.autovacuum]
    if without:
        found = f"autovacuum is switched off for {counted(len(without), 'table')} of the queue: {named(without)}"
        remedy = f"ALTER TABLE archibald.{without[0]} RESET (autovacuum_enabled)"
        return [Finding(name, Severity.SERIOUS, found, remedy)]
    return [Finding(name, Severity.OK, f"autovacuum looks after all {len(tables)} tables of the queue")]


def history(days: list[date], today: date, retention_days: int) -> list[Finding]:
    """Judge the days that have a partition: none is much older than the retention, and tomorrow has one."""
    name = "history"
    if today + timedelta(days=1) not in days:
        found = f"the history has no partition for tomorrow; its {counted(len(days), 'day')} end with {max(days, default='none')}"
        remedy = "start a worker, or SELECT archibald.make_history_partitions(7)"
        return [Finding(name, Severity.NOTICE, found, remedy)]
    over = sorted(day for day in days if day + timedelta(days=1) < today - timedelta(days=retention_days) - LATE)
    if over:
        found = (
            f"{counted(len(over), 'day')} of the history, the oldest {over[0]}, should have been dropped after {retention_days} days, "
            "unless jobs of that day ended late or are live"
        )
        remedy = f"SELECT archibald.drop_history_partitions({retention_days}); the server's log says what stops it"
        return [Finding(name, Severity.NOTICE, found, remedy)]
    return [Finding(name, Severity.OK, f"the history has {counted(len(days), 'day')}, none is over")]
