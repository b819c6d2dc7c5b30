"""Workers in the database: registering, the heartbeat, taking over the agents of one that has gone silent, and upkeep."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import psycopg

from archibald_pgq.store.turn import Owner

Connection = psycopg.AsyncConnection[tuple[Any, ...]]

_REGISTER = """
INSERT INTO archibald.workers (
         host, pid, version, concurrency, max_syncs, kinds, lease_s, max_wait_s, max_preemptions, max_losses,
         witness_boot, witness_path, witness_file, backend_pid, backend_start)
SELECT %(host)s, %(pid)s, %(version)s, %(concurrency)s, %(max_syncs)s, %(kinds)s, %(lease)s, %(max_wait)s, %(max_preemptions)s,
       %(max_losses)s, %(boot)s, %(path)s, %(file)s,
       a.pid, a.backend_start
  FROM pg_stat_activity a WHERE a.pid = pg_backend_pid()
RETURNING id
"""
# The old backend may still hold the agents' locks behind a broken connection: end it, and only it, before taking them again.
_END_OLD = """
WITH old AS MATERIALIZED (
  SELECT s.pid FROM archibald.workers w JOIN pg_stat_activity s ON s.pid = w.backend_pid AND s.backend_start = w.backend_start
   WHERE w.id = %(worker)s AND s.pid <> pg_backend_pid()
)
SELECT pg_terminate_backend(pid, 1000) FROM old
"""
# FOR UPDATE: a turn of the old backend that is still under way holds the row FOR KEY SHARE. Until it has ended it is not known what is
# ours; this fails after the lock_timeout, and the caller tries again.
_MOVE = """
WITH me AS MATERIALIZED (SELECT id FROM archibald.workers WHERE id = %(worker)s FOR UPDATE)
UPDATE archibald.workers w SET backend_pid = a.pid, backend_start = a.backend_start
  FROM pg_stat_activity a, me
 WHERE a.pid = pg_backend_pid() AND w.id = me.id
RETURNING w.fenced_at IS NULL
"""
BEAT = """
WITH beat AS (
  UPDATE archibald.workers SET beat = clock_timestamp(), browsers = CAST(%(browsers)s AS jsonb)
   WHERE id = %(worker)s AND fenced_at IS NULL RETURNING id
)
SELECT (SELECT count(*) FROM beat),
       ARRAY (SELECT id FROM archibald.jobs WHERE worker_id = %(worker)s AND state = 'running' AND cancel_requested_at IS NOT NULL),
       EXISTS (SELECT FROM archibald.jobs WHERE worker_id = %(worker)s AND state = 'running' AND preempt_requested_at IS NOT NULL),
       ARRAY (SELECT json_build_object('worker_id', w.id, 'boot', w.witness_boot, 'path', w.witness_path, 'file', w.witness_file)::text
                FROM archibald.workers w, archibald.workers me
               WHERE me.id = %(worker)s AND w.id <> me.id AND w.witness_boot = me.witness_boot
                 AND w.fenced_at IS NULL AND w.stopped_at IS NULL)
"""
"""The heartbeat, with what this worker's browsers are doing.

It also brings the requests to cancel and to make room, so that none depends on a notification, and the other workers of this boot of the
machine, whose death may be seen here.
"""

_CANCELS = (
    "SELECT id FROM archibald.jobs WHERE worker_id = %s AND state = 'running' AND cancel_requested_at IS NOT NULL"
)
_PREEMPTS = "SELECT lane, epoch, job, by_job, by_kind FROM archibald.preempt_requests(%s)"
# Not while a lane is this worker's (a claim whose reply was lost): nobody fences one that said goodbye, the lane would be stuck for ever.
_STOP = """
UPDATE archibald.workers w SET stopped_at = clock_timestamp()
 WHERE w.id = %(worker)s AND w.fenced_at IS NULL
   AND NOT EXISTS (SELECT FROM archibald.agents a WHERE a.worker_id = w.id AND a.state = 'running')
