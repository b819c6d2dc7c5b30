"""What can be asked of the queue: enqueue, cancel, retry, discard, pause, resume, and what apps and handlers write.

Owns: these statements, the check of their arguments, and what their answers mean. Must not: open connections.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from archibald_pgq.domain.job import ClaimedJob
from archibald_pgq.domain.new_job import NewJob
from archibald_pgq.domain.operations import Policy
from archibald_pgq.domain.payload import check_job_id, check_new_job, check_reason, check_user_id, json_bytes
from archibald_pgq.domain.plain import plain_payloads
from archibald_pgq.errors import InvalidJobError, JobStateError, UnknownAgentError, UnknownJobError
from archibald_pgq.store.arrays import of_numbers, of_texts
from archibald_pgq.store.request import Request, Rows, nothing

DEFAULT_WINDOW = 30.0
"""Seconds; what the database takes where it is told nothing else."""

MAX_MANY_BYTES = 256 * 1024 * 1024
"""Payloads of one `enqueue_many`; the server refuses a message of 1 GB, and needs several times its size to read it."""

_ENQUEUE = """
SELECT archibald.enqueue(CAST(%(user_id)s AS text), CAST(%(kind)s AS text), CAST(%(payload)s AS jsonb), CAST(%(key)s AS text),
                         clock_timestamp() + make_interval(secs => CAST(%(delay)s AS double precision)))
"""
# Arrays as texts, see `store.arrays`; said to be texts, because a caller's driver may want something else for an array or for JSON.
_ENQUEUE_MANY = """
SELECT archibald.enqueue_many(CAST(CAST(%(user_ids)s AS text) AS text[]), CAST(CAST(%(kinds)s AS text) AS text[]),
                              CAST(CAST(CAST(%(payloads)s AS text) AS text[]) AS jsonb[]), CAST(CAST(%(keys)s AS text) AS text[]),
                              ARRAY (SELECT clock_timestamp() + make_interval(secs => d)
                                       FROM unnest(CAST(CAST(%(delays)s AS text) AS double precision[])) WITH ORDINALITY AS i(d, n)
                                      ORDER BY n))
"""
_ENQUEUE_PLAIN = """
SELECT archibald.enqueue_many(CAST(CAST(%(user_ids)s AS text) AS text[]), CAST(CAST(%(kinds)s AS text) AS text[]),
                              ARRAY (SELECT jsonb_array_elements(CAST(CAST(%(payloads)s AS text) AS jsonb))), NULL, NULL)
"""
_EXPECT_AGENTS = "SELECT archibald.expect_agents(CAST(%(user_ids)s AS text[]))"
# The trigger reads the settings; the CTE is evaluated before the call that depends on it. What is not given stays as the session has it.
_WITH_LIMITS = """
WITH setting AS MATERIALIZED (
  SELECT set_config(name, coalesce(value, current_setting(name, true), ''), true) AS done
    FROM (VALUES ('archibald.dedup_window', CAST(%(window)s AS text)),
                 ('archibald.agent_backlog', CAST(%(backlog)s AS text))) AS s(name, value))
SELECT q.answer FROM (SELECT count(done) AS done FROM setting) AS s CROSS JOIN LATERAL ({call} WHERE s.done > 0) AS q(answer)
"""
_CANCEL = "SELECT archibald.cancel_job(%(job)s)"
_RETRY = "SELECT answer, job FROM archibald.retry_job(%(job)s)"
_DISCARD = "SELECT archibald.discard_job(%(job)s)"
_PAUSE = "SELECT archibald.pause_agent(CAST(%(user_id)s AS text), CAST(%(reason)s AS text))"
_RESUME = "SELECT archibald.resume_agent(CAST(%(user_id)s AS text))"
# Beside a caller who holds the job's row it gives up: five handlers that wait would keep all connections.
_PROGRESS = """
WITH patience AS MATERIALIZED (SELECT set_config('lock_timeout', '200ms', true) AS is_set)
UPDATE archibald.jobs j SET progress = %(percent)s, progress_label = %(label)s
  FROM patience
 WHERE j.id = %(job)s AND j.state = 'running' AND j.worker_id = %(worker)s AND patience.is_set IS NOT NULL
"""
_SAVE_STATE = """
UPDATE archibald.jobs j SET saved_state = CAST(%(state)s AS jsonb)
  FROM archibald.agents a
 WHERE j.id = %(job)s AND j.state = 'running' AND j.worker_id = %(worker)s AND a.id = %(lane)s AND a.epoch = %(epoch)s
   AND a.worker_id = j.worker_id
