"""Reads for people and programs: jobs as records of `archibald.all_jobs`, agents, workers, counts.

Must not: change anything, or be used by a worker's hot path.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from datetime import datetime
from typing import Any, TypeVar

from archibald_pgq.domain.explanation import Explanation
from archibald_pgq.domain.explanation import explain as explain_facts
from archibald_pgq.domain.facts import Facts
from archibald_pgq.domain.job import JobRecord
from archibald_pgq.domain.operations import JobClass
from archibald_pgq.domain.payload import check_job_id, check_kind, check_limit, check_state, check_user_id
from archibald_pgq.domain.states import State
from archibald_pgq.domain.views import AgentRecord, ClassStats, Doing, Health, LeftAlone, WorkerRecord
from archibald_pgq.store.commands import unknown_job
from archibald_pgq.store.request import Request, Rows
from archibald_pgq.store.sql import statement

R = TypeVar("R")

_COLUMNS = ", ".join("class AS job_class" if field.name == "job_class" else field.name for field in fields(JobRecord))
_JOBS = f"SELECT {_COLUMNS} FROM archibald.all_jobs"  # noqa: S608  # constants, as is all that is put together here
_FILTERS = {
    "user_id": "user_id = CAST(%(user_id)s AS text)",
    "state": "state = CAST(%(state)s AS text)",
    "kind": "kind = CAST(%(kind)s AS text)",
    "retried_from": "retried_from = CAST(%(retried_from)s AS bigint)",
}


def job(job_id: int) -> Request[JobRecord]:
    """Read one job.

    Raises:
        UnknownJobError: it is no id; or, from the answer, no job has it.
    """
    job_id = check_job_id(job_id)

    def read(rows: Rows) -> JobRecord:
        if not rows:
            raise unknown_job(job_id)
        return _record(rows[0])

    return Request(f"{_JOBS} WHERE id = CAST(%(job)s AS bigint)", {"job": job_id}, read, named=True)


def jobs(
    user_id: str | None, state: State | None, kind: str | None, retried_from: int | None, limit: int
) -> Request[list[JobRecord]]:
    """Read the newest jobs, filtered; at most `limit`.

    Raises:
        InvalidJobError, UnknownJobError: a filter is something that no job can have.
    """
    limit = check_limit(limit)
    filters: dict[str, Any] = {}
    if user_id is not None:
        filters["user_id"] = check_user_id(user_id)
    if state is not None:
        filters["state"] = check_state(state)
    if kind is not None:
        filters["kind"] = check_kind(kind)
    if retried_from is not None:
        filters["retried_from"] = check_job_id(retried_from)
    where = " AND ".join(_FILTERS[name] for name in filters) or "true"
    return _records(f"{_JOBS} WHERE {where} ORDER BY id DESC LIMIT %(limit)s", **filters, limit=limit)


def review(limit: int) -> Request[list[JobRecord]]:
    """Read the jobs that need a person, the oldest first; at most `limit`.

    Raises:
        InvalidJobError: the limit is none.
    """
    query = f"{_JOBS} WHERE {_FILTERS['state']} ORDER BY id LIMIT %(limit)s"
    return _records(query, state=State.NEEDS_REVIEW, limit=check_limit(limit))


def explain(job_id: int) -> Request[Explanation]:
    """Read why a job is not running.

    Raises:
        UnknownJobError: see `job`.
    """
    job_id = check_job_id(job_id)

    def read(rows: Rows) -> Explanation:
        if not rows:
            raise unknown_job(job_id)
        return explain_facts(_made(Facts, rows[0], job_class=JobClass, state=State))

    return Request(statement("explain"), {"job": job_id}, read, named=True)


def agents(limit: int) -> Request[list[AgentRecord]]:
    """Read what each agent is doing; those with nothing to do are left out; at most `limit`.

    Raises:
        InvalidJobError: the limit is none.
    """
    params = {"limit": check_limit(limit)}
    return Request(
        statement("agents"),
        params,
        lambda rows: [_made(AgentRecord, row, doing=Doing, left_alone=_left_alone) for row in rows],
        named=True,
    )


def stats() -> Request[list[ClassStats]]:
    """Count the jobs of each class by sort; one row for each class, write first."""
    return Request(
        statement("stats"), {}, lambda rows: [_made(ClassStats, row, job_class=JobClass) for row in rows], named=True
    )


def workers(limit: int) -> Request[list[WorkerRecord]]:
    """Read the workers, those that are alive first; at most `limit`.

    Raises:
        InvalidJobError: the limit is none.
    """
    params = {"limit": check_limit(limit)}
    return Request(
        statement("workers"), params, lambda rows: [_made(WorkerRecord, row, health=Health) for row in rows], named=True
    )


def _records(query: str, **params: Any) -> Request[list[JobRecord]]:
    return Request(query, params, lambda rows: [_record(row) for row in rows], named=True)


def _record(row: Any) -> JobRecord:
    return _made(JobRecord, row, job_class=JobClass, state=State)


def _left_alone(found: list[dict[str, Any]]) -> list[LeftAlone]:
    return [LeftAlone(**{**each, "until": datetime.fromisoformat(each["until"])}) for each in found]


def _made(record: Callable[..., R], row: Any, **meaning: Callable[[Any], Any]) -> R:
    """Return a row as a record whose fields are its columns; `meaning` turns the values of some into what they stand for."""
    fields = row._asdict()
    return record(**{**fields, **{name: read(fields[name]) for name, read in meaning.items()}})
