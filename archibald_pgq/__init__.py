"""A job queue on Postgres for work that must go one at a time per key.

The public names; everything else is an implementation detail.
"""

from archibald_pgq.app import Archibald
from archibald_pgq.domain.backoff import Backoff
from archibald_pgq.domain.job import JobRecord
from archibald_pgq.domain.operations import JobClass, Policy
from archibald_pgq.domain.states import State
from archibald_pgq.errors import (
    ArchibaldError,
    ConfigError,
    DatabaseError,
    InvalidJobError,
    JobCancelledError,
    JobFailedError,
    JobNeedsReviewError,
    SchemaError,
    UnknownJobError,
    UnknownKindError,
    WaitTimeoutError,
)
from archibald_pgq.handle import Job
from archibald_pgq.runtime.context import JobContext

__all__ = [
    "Archibald",
    "ArchibaldError",
    "Backoff",
    "ConfigError",
    "DatabaseError",
    "InvalidJobError",
    "Job",
    "JobCancelledError",
    "JobClass",
    "JobContext",
    "JobFailedError",
    "JobNeedsReviewError",
    "JobRecord",
    "Policy",
    "SchemaError",
    "State",
    "UnknownJobError",
    "UnknownKindError",
    "WaitTimeoutError",
]