"""
_TAKEOVER_DUE = "SELECT archibald.takeover_due(%s)"
_FENCE = "SELECT worker, host, pid FROM archibald.fence_stale_workers(%s)"
_FENCE_DEAD = (
    "SELECT worker, host, pid FROM archibald.fence_dead_worker(%(me)s, %(worker)s, %(boot)s, %(path)s, %(file)s)"
)
_END_BACKENDS = "SELECT archibald.end_lost_backends(%s)"
_RELEASE = "SELECT user_id, job, fate FROM archibald.release_fenced_lanes(%s, %s)"
_PARTITIONS = "SELECT archibald.make_history_partitions(%s)"
_DROP_EVIDENCE = "SELECT archibald.drop_evidence(%s)"
_FAILING = "SELECT user_id FROM archibald.breakers WHERE kind = '' ORDER BY failed_at DESC LIMIT 10000"
_DROP_STEPS = "SELECT archibald.drop_checkpoints(%s)"
_DROP = "SELECT archibald.drop_history_partitions(%s)"
_SWEEP_KEYS = """
DELETE FROM archibald.idempotency_keys WHERE ctid = ANY (ARRAY (
  SELECT k.ctid FROM archibald.idempotency_keys k
   WHERE k.expires_at < now() AND NOT EXISTS (SELECT FROM archibald.jobs j WHERE j.id = k.job_id)
   ORDER BY k.expires_at LIMIT 500 FOR UPDATE SKIP LOCKED))
"""
_SWEEP_WORKERS = """
DELETE FROM archibald.workers w
 WHERE coalesce(w.stopped_at, w.fenced_at) < now() - interval '7 days'
   AND NOT EXISTS (SELECT FROM archibald.agents a WHERE a.worker_id = w.id)
"""


@dataclass(frozen=True, slots=True)
class Fenced:
    """A worker that was just declared lost."""

    worker_id: int
    host: str
    pid: int


@dataclass(frozen=True, slots=True)
class Released:
    """A lane of a lost worker that was given free, and what became of its job."""

    user_id: str
    job_id: int | None
    fate: str


@dataclass(frozen=True, slots=True)
class PreemptRequest:
    """A running sync is asked to make room for a write of its agent."""

    owner: Owner
    job_id: int
    by_job: int
    by_kind: str


@dataclass(frozen=True, slots=True)
class Mark:
    """What tells a worker's witness file from every other file."""

    boot: str
    path: str
    file: str
    """device:inode"""


@dataclass(frozen=True, slots=True)
class Neighbour:
    """Another live worker of this boot of the machine, and its witness file."""

    worker_id: int
    mark: Mark


def neighbours(texts: Sequence[str]) -> list[Neighbour]:
    """Read what `BEAT` says of the other workers of this machine."""
    found = [json.loads(text) for text in texts]
    return [Neighbour(row["worker_id"], Mark(row["boot"], row["path"], row["file"])) for row in found]


async def register(
    connection: Connection,
    version: str,
    kinds: Sequence[str],
    *,
    concurrency: int,
    max_syncs: int,
    lease: float,
    max_wait: float,
    max_preemptions: int,
    max_losses: int,
    mark: Mark | None,
) -> int:
    """Add this process as a worker whose agent locks live on `connection`; return its id. Times in seconds. `mark`: of its witness file."""
    cursor = await connection.execute(
        _REGISTER,
        {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "version": version,
            "concurrency": concurrency,
            "max_syncs": max_syncs,
            "kinds": list(kinds),
            "lease": lease,
            "max_wait": max_wait,
            "max_preemptions": max_preemptions,
            "max_losses": max_losses,
            "boot": mark and mark.boot,
            "path": mark and mark.path,
            "file": mark and mark.file,
        },
    )
    row = await cursor.fetchone()
    if row is None:
        raise psycopg.OperationalError("the server does not list this connection in pg_stat_activity")
    return int(row[0])


async def move(connection: Connection, worker_id: int) -> bool:
    """After a reconnect: end the worker's old backend and record this one; False if the worker was fenced meanwhile."""
    await connection.execute(_END_OLD, {"worker": worker_id})
    row = await (await connection.execute(_MOVE, {"worker": worker_id})).fetchone()
    return row is not None and bool(row[0])