RETURNING j.id
"""
# Looked at before it is written: every process that starts declares its kinds, and mostly they are as they were.
_POLICY = """
WITH given AS (
  SELECT CAST(%(kind)s AS text) AS kind, CAST(%(class)s AS text) AS class, CAST(%(priority)s AS smallint) AS priority,
         CAST(%(timeout)s AS double precision) AS timeout_s, CAST(%(max_attempts)s AS integer) AS max_attempts,
         CAST(%(backoff)s AS text) AS backoff, CAST(%(backoff_s)s AS double precision) AS backoff_s,
         CAST(%(idempotent)s AS boolean) AS idempotent
)
INSERT INTO archibald.operations (kind, class, priority, timeout_s, max_attempts, backoff, backoff_s, idempotent)
SELECT g.kind, g.class, g.priority, g.timeout_s, g.max_attempts, g.backoff, g.backoff_s, g.idempotent FROM given g
 WHERE NOT EXISTS (SELECT FROM archibald.operations s WHERE s.kind = g.kind{same})
ON CONFLICT (kind) DO {then}
"""
_DECLARE_DEFAULT = _POLICY.format(same="", then="NOTHING")
_DECLARE = _POLICY.format(
    same="""
                      AND (s.class, s.priority, s.timeout_s, s.max_attempts, s.backoff, s.backoff_s, s.idempotent)
                          IS NOT DISTINCT FROM (g.class, g.priority, g.timeout_s, g.max_attempts, g.backoff, g.backoff_s, g.idempotent)""",
    then="""UPDATE
   SET class = excluded.class, priority = excluded.priority, timeout_s = excluded.timeout_s, max_attempts = excluded.max_attempts,
       backoff = excluded.backoff, backoff_s = excluded.backoff_s, idempotent = excluded.idempotent""",
)


def unknown_job(job_id: int) -> UnknownJobError:
    """Return the error for an id that no job has."""
    return UnknownJobError(f"there is no job {job_id}; `archibald-pgq jobs` lists the newest")


@dataclass(frozen=True, slots=True)
class Limits:
    """What the settings say about enqueues: ARCHIBALD_DEDUP_WINDOW in seconds, ARCHIBALD_AGENT_BACKLOG (None: the database's)."""

    window: float = DEFAULT_WINDOW
    backlog: int | None = None


_DEFAULT = Limits()


def enqueue(
    kind: str, limits: Limits, *, user_id: str, data: Mapping[str, Any], idempotency_key: str | None, delay: float
) -> Request[int]:
    """Enqueue a job; the answer is its id, or the id of the job that it duplicates.

    Raises:
        InvalidJobError: something of the job is not allowed.
    """
    params = {
        "payload": check_new_job(kind, user_id, data, idempotency_key, delay),
        "user_id": user_id,
        "kind": kind,
        "key": idempotency_key,
        "delay": float(delay) or None,
    }
    if idempotency_key is None and limits.window != DEFAULT_WINDOW:
        limits = replace(limits, window=DEFAULT_WINDOW)  # it decides about keys alone
    statement, params = _limited(_ENQUEUE, params, limits)
    return Request(statement, params, lambda rows: int(rows[0][0]), value=True)


def enqueue_many(jobs: Sequence[NewJob], limits: Limits) -> Request[list[int]]:
    """Enqueue jobs, all or none; the answer is their ids in the same order, of a duplicate that of the job that is already there.

    Raises:
        InvalidJobError: something of a job is not allowed (the text says which, from 1), or they are over 256 MB in all.
    """
    plain = plain_payloads(jobs)
    checked = _checked(jobs) if plain is None else {"payloads": plain}
    user_ids = [job.user_id for job in jobs]
    params = {"user_ids": of_texts(user_ids), "kinds": of_texts([job.kind for job in jobs]), **checked}
    several = [user_id for user_id, count in Counter(user_ids).items() if count > 1]
    before = (_EXPECT_AGENTS, {"user_ids": of_texts(several)}) if several else None
    statement, params = _limited(_ENQUEUE_MANY if plain is None else _ENQUEUE_PLAIN, params, limits)
    return Request(statement, params, lambda rows: rows[0][0], before=before)


def _checked(jobs: Sequence[NewJob]) -> dict[str, str]:
    """Return the parameters that need a look at each job."""
    payloads, size = [], 0
    for place, job in enumerate(jobs, 1):
        try:
            payloads.append(check_new_job(job.kind, job.user_id, job.data, job.idempotency_key, job.delay))
        except InvalidJobError as error:
            raise InvalidJobError(f"job {place} of {len(jobs)}: {error}") from None
        size += json_bytes(payloads[-1])
        if size > MAX_MANY_BYTES:
            raise InvalidJobError("the payloads are over 256 MB in all; enqueue them in several calls")
    return {
        "payloads": of_texts(payloads),
        "keys": of_texts(job.idempotency_key for job in jobs),
        "delays": of_numbers(float(job.delay) or None for job in jobs),
    }


def _limited(call: str, params: dict[str, Any], limits: Limits) -> tuple[str, dict[str, Any]]:
    """Return the statement for a call, and its parameters, under these limits."""
    if limits == _DEFAULT:
        return call, params
    given = {
        "window": None if limits.window == DEFAULT_WINDOW else str(limits.window),
        "backlog": None if limits.backlog is None else str(limits.backlog),
    }
    return _WITH_LIMITS.format(call=call), {**params, **given}


def cancel(job_id: int) -> Request[str]:
    """Cancel a job; the answer is 'cancelled', 'requested' (it runs), or 'already …' with its state if it had ended.

    Raises:
        UnknownJobError: it is no id; or, from the answer, no job has it.
    """
    job_id = check_job_id(job_id)

    def read(rows: Rows) -> str:
        if rows[0][0] is None:
            raise unknown_job(job_id)
        return str(rows[0][0])

    return Request(_CANCEL, {"job": job_id}, read)


def retry(job_id: int) -> Request[int]:
    """Run a job again; the answer is the id of the job that does it.

    Raises:
        UnknownJobError: see `cancel`; JobStateError (from the answer): there is nothing to retry.
    """
    job_id = check_job_id(job_id)

    def read(rows: Rows) -> int:
        if not rows:
            raise unknown_job(job_id)
        answer, job = rows[0]
        if answer in {"queued", "enqueued", "already retried"}:
            return int(job)
        raise JobStateError(
            f"job {job_id} is {answer}; only one that failed, was cancelled or needs review can be retried"
        )

    return Request(_RETRY, {"job": job_id}, read)


def discard(job_id: int) -> Request[None]:
    """Put away a job that needs review.

    Raises:
        UnknownJobError: see `cancel`; JobStateError (from the answer): it needs no review.
    """
    job_id = check_job_id(job_id)

    def read(rows: Rows) -> None:
        answer = rows[0][0]
        if answer is None:
            raise unknown_job(job_id)
        if answer != "discarded":
            raise JobStateError(f"job {job_id} is {answer}; only one that needs review can be discarded")

    return Request(_DISCARD, {"job": job_id}, read)


def _unknown_agent(user_id: str) -> UnknownAgentError:
    return UnknownAgentError(f"there is no agent {user_id!r}: no job of it was ever enqueued; check the name")


def pause(user_id: str, reason: str | None) -> Request[None]:
    """Pause an agent until somebody resumes it.

    Raises:
        InvalidJobError: an argument is not allowed; UnknownAgentError (from the answer): it never had a job.
    """
    user_id = check_user_id(user_id)
    reason = None if reason is None else check_reason(reason)

    def read(rows: Rows) -> None:
        if not rows[0][0]:
            raise _unknown_agent(user_id)

    return Request(_PAUSE, {"user_id": user_id, "reason": reason}, read)


def resume(user_id: str) -> Request[bool]:
    """Resume an agent; the answer is False if it was not paused.

    Raises:
        InvalidJobError: it is no user_id; UnknownAgentError (from the answer): it never had a job.
    """
    user_id = check_user_id(user_id)

    def read(rows: Rows) -> bool:
        if rows[0][0] is None:
            raise _unknown_agent(user_id)
        return bool(rows[0][0])

    return Request(_RESUME, {"user_id": user_id}, read)


def progress(job_id: int, worker_id: int, percent: int, label: str | None) -> Request[None]:
    """Record how far a running job of this worker is."""
    return Request(_PROGRESS, {"job": job_id, "worker": worker_id, "percent": percent, "label": label}, nothing)


def save_state(job: ClaimedJob, worker_id: int, state: str) -> Request[None]:
    """Keep what a running sync has reached; refused by the fence once the job is no longer this worker's.

    Raises:
        JobStateError (from the answer): it is not.
    """

    def read(rows: Rows) -> None:
        if not rows:
            raise JobStateError(f"job {job.job_id} is no longer this worker's; its state was not saved")

    params = {"job": job.job_id, "worker": worker_id, "lane": job.lane, "epoch": job.epoch, "state": state}
    return Request(_SAVE_STATE, params, read)


def declare(kind: str, policy: Policy | None) -> Request[None]:
    """Write the policy of a kind; does nothing where it is the same already. None: the defaults, where the kind has no policy yet."""
    chosen = policy or Policy()
    backoff = chosen.backoff
    params = {
        "kind": kind,
        "class": chosen.job_class.value,
        "priority": chosen.priority,
        "timeout": chosen.timeout,
        "max_attempts": chosen.max_attempts,
        "backoff": backoff.shape if backoff else None,
        "backoff_s": backoff.seconds if backoff else 0.0,
        "idempotent": chosen.idempotent,
    }
    return Request(_DECLARE_DEFAULT if policy is None else _DECLARE, params, nothing)
