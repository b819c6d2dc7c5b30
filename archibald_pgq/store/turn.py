"""The turn: one round trip that settles what ended and claims what may run next.

Owns: the call of `archibald.turn` and the reading of its rows. Must not: decide when, or what an outcome is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import psycopg
from psycopg.rows import namedtuple_row

from archibald_pgq.domain.backoff import Backoff
from archibald_pgq.domain.job import ClaimedJob
from archibald_pgq.domain.operations import JobClass, Policy
from archibald_pgq.domain.outcome import Outcome

Connection = psycopg.AsyncConnection[tuple[Any, ...]]

_TURN = """
SELECT * FROM archibald.turn(%(worker)s, %(lanes)s::bigint[], %(epochs)s::bigint[], %(jobs)s::bigint[], %(events)s::text[],
                             %(results)s::text[], %(errors)s::text[], %(delays)s::double precision[],
                             %(jobs_wanted)s, %(syncs_wanted)s, %(aged_wanted)s, %(look)s, %(solo)s)
"""
_RETAKE = "SELECT lane, epoch, jobs, got FROM archibald.retake(%s)"
_DROP_STRAY = "SELECT archibald.drop_stray_locks(%s)"


class Owner(NamedTuple):
    """One ownership of one lane: the epoch is never used twice."""

    lane: int
    epoch: int


class Want(NamedTuple):
    """What a worker could start now."""

    jobs: int
    """In all."""
    syncs: int
    """Of these, syncs at most."""
    aged: int
    """Of these, syncs that waited too long and go before all others."""


NOTHING = Want(0, 0, 0)


@dataclass(frozen=True, slots=True)
class Settlement:
    """An outcome with what proves that it is this worker's to write: lane, epoch and job."""

    owner: Owner
    job_id: int
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Requeued:
    """A job that went back because its agent's lock was taken by somebody else."""

    user_id: str
    kind: str
    job_id: int
    requeue_count: int
    delay: float
    """Seconds."""


@dataclass(slots=True)
class Turn:
    """What one turn came to."""

    claimed: list[ClaimedJob] = field(default_factory=list)
    requeued: list[Requeued] = field(default_factory=list)
    settled: list[Owner] = field(default_factory=list)
    lost: list[Owner] = field(default_factory=list)
    """Refused: no longer this worker's."""
    locked: list[Owner] = field(default_factory=list)
    """Not written, because a caller holds the row; to be repeated."""
    contradictions: list[str] = field(default_factory=list)
    next_in: float | None = None
    """Seconds until something becomes due that no notification announces."""
    solo: bool = False
    """A job waits that runs alone, and it is this worker's to run it: what was claimed with this answer is that job."""
    fenced: bool = False


@dataclass(frozen=True, slots=True)
class Owned:
    """A lane that the database says is this worker's, and whether this session now has its lock."""

    owner: Owner
    job_ids: list[int]
    locked: bool


async def take_turn(
    connection: Connection,
    worker_id: int,
    settlements: Sequence[Settlement],
    want: Want,
    *,
    look: bool,
    solo: bool = False,
) -> Turn:
    """Settle `settlements` and claim what is wanted; `look`: look again at doubts, pauses, foreign locks and writes that wait for a sync.

    `solo`: the last answer to a wish was `solo`.

    Raises:
        psycopg.Error: nothing of this turn was written (or, when the connection broke, perhaps all of it: see `owned_lanes`).
    """
    turn = Turn()
    async with connection.cursor(row_factory=namedtuple_row) as cursor:
        await cursor.execute(
            _TURN,
            {
                "worker": worker_id,
                "lanes": [s.owner.lane for s in settlements],
                "epochs": [s.owner.epoch for s in settlements],
                "jobs": [s.job_id for s in settlements],
                "events": [s.outcome.event.value for s in settlements],
                "results": [s.outcome.result for s in settlements],
                "errors": [s.outcome.error for s in settlements],
                "delays": [s.outcome.delay for s in settlements],
                "jobs_wanted": want.jobs,
                "syncs_wanted": want.syncs,
                "aged_wanted": want.aged,
                "look": look,
                "solo": solo,
            },
        )
        async for row in cursor:
            _read(row, turn)
    return turn


def _read(row: Any, turn: Turn) -> None:
    match row.what:
        case "run":
            backoff = Backoff(row.backoff, row.backoff_s) if row.backoff else None
            policy = Policy(JobClass(row.job_class), 0, row.timeout_s, row.max_attempts, backoff, row.idempotent)
            turn.claimed.append(
                ClaimedJob(
                    row.lane,
                    row.epoch,
                    row.job,
                    row.user_id,
                    row.kind,
                    row.attempt + 1,
                    row.max_attempts,
                    row.payload,
                    policy,
                    row.saved_state,
                )
            )
        case "requeued":
            turn.requeued.append(Requeued(row.user_id, row.kind, row.job, row.requeue_count, row.delay_s))
        case "settled":
            turn.settled.append(Owner(row.lane, row.epoch))
        case "lost":
            turn.lost.append(Owner(row.lane, row.epoch))
        case "locked":
            turn.locked.append(Owner(row.lane, row.epoch))
        case "contradiction":
            turn.contradictions.append(row.user_id)
        case "next":
            turn.next_in = row.delay_s
        case "solo":
            turn.solo = True
        case "fenced":
            turn.fenced = True
        case other:
            raise ValueError(f"archibald.turn returned a row of the unknown sort {other!r}")


async def owned_lanes(connection: Connection, worker_id: int) -> list[Owned]:
    """Return what this worker owns by the database's word, taking again every agent lock that this session does not hold."""
    cursor = await connection.execute(_RETAKE, (worker_id,))
    return [Owned(Owner(lane, epoch), jobs, got) for lane, epoch, jobs, got in await cursor.fetchall()]


async def drop_stray_locks(connection: Connection, worker_id: int) -> int:
    """Free agent locks of this session that belong to no lane of this worker; return how many."""
    cursor = await connection.execute(_DROP_STRAY, (worker_id,))
    return len(await cursor.fetchall())
