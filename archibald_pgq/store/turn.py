"""The turn: one round trip that settles what ended and claims what may run next.

Owns: the call of `archibald.turn` and the reading of its rows. Must not: decide when, or what an outcome is.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import psycopg
from psycopg.adapt import Transformer
from psycopg.pq.abc import PGresult

from archibald_pgq.domain.backoff import Backoff
from archibald_pgq.domain.job import ClaimedJob
from archibald_pgq.domain.operations import JobClass, Policy
from archibald_pgq.domain.outcome import Outcome
from archibald_pgq.store.arrays import of_names, of_numbers, of_seconds, of_texts
from archibald_pgq.store.statement import run

Connection = psycopg.AsyncConnection[tuple[Any, ...]]

# JSON as text: the driver's loader takes three times as long for it, and another part of the program may have set its own.
_TURN = """
SELECT what, lane, user_id, epoch, job, kind, job_class, attempt, max_attempts, payload::text, saved_state::text, requeue_count, delay_s,
       marked, timeout_s, backoff, backoff_s, idempotent
  FROM archibald.turn(%(worker)s, %(lanes)s, %(epochs)s, %(marks)s, %(marked_for)s, %(item_lanes)s, %(jobs)s, %(events)s, %(results)s,
                      %(errors)s, %(delays)s, %(began)s, %(ended)s, %(want)s, %(syncs)s, %(aged)s, %(ahead)s, %(short)s, %(most)s, %(look)s,
                      %(solo)s)
"""
_RETAKE = "SELECT lane, epoch, jobs, got FROM archibald.retake(%s)"
_DROP_STRAY = "SELECT archibald.drop_stray_locks(%s)"


class Owner(NamedTuple):
    """One ownership of one lane: the epoch is never used twice."""

    lane: int
    epoch: int


@dataclass(frozen=True, slots=True)
class Want:
    """What a worker could start now."""

    jobs: int = 0
    """Lanes for consumers that are free."""
    syncs: int = 0
    """Of these, syncs at most."""
    aged: int = 0
    """Of these, syncs that waited too long and go before all others."""
    ahead: int = 0
    """Lanes for consumers that will be free in a moment."""
    short: Mapping[str, int] = field(default_factory=dict)
    """Kinds of which a lane may bring several jobs, and how many."""


NOTHING = Want()


@dataclass(slots=True)
class Settlement:
    """An outcome to be written, and when its job began and ended (monotonic seconds; None: it never began)."""

    job_id: int
    outcome: Outcome
    began: float | None = None
    ended: float | None = None


class Mark(NamedTuple):
    """A job that goes on and is to be marked running, and when it began (monotonic seconds)."""

    job_id: int
    began: float


class Report(NamedTuple):
    """What is to be written of one ownership: it proves that this is the worker's to write."""

    owner: Owner
    settlements: list[Settlement]
    mark: Mark | None = None


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
    lost: list[Owner] = field(default_factory=list)
    """Refused: no longer this worker's. What was reported and is neither lost nor locked is written."""
    locked: list[Owner] = field(default_factory=list)
    """Not written, because a caller holds the row; to be repeated."""
    unwanted: list[Owner] = field(default_factory=list)
    """Somebody asked to cancel the job that was marked."""
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


class Answer:
    """What the server said to a turn, not read yet: meanwhile the next turn can be sent, and the server need not wait."""

    def __init__(self, connection: Connection, result: PGresult, reports: Sequence[Report], want: Want) -> None:
        """Keep the whole answer, which needs its connection no more; `reports` and `want` are what was sent."""
        self._transformer = Transformer(connection)
        self._result = result
        self.reports, self.want = reports, want
        self.rows = result.ntuples

    @property
    def lanes(self) -> int:
        """How many lanes it may have brought: never fewer than it has."""
        return min(self.rows, self.want.jobs + self.want.ahead)

    def read(self) -> Turn:
        """Return what the turn came to; once."""
        turn = Turn()
        self._transformer.set_pgresult(self._result)
        for row in self._transformer.load_rows(0, self.rows, tuple):
            _read(row, turn)
        return turn


