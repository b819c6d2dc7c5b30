"""The statements behind `ctx.once`: begin a step, write down what came of it, forget it.

Owns: these statements and what their answers mean. Guarantees: each may be asked again when its answer was lost; none writes for a worker
that lost the job. Must not: open connections.
"""

from __future__ import annotations

from typing import Any
from uuid import UUID

from archibald_pgq.domain.job import ClaimedJob
from archibald_pgq.domain.step import Step, StepState
from archibald_pgq.errors import JobStateError
from archibald_pgq.store.request import Request, Rows

_BEGIN = """
SELECT state, result, age_s
  FROM archibald.begin_step(%(worker)s, %(lane)s, %(epoch)s, %(job)s, CAST(%(step)s AS text), CAST(%(key)s AS text), %(token)s,
                            %(verifiable)s, %(absent)s)
"""
_FINISH = """
SELECT archibald.finish_step(%(worker)s, %(lane)s, %(epoch)s, %(job)s, CAST(%(step)s AS text), CAST(%(key)s AS text),
                             CAST(%(result)s AS jsonb))
"""
_FORGET = "SELECT archibald.forget_steps(%(worker)s, %(lane)s, %(epoch)s, %(job)s, CAST(%(key)s AS text))"


def begin(
    job: ClaimedJob, worker_id: int, step: str, key: str | None, token: UUID, *, verifiable: bool, absent: bool
) -> Request[Step]:
    """Begin a step of a job that this worker runs, or learn what became of it.

    Args:
        job: the job.
        worker_id: who runs it.
        step: the step's name.
        key: of an entity of the job's user and kind; None: the step is the job's own.
        token: names this call, which may be asked again.
        verifiable: it can be looked up whether the step happened.
        absent: it was looked up, and it did not.

    Raises:
        JobStateError (from the answer): the job is no longer this worker's.
    """

    def read(rows: Rows) -> Step:
        if not rows:
            raise _lost(job, f"the step {step!r} was not begun")
        state, result, age = rows[0]
        return Step(StepState(state), result, age)

    params = {**owner(job, worker_id), "step": step, "key": key, "token": token}
    return Request(_BEGIN, {**params, "verifiable": verifiable, "absent": absent}, read)


def finish(job: ClaimedJob, worker_id: int, step: str, key: str | None, result: str) -> Request[None]:
    """Write down that a step is done, with its result as JSON text.

    Raises:
        JobStateError (from the answer): the job is no longer this worker's.
    """

    def read(rows: Rows) -> None:
        if not rows[0][0]:
            raise _lost(job, f"the result of the step {step!r} was not written")

    return Request(_FINISH, {**owner(job, worker_id), "step": step, "key": key, "result": result}, read)


def forget(job: ClaimedJob, worker_id: int, key: str) -> Request[None]:
    """Forget all steps of a key.

    Raises:
        JobStateError (from the answer): the job is no longer this worker's.
    """

    def read(rows: Rows) -> None:
        if rows[0][0] is None:
            raise _lost(job, f"the steps of {key!r} were not forgotten")

    return Request(_FORGET, {**owner(job, worker_id), "key": key}, read)


def owner(job: ClaimedJob, worker_id: int) -> dict[str, Any]:
    """Return the parameters by which the database knows whose a job is."""
    return {"worker": worker_id, "lane": job.lane, "epoch": job.epoch, "job": job.job_id}


def _lost(job: ClaimedJob, what: str) -> JobStateError:
    return JobStateError(f"job {job.job_id} is no longer this worker's; {what}")
