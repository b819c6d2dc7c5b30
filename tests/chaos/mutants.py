"""The product spoilt on purpose, one promise at a time: a run of random faults that finds nothing proves something only if it finds these.

Owns: edits of the database's functions, made in the scene's database and nowhere else, and patches of a worker process, made by the fault
tests' app where FAULT_MUTANT names one. Guarantees: an edit whose text is not found fails. Must not: touch a file of the product.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import psycopg

from archibald_pgq.domain.outcome import Outcome
from archibald_pgq.runtime.executor import Run
from archibald_pgq.runtime.heartbeat import Heartbeat
from archibald_pgq.runtime.lock_check import LockCheck
from archibald_pgq.runtime.registration import Registration
from archibald_pgq.store import workers
from archibald_pgq.store.turn import Report


@dataclass(frozen=True)
class Edit:
    """A change of the text of a function of the schema."""

    function: str
    old: str
    new: str


@dataclass(frozen=True)
class Mutant:
    """One way of spoiling it."""

    name: str
    broken: str
    """What it breaks, in words."""
    says: str
    """What the checker says of it."""
    edits: tuple[Edit, ...] = ()
    statements: tuple[str, ...] = ()
    patch: Callable[[], None] | None = None

    def spoil_database(self, dsn: str) -> None:
        """Make the edits."""
        with psycopg.connect(dsn) as connection:
            for edit in self.edits:
                texts = connection.execute(
                    "SELECT pg_get_functiondef(p.oid) FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace "
                    "WHERE n.nspname = 'archibald' AND p.proname = %s AND position(%s IN p.prosrc) > 0",
                    (edit.function, edit.old),
                ).fetchall()
                if len(texts) != 1:
                    raise ValueError(
                        f"mutant {self.name}: {edit.function} has no {edit.old!r}; adapt tests/chaos/mutants.py"
                    )
                connection.execute(texts[0][0].replace(edit.old, edit.new))
            for statement in self.statements:
                connection.execute(statement.encode())

    def spoil_worker(self) -> None:
        """Patch this process."""
        if self.patch is not None:
            self.patch()


def _watch_off() -> None:
    Heartbeat._watch = lambda self: None  # type: ignore[method-assign]


def _know_nothing() -> None:
    async def moved(*_: object) -> bool:
        return True

    async def compared(*_: object) -> list[Report]:
        return []

    _watch_off()
    Registration.fenced = lambda self: None  # type: ignore[method-assign]
    workers.move = moved  # type: ignore[assignment]
    LockCheck.compare = compared  # type: ignore[method-assign,assignment]


def _skip_handlers() -> None:
    execute = Run.execute

    async def skip(self: Run, waits: Callable[[], None]) -> Outcome:
        if self.job.job_id % 25 == 0:
            self.ended = True
            return Outcome.completed(None)
        return await execute(self, waits)

    Run.execute = skip  # type: ignore[method-assign]


def _review_nothing() -> None:
    Outcome.needs_review = Outcome.gone_back  # type: ignore[method-assign]


NO_LOCK = Edit("claim", "pg_try_advisory_lock(c.lock_key)", "true")

_ALL = (
    Mutant(
        "watch-off", "a worker does not stop its handlers when it has lost contact", "ran at once", patch=_watch_off
    ),
    Mutant(
        "settle-unfenced",
        # The database's fence is the last of several: without the patch a worker that was overtaken ends its handlers or itself first.
        "a worker that was overtaken and does not know it goes on, and what it writes is not refused",
        "wrote the end",
        (
            Edit("settle", "a.id = i.lane AND a.epoch = i.epoch", "a.id = i.lane"),
            Edit("settle", "(a.state = 'running' AND a.worker_id = p_worker) IS TRUE", "a.state = 'running'"),
            Edit("turn", "w.id = p_worker AND w.fenced_at IS NULL FOR KEY SHARE", "w.id = p_worker FOR KEY SHARE"),
        ),
        patch=_know_nothing,
    ),
    Mutant(
        "takeover-hasty",
        "a worker is taken over before its lease is over",
        "ran at once",
        (Edit("fence_stale_workers", "make_interval(secs => s.lease_s)", "make_interval(secs => 0.3)"),),
    ),
    Mutant("lock-ignored", "an agent is claimed whose lock an operator holds", "to themselves", (NO_LOCK,)),
    Mutant(
        "lane-ignored",
        "an agent is claimed that runs a job",
        "ran at once",
        (
            NO_LOCK,
            Edit("claim", "a.state = 'ready' AND", "a.state IN ('ready', 'running') AND"),
            Edit(
                "claim",
                "WHERE EXISTS (SELECT FROM archibald.jobs j WHERE j.agent_id = m.lane AND j.state = 'running')",
                "WHERE false",
            ),
            Edit("claim", "ready_at = NULL, retry_at = NULL", "ready_at = clock_timestamp(), retry_at = NULL"),
        ),
        ("DROP INDEX archibald.jobs_one_running",),
    ),
    Mutant(
        "history-dropped",
        "the row of every 50th job that ends is lost",
        "in 0 rows",
        statements=(
            "CREATE FUNCTION archibald.drop_row() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'",
            "CREATE TRIGGER drop_row BEFORE INSERT ON archibald.job_history FOR EACH ROW WHEN (NEW.id % 50 = 0) "
            "EXECUTE FUNCTION archibald.drop_row()",
        ),
    ),
    Mutant(
        "handler-skipped",
        "every 25th job is completed without having run",
        "its last run is missing",
        patch=_skip_handlers,
    ),
    Mutant(
        "write-repeated",
        "a write whose worker died goes back into the queue",
        "nobody retried it",
        (
            Edit(
                "release_fenced_lanes",
                "j.class = 'write' AND NOT coalesce(o.idempotent, false) AS doubtful",
                "false AS doubtful",
            ),
        ),
    ),
    Mutant(
        "write-gone-back",
        "a write that was interrupted goes back into the queue",
        "nobody retried it",
        patch=_review_nothing,
    ),
    Mutant(
        "place-lost",
        "a requeued job loses its place",
        "which goes first",
        (
            Edit(
                "claim", "wait_reason = 'requeue', wake = false", "wait_reason = 'requeue', wake = false, due = false"
            ),
            Edit(
                "claim",
                "SET retry_at = r.run_after, ready_at = r.run_after",
                "SET retry_at = NULL, ready_at = clock_timestamp() + interval '0.3 s'",
            ),
            Edit("end_requeue", "AND j.wait_reason = 'requeue'", "AND false"),
        ),
    ),
    Mutant(
        "epoch-kept",
        "two owners of an agent have the same epoch",
        "after one of epoch",
        (Edit("claim", "epoch = a.epoch + 1", "epoch = a.epoch"),),
    ),
)
MUTANTS = {mutant.name: mutant for mutant in _ALL}
