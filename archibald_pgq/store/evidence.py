"""The statements about evidence: keep it, read it.

Owns: these statements. Guarantees: nothing over the bounds is kept. Must not: open connections.
"""

from __future__ import annotations

from archibald_pgq.domain.evidence import MAX_SCREENSHOT_BYTES, MAX_TRACE_BYTES, Evidence
from archibald_pgq.domain.payload import check_job_id
from archibald_pgq.store.request import Request, Rows, nothing

_KEEP = """
SELECT archibald.keep_evidence(%(job)s, %(attempt)s, CAST(%(url)s AS text), CAST(%(screenshot)s AS bytea), CAST(%(trace)s AS bytea))
"""
_OF_JOB = """
SELECT job_id, attempt, made_at, url, screenshot, trace FROM archibald.job_evidence
 WHERE job_id = CAST(%(job)s AS bigint) ORDER BY id DESC LIMIT 20
"""


def keep(job_id: int, attempt: int, url: str | None, screenshot: bytes | None, trace: bytes | None) -> Request[None]:
    """Keep what a run last saw; of what is over its bound nothing."""
    params = {
        "job": job_id,
        "attempt": attempt,
        "url": url.replace("\x00", "")[:2000] if url else None,
        "screenshot": screenshot if screenshot and len(screenshot) <= MAX_SCREENSHOT_BYTES else None,
        "trace": trace if trace and len(trace) <= MAX_TRACE_BYTES else None,
    }
    return Request(_KEEP, params, nothing)


def of_job(job_id: int) -> Request[list[Evidence]]:
    """Read what is kept of a job, the newest first, at most 20.

    Raises:
        UnknownJobError: it is no id.
    """

    def read(rows: Rows) -> list[Evidence]:
        return [Evidence(*row) for row in rows]

    return Request(_OF_JOB, {"job": check_job_id(job_id)}, read)