async def take_turn(
    connection: Connection, worker_id: int, reports: Sequence[Report], want: Want, *, look: bool, solo: bool = False
) -> Answer:
    """Write `reports` and claim what is wanted; `look`: look again at doubts, pauses, foreign locks and writes that wait for a sync.

    `solo`: the last answer to a wish was `solo`.

    Raises:
        psycopg.Error: nothing of this turn was written (or, when the connection broke, perhaps all of it: see `owned_lanes`).
    """
    params = {
        "worker": worker_id,
        **(_reported(reports) if reports else _NOTHING_REPORTED),
        "want": want.jobs,
        "syncs": want.syncs,
        "aged": want.aged,
        "ahead": want.ahead,
        "short": of_texts(want.short),
        "most": of_numbers(want.short.values()),
        "look": look,
        "solo": solo,
    }
    return Answer(connection, await connection.wait(run(connection, _TURN, params)), reports, want)


def _reported(reports: Sequence[Report]) -> dict[str, str]:
    now = time.monotonic()
    items = [(report.owner.lane, item) for report in reports for item in report.settlements]
    marks = [report.mark for report in reports]
    outcomes = [item.outcome for _, item in items]
    return {
        "lanes": of_numbers(report.owner.lane for report in reports),
        "epochs": of_numbers(report.owner.epoch for report in reports),
        "marks": of_numbers(mark and mark.job_id for mark in marks),
        "marked_for": of_seconds(mark and now - mark.began for mark in marks),
        "item_lanes": of_numbers(lane for lane, _ in items),
        "jobs": of_numbers(item.job_id for _, item in items),
        "events": of_names(outcome.event for outcome in outcomes),
        "results": of_texts(outcome.result for outcome in outcomes),
        "errors": of_texts(outcome.error for outcome in outcomes),
        "delays": of_seconds(outcome.delay for outcome in outcomes),
        "began": of_seconds(item.began and now - item.began for _, item in items),
        "ended": of_seconds(item.ended and now - item.ended for _, item in items),
    }


_NOTHING_REPORTED = _reported([])


@lru_cache(maxsize=1000)
def _policy(
    job_class: str,
    timeout: float,
    max_attempts: int,
    backoff: Literal["fixed", "exponential"] | None,
    backoff_s: float,
    *,
    idempotent: bool,
) -> Policy:
    return Policy(
        JobClass(job_class), 0, timeout, max_attempts, Backoff(backoff, backoff_s) if backoff else None, idempotent
    )


def _read(row: tuple[Any, ...], turn: Turn) -> None:
    (
        what,
        lane,
        user_id,
        epoch,
        job,
        kind,
        job_class,
        attempt,
        max_attempts,
        payload,
        saved_state,
        requeue_count,
        delay,
        marked,
        *policy,
    ) = row
    match what:
        case "run":
            timeout, backoff, backoff_s, idempotent = policy
            turn.claimed.append(
                ClaimedJob(
                    lane,
                    epoch,
                    job,
                    user_id,
                    kind,
                    attempt + 1,
                    max_attempts,
                    json.loads(payload),
                    _policy(job_class, timeout, max_attempts, backoff, backoff_s, idempotent=idempotent),
                    saved_state if saved_state is None else json.loads(saved_state),
                    marked,
                )
            )
        case "requeued":
            turn.requeued.append(Requeued(user_id, kind, job, requeue_count, delay))
        case "lost":
            turn.lost.append(Owner(lane, epoch))
        case "locked":
            turn.locked.append(Owner(lane, epoch))
        case "stop":
            turn.unwanted.append(Owner(lane, epoch))
        case "contradiction":
            turn.contradictions.append(user_id)
        case "next":
            turn.next_in = delay
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
