"""What can be asked of the queue beside an enqueue: cancel, retry, discard, pause, resume, and what apps and handlers write.

Owns: these statements, the check of their arguments, and what their answers mean. Must not: open connections.
"""

from __future__ import annotations

from archibald_pgq.domain.job import ClaimedJob
from archibald_pgq.domain.operations import Policy
from archibald_pgq.domain.payload import check_job_id, check_reason, check_user_id
from archibald_pgq.errors import JobStateError, UnknownAgentError, UnknownJobError
from archibald_pgq.store.request import Request, Rows, nothing

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