async def stop(connection: Connection, worker_id: int) -> None:
    """Say goodbye, so that nobody waits for this worker's lease; does nothing while a lane is still this worker's."""
    await connection.execute(_STOP, {"worker": worker_id})


async def cancel_requests(connection: Connection, worker_id: int) -> list[int]:
    """Return the ids of this worker's running jobs that somebody asked to cancel."""
    return [row[0] for row in await (await connection.execute(_CANCELS, (worker_id,))).fetchall()]


async def preempt_requests(connection: Connection, worker_id: int) -> list[PreemptRequest]:
    """Return this worker's syncs that are asked to make room, after taking back the requests that have lost their reason."""
    rows = await (await connection.execute(_PREEMPTS, (worker_id,))).fetchall()
    return [PreemptRequest(Owner(lane, epoch), *rest) for lane, epoch, *rest in rows]


async def takeover_due(connection: Connection, me: int) -> bool:
    """True if a worker has gone silent, or something of a fenced one is left: else the three below have nothing to do."""
    row = await (await connection.execute(_TAKEOVER_DUE, (me,))).fetchone()
    return row is not None and bool(row[0])


async def fence_stale(connection: Connection, me: int) -> list[Fenced]:
    """Fence every worker whose lease has run out; committed when this returns."""
    return [Fenced(*row) for row in await (await connection.execute(_FENCE, (me,))).fetchall()]


async def fence_dead(connection: Connection, me: int, dead: Neighbour) -> list[Fenced]:
    """Fence a worker whose process is proven to have ended; committed when this returns. Empty: not yet, or the row names another file."""
    mark = dead.mark
    values = {"me": me, "worker": dead.worker_id, "boot": mark.boot, "path": mark.path, "file": mark.file}
    return [Fenced(*row) for row in await (await connection.execute(_FENCE_DEAD, values)).fetchall()]


async def end_lost_backends(connection: Connection, *, silent: bool = True) -> None:
    """Terminate the recorded backends of lost workers, so that what they hold is free.

    `silent`: also of those that could not be fenced and are silent for two leases; only for one who may judge others silent.
    """
    await connection.execute(_END_BACKENDS, (silent,))


async def release_fenced(connection: Connection, limit: int, max_losses: int) -> list[Released]:
    """Give free up to `limit` lanes of fenced workers."""
    return [Released(*row) for row in await (await connection.execute(_RELEASE, (limit, max_losses))).fetchall()]


async def make_partitions(connection: Connection, days: int) -> None:
    """Make the history's partitions of the next `days` days."""
    await connection.execute(_PARTITIONS, (days,))


async def drop_partitions(connection: Connection, days: int) -> list[str]:
    """Drop days of the history whose last job ended `days` days ago, as many as one call may; return their partitions' names."""
    return [row[0] for row in await (await connection.execute(_DROP, (days,))).fetchall()]


async def drop_checkpoints(connection: Connection, days: int) -> int:
    """Remove a bounded number of steps that were begun `days` days ago and are of no live job; return how many."""
    row = await (await connection.execute(_DROP_STEPS, (days,))).fetchone()
    return int(row[0]) if row else 0


async def drop_evidence(connection: Connection, days: int) -> int:
    """Remove a bounded number of what was kept of failed runs `days` days ago; return how many."""
    row = await (await connection.execute(_DROP_EVIDENCE, (days,))).fetchone()
    return int(row[0]) if row else 0


async def failing_agents(connection: Connection) -> list[str]:
    """Return the agents of which an outage was noted that no success has followed."""
    return [row[0] for row in await (await connection.execute(_FAILING)).fetchall()]


async def sweep(connection: Connection) -> None:
    """Remove a bounded number of expired idempotency keys and of workers that ended over a week ago."""
    await connection.execute(_SWEEP_KEYS)
    await connection.execute(_SWEEP_WORKERS)
