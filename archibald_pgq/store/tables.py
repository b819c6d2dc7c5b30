"""The tables as SQLAlchemy metadata: Alembic's target, and what reads are written with.

Owns: the shape as the code sees it. Guarantees: a test holds it to what the migrations make. The meaning of each column stands
beside the DDL in `migrations/sql/`.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Double,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

metadata = MetaData(schema="archibald")
NOW = text("clock_timestamp()")


def _time(name: str, *, required: bool = False) -> Column[object]:
    return Column(name, DateTime(timezone=True), nullable=not required, server_default=NOW if required else None)


def _number(name: str) -> Column[int]:
    return Column(name, Integer, nullable=False, server_default=text("0"))


operations = Table(
    "operations",
    metadata,
    Column("kind", Text, primary_key=True),
    Column("class", Text, nullable=False),
    Column("priority", SmallInteger, nullable=False),
    Column("timeout_s", Double, nullable=False),
    Column("max_attempts", Integer, nullable=False),
    Column("backoff", Text),
    Column("backoff_s", Double, nullable=False, server_default=text("0")),
    Column("idempotent", Boolean, nullable=False, server_default=text("false")),
)

workers = Table(
    "workers",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("host", Text, nullable=False),
    Column("pid", Integer, nullable=False),
    Column("version", Text, nullable=False),
    Column("concurrency", Integer, nullable=False),
    Column("max_syncs", Integer, nullable=False, server_default=text("8")),
    Column("kinds", ARRAY(Text), nullable=False),
    Column("lease_s", Double, nullable=False),
    Column("max_wait_s", Double, nullable=False, server_default=text("900")),
    Column("max_preemptions", Integer, nullable=False, server_default=text("5")),
    _time("started_at", required=True),
    _time("beat", required=True),
    _time("fenced_at"),
    _time("stopped_at"),
    Column("backend_pid", Integer),
    _time("backend_start"),
    Column("witness_boot", Text),
    Column("witness_path", Text),
    Column("witness_file", Text),
    Column("max_losses", Integer, nullable=False, server_default=text("3")),
    Column("browsers", JSONB),
)

agents = Table(
    "agents",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("user_id", Text, nullable=False),
    Column("lock_key", BigInteger, nullable=False),
    Column("state", Text, nullable=False, server_default=text("'idle'")),
    Column("head_kind", Text),
    Column("head_is_sync", Boolean, nullable=False, server_default=text("false")),
    Column("head_priority", SmallInteger, nullable=False, server_default=text("0")),
    _time("head_waiting_since"),
    _time("ready_at"),
    _time("retry_at"),
    _time("doubt_at"),
    _number("doubts"),
    Column("epoch", BigInteger, nullable=False, server_default=text("0")),
    Column("worker_id", BigInteger),
    Column("turn_job_ids", ARRAY(BigInteger), nullable=False, server_default=text("'{}'")),
    _time("since"),
    Column("preemptable", Boolean, nullable=False, server_default=text("false")),
    _time("preempt_at"),
    _time("paused_until"),
    Column("paused_reason", Text),
    _number("head_losses"),
    Column("careful", Boolean, nullable=False, server_default=text("false")),
    UniqueConstraint("user_id", name="agents_user_id_key"),
    Index("agents_ready", "head_is_sync", "head_priority", "ready_at", postgresql_where=text("state = 'ready'")),
    Index("agents_aged", "head_waiting_since", postgresql_where=text("state = 'ready' AND head_is_sync")),
    Index(
        "agents_solo",
        "head_is_sync",
        "head_priority",
        "ready_at",
        postgresql_where=text("state = 'ready' AND head_losses > 0"),
    ),
    Index("agents_running", "worker_id", postgresql_where=text("state = 'running'")),
    Index("agents_retry", "retry_at", postgresql_where=text("retry_at IS NOT NULL")),
    Index("agents_doubt", "doubt_at", postgresql_where=text("doubt_at IS NOT NULL")),
    Index("agents_preempt", "preempt_at", postgresql_where=text("preempt_at IS NOT NULL")),
    Index("agents_paused", "paused_until", postgresql_where=text("paused_until IS NOT NULL")),
)

jobs = Table(
    "jobs",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("agent_id", BigInteger),
    Column("user_id", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("class", Text, nullable=False),
    Column("state", Text, nullable=False, server_default=text("'queued'")),
    Column("due", Boolean, nullable=False, server_default=text("true")),
    Column("wake", Boolean, nullable=False, server_default=text("false")),
    Column("wait_reason", Text),
    Column("priority", SmallInteger, nullable=False),
    _time("run_after", required=True),
    _number("requeue_count"),
    _number("losses"),
    _number("attempt"),
    Column("max_attempts", Integer, nullable=False),
    Column("idempotency_key", Text),
    Column("payload", JSONB, nullable=False, server_default=text("'{}'")),
    Column("progress", SmallInteger),
    Column("progress_label", Text),
    _time("cancel_requested_at"),
    Column("worker_id", BigInteger),
    _time("created_at", required=True),
    _time("waiting_since", required=True),
    _time("started_at"),
    Column("last_error", Text),
    _time("preempt_requested_at"),
    Column("preempted_by", BigInteger),
    _number("preemptions"),
    Column("saved_state", JSONB),
    Column("retried_from", BigInteger),
    Index(
        "jobs_head",
        "agent_id",
        text("(class = 'sync'::text)"),
        "priority",
        "id",
        postgresql_where=text("state = 'queued' AND due AND agent_id IS NOT NULL"),
    ),
    Index("jobs_not_due", "run_after", postgresql_where=text("state = 'queued' AND NOT due")),
    Index(
        "jobs_wake",
        "agent_id",
        text("(class = 'sync')"),
        "priority",
        "id",
        postgresql_where=text("wake"),
    ),
    Index(
        "jobs_without_lane",
        text("archibald.lock_key(user_id)"),
        text("(class = 'sync')"),
        "priority",
        "id",
        postgresql_where=text("wake AND agent_id IS NULL"),
    ),
    Index("jobs_sync", "user_id", "kind", postgresql_where=text("state = 'queued' AND class = 'sync'")),
    Index("jobs_of_user", "user_id", "id"),
    Index("jobs_retried", "retried_from", postgresql_where=text("retried_from IS NOT NULL")),
    Index("jobs_review", "id", postgresql_where=text("state = 'needs_review'")),
    Index("jobs_requeued", "agent_id", postgresql_where=text("state = 'queued' AND wait_reason = 'requeue'")),
    Index("jobs_one_running", "agent_id", unique=True, postgresql_where=text("state = 'running'")),
)

idempotency_keys = Table(
    "idempotency_keys",
    metadata,
    Column("user_id", Text, primary_key=True),
    Column("key", Text, primary_key=True),
    Column("job_id", BigInteger, nullable=False),
    Column("job_created_at", DateTime(timezone=True), nullable=False),
    Column("expires_at", DateTime(timezone=True), nullable=False),
    Index("idempotency_keys_expiry", "expires_at"),
)

sync_keys = Table(
    "sync_keys",
    metadata,
    Column("user_id", Text, primary_key=True),
    Column("kind", Text, primary_key=True),
)

job_history = Table(
    "job_history",
    metadata,
    Column("id", BigInteger, nullable=False, autoincrement=False),
    Column("agent_id", BigInteger),
    Column("user_id", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("class", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("priority", SmallInteger, nullable=False),
    Column("run_after", DateTime(timezone=True), nullable=False),
    Column("requeue_count", Integer, nullable=False),
    Column("losses", Integer, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("max_attempts", Integer, nullable=False),
    Column("idempotency_key", Text),
    Column("payload", JSONB, nullable=False),
    Column("progress", SmallInteger),
    Column("progress_label", Text),
    Column("result", JSONB),
    Column("error", Text),
    Column("worker_id", BigInteger),
    Column("epoch", BigInteger),
    Column("created_at", DateTime(timezone=True), nullable=False),
    Column("waiting_since", DateTime(timezone=True), nullable=False),
    _time("started_at"),
    _time("finished_at", required=True),
    Column("retried_from", BigInteger),
    Column("preempted_by", BigInteger),
    _number("preemptions"),
    PrimaryKeyConstraint("id", "created_at", name="job_history_pkey"),
    Index("job_history_of_user", "user_id", "id"),
    Index("job_history_retried", "retried_from", postgresql_where=text("retried_from IS NOT NULL")),
    postgresql_partition_by="RANGE (created_at)",
)

checkpoints = Table(
    "checkpoints",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("user_id", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("job_id", BigInteger, nullable=False),
    Column("step", Text, nullable=False),
    Column("key", Text),
    Column("state", Text, nullable=False, server_default=text("'begun'")),
    Column("verifiable", Boolean, nullable=False),
    Column("result", JSONB),
    Column("epoch", BigInteger, nullable=False),
    Column("token", Uuid, nullable=False),
    _time("began_at", required=True),
    _time("done_at"),
    Index("checkpoints_of_job", "job_id", "step", unique=True, postgresql_where=text("key IS NULL")),
    Index(
        "checkpoints_of_key",
        "user_id",
        "kind",
        "key",
        "step",
        unique=True,
        postgresql_where=text("key IS NOT NULL"),
    ),
    Index("checkpoints_age", "began_at"),
)

job_evidence = Table(
    "job_evidence",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("job_id", BigInteger, nullable=False),
    Column("attempt", Integer, nullable=False),
    _time("made_at", required=True),
    Column("url", Text),
    Column("screenshot", LargeBinary),
    Column("trace", LargeBinary),
    Index("job_evidence_of_job", "job_id"),
    Index("job_evidence_age", "made_at"),
)

breakers = Table(
    "breakers",
    metadata,
    Column("user_id", Text, primary_key=True),
    Column("kind", Text, primary_key=True, server_default=text("''")),
    Column("failures", Integer, nullable=False),
    Column("reason", Text, nullable=False),
    _time("failed_at", required=True),
    _time("open_until"),
)

limits = Table(
    "limits",
    metadata,
    Column("one", Boolean, primary_key=True, server_default=text("true")),
    Column("agent_backlog", Integer),
)

schema_revisions = Table(
    "schema_revisions",
    metadata,
    Column("revision", Text, primary_key=True),
    Column("oldest_code", Text, nullable=False),
    _time("applied_at", required=True),
)
