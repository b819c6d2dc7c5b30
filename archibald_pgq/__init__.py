"""A job queue on Postgres for work that must go one at a time per key.

The public names; everything else is an implementation detail. `Worker` is imported with its first use: it needs half of the package, for
which who only enqueues need not wait.
"""

from typing import TYPE_CHECKING

from archibald_pgq.app import Archibald
from archibald_pgq.domain.backoff import Backoff
from archibald_pgq.domain.evidence import Evidence
from archibald_pgq.domain.explanation import Explanation, Reason
from archibald_pgq.domain.job import JobRecord
from archibald_pgq.domain.new_job import NewJob
from archibald_pgq.domain.operations import JobClass, Policy
from archibald_pgq.domain.states import State
from archibald_pgq.domain.views import AgentRecord, ClassStats, Doing, Health, LeftAlone, WorkerRecord
from archibald_pgq.errors import (
    AgentBacklogError,
    ArchibaldError,
    BrowserDiedError,
    BrowserError,
    BrowserSaturatedError,
    ConfigError,
    DatabaseError,
    InvalidJobError,
    JobCancelledError,
    JobFailedError,
    JobNeedsReviewError,
    JobStateError,
    LoginError,
    LoginRefusedError,
    NotPermittedError,
    SchemaError,
    StepUnknownError,
    UnknownAgentError,
    UnknownJobError,
    UnknownKindError,
    UnreachableError,
    WaitTimeoutError,
)
from archibald_pgq.handle import Job, SyncJob
from archibald_pgq.runtime.context import JobContext
from archibald_pgq.sync import SyncArchibald

if TYPE_CHECKING:
    from archibald_pgq.runtime.worker import Worker

__all__ = [
    "AgentBacklogError",
    "AgentRecord",
    "Archibald",
    "ArchibaldError",
    "Backoff",
    "BrowserDiedError",
    "BrowserError",
    "BrowserSaturatedError",
    "ClassStats",
    "ConfigError",
    "DatabaseError",
    "Doing",
    "Evidence",
    "Explanation",
    "Health",
    "InvalidJobError",
    "Job",
    "JobCancelledError",
    "JobClass",
    "JobContext",
    "JobFailedError",
    "JobNeedsReviewError",
    "JobRecord",
    "JobStateError",
    "LeftAlone",
    "LoginError",
    "LoginRefusedError",
    "NewJob",
    "NotPermittedError",
    "Policy",
    "Reason",
    "SchemaError",
    "State",
    "StepUnknownError",
    "SyncArchibald",
    "SyncJob",
    "UnknownAgentError",
    "UnknownJobError",
    "UnknownKindError",
    "UnreachableError",
    "WaitTimeoutError",
    "Worker",
    "WorkerRecord",
]


def __getattr__(name: str) -> object:
    if name != "Worker":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from archibald_pgq.runtime.worker import Worker

    return Worker
