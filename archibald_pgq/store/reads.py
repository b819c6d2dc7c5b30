"""Reads for people and programs: jobs as records of `archibald.all_jobs`, with SQLAlchemy."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Row, Select, select

from archibald_pgq.domain.job import JobRecord
from archibald_pgq.domain.operations import JobClass
from archibald_pgq.domain.states import State
from archibald_pgq.store.tables import all_jobs

_COLUMNS = [column for column in all_jobs.c if column.name not in {"waiting_since", "cancel_requested_at"}]


def job_by_id(job_id: int) -> Select[Any]:
    """Select one job."""
    return select(*_COLUMNS).where(all_jobs.c.id == job_id)


def newest_jobs(user_id: str | None, state: State | None, kind: str | None, limit: int) -> Select[Any]:
    """Select the newest jobs, filtered; at most `limit`."""
    query = select(*_COLUMNS).order_by(all_jobs.c.id.desc()).limit(limit)
    for column, value in ((all_jobs.c.user_id, user_id), (all_jobs.c.state, state), (all_jobs.c.kind, kind)):
        if value is not None:
            query = query.where(column == value)
    return query


def to_record(row: Row[Any]) -> JobRecord:
    """Return the record of one selected row."""
    values = dict(row._mapping)
    values["job_class"] = JobClass(values.pop("class"))
    values["state"] = State(values["state"])
    return JobRecord(**values)
