"""The statements of the circuit breakers.

Owns: these statements and what their answers mean. Must not: open connections.
"""

from __future__ import annotations

from typing import Any

from archibald_pgq.domain.job import ClaimedJob
from archibald_pgq.store.request import Request, Rows, nothing
from archibald_pgq.store.steps import owner

_OWNER = "%(worker)s, %(lane)s, %(epoch)s, %(job)s"
_OUTAGE = f"SELECT archibald.note_outage({_OWNER}, CAST(%(reason)s AS text))"
_RECOVERED = f"SELECT archibald.note_recovery({_OWNER})"
_LOGIN_REFUSED = f"SELECT archibald.note_refused_login({_OWNER}, CAST(%(reason)s AS text))"
_SYNC_FAILED = f"SELECT archibald.note_failed_sync({_OWNER}, CAST(%(reason)s AS text))"

LONGEST_REASON = 500
"""Characters that are kept of an error."""


def outage(job: ClaimedJob, worker_id: int, reason: str) -> Request[float]:
    """The system behind the agent's login could not be reached; the answer is for how many seconds the agent is paused now."""
    return Request(_OUTAGE, _params(job, worker_id, reason), _seconds)


def login_refused(job: ClaimedJob, worker_id: int, reason: str) -> Request[None]:
    """The agent's login was refused: it is paused until somebody resumes it."""
    return Request(_LOGIN_REFUSED, _params(job, worker_id, reason), nothing)


def sync_failed(job: ClaimedJob, worker_id: int, reason: str) -> Request[float]:
    """A sync fails for good; the answer is for how many seconds syncs of this kind and agent are left alone now."""
    return Request(_SYNC_FAILED, _params(job, worker_id, reason), _seconds)


def recovered(job: ClaimedJob, worker_id: int) -> Request[None]:
    """A job of the agent has completed."""
    return Request(_RECOVERED, _params(job, worker_id), nothing)


def _seconds(rows: Rows) -> float:
    return float(rows[0][0] or 0)


def _params(job: ClaimedJob, worker_id: int, reason: str | None = None) -> dict[str, Any]:
    params = owner(job, worker_id)
    return params if reason is None else {**params, "reason": reason.replace("\x00", "")[:LONGEST_REASON]}
