"""The hot path reads by index, whatever the shape of the queue and whatever the statistics say about it."""

from __future__ import annotations

import pytest

from archibald_pgq.domain.outcome import Outcome
from archibald_pgq.store import workers
from archibald_pgq.store.turn import Owner, Report, Settlement, Want
from tests.counts import until_counted
from tests.hand import hand
from tests.support import Look, looking

AGENTS = """
INSERT INTO archibald.agents (user_id, lock_key, state, ready_at, head_kind, head_priority)
SELECT 'user-' || n, archibald.lock_key('user-' || n), %s, now(), 'submit-order', 1 FROM generate_series(1, 12000) AS n
"""
JOBS = """
INSERT INTO archibald.jobs (agent_id, user_id, kind, class, priority, max_attempts, due, run_after, wake)
SELECT a.id, a.user_id, 'submit-order', 'write', 1, 1, {due}, now() + {due_in}, {wake}
  FROM archibald.agents a CROSS JOIN generate_series(1, {each}) AS n WHERE {which}
"""
KEYS = """
INSERT INTO archibald.idempotency_keys (user_id, key, job_id, job_created_at, expires_at)
SELECT 'other-' || n, 'k', -n, now(), now() FROM generate_series(1, 20000) AS n
"""
READY = JOBS.format(due="true", due_in="interval '0'", wake="false", each=4, which="true")
HOT = JOBS.format(due="true", due_in="interval '0'", wake="false", each=50000, which="user_id = 'user-7'")
FUTURE = JOBS.format(due="false", due_in="interval '1 h'", wake="false", each=4, which="true")
WAKES = JOBS.format(due="true", due_in="interval '0'", wake="true", each=1, which="true")
READ = """
SELECT coalesce(sum(seq_tup_read), 0)::bigint FROM pg_stat_user_tables
 WHERE schemaname = 'archibald' AND (relname IN ('jobs', 'agents', 'idempotency_keys', 'sync_keys') OR relname LIKE 'job_history%%')
"""


@pytest.mark.parametrize("statistics", ["fresh", "none", "of the time when it was empty"])
@pytest.mark.parametrize(
    ("state", "jobs"),
    [("ready", READY), ("idle", HOT), ("idle", FUTURE), ("idle", WAKES)],
    ids=["12000 agents ready", "one hot agent", "all in the future", "all to be woken"],
)
async def test_no_turn_and_no_enqueue_reads_a_whole_table(
    look: Look, database: str, state: str, jobs: str, statistics: str
) -> None:
    """Plans are made anew in the first executions and kept after five; both sorts are looked at."""
    async with hand(database) as worker, looking(database) as caller:

        async def use(rounds: int) -> None:
            settlements: list[tuple[object, Outcome]] = []
            for n in range(rounds):
                await caller.value(
                    "SELECT archibald.enqueue(%s, 'submit-order', '{}', %s)", f"user-{n}", f"key-{rounds}-{n}"
                )
                last = await caller.value("SELECT archibald.enqueue(%s, 'sync-orders')", f"new-{rounds}-{n}")
                turn = await worker.turn(*settlements, want=3, look=n % 2 == 0)  # type: ignore[arg-type]
                outcomes = (Outcome.completed("1"), Outcome.gone_back(), Outcome.retry("again", 0.0))
                settlements = [(job, outcomes[n % 3]) for job in turn.claimed]
                if n % 3 == 0:
                    await caller.value("SELECT archibald.cancel_job(%s)", last)

        await look.rows("ALTER TABLE archibald.jobs SET (autovacuum_enabled = off)")
        await look.rows("ALTER TABLE archibald.agents SET (autovacuum_enabled = off)")
        if statistics == "of the time when it was empty":
            await look.rows("ANALYZE")
            await use(
                8
            )  # the plans of these sessions are now those of an empty queue, and nothing below makes them anew
        await look.rows("SET session_replication_role = replica")  # without triggers
        await look.rows(AGENTS.replace("%s", f"'{state}'") + "ON CONFLICT DO NOTHING")
        for sql in (jobs, KEYS):
            await look.rows(sql)
        await look.rows("RESET session_replication_role")
        if statistics == "fresh":
            await look.rows("VACUUM ANALYZE")
        sessions = (look.connection, caller.connection, worker.connection)
        await until_counted(look, sessions)
        before = await look.value(READ)
        await use(12)
        await workers.fence_stale(worker.connection, worker.worker_id)
        await workers.release_fenced(worker.connection, 100, 3)
        await until_counted(look, sessions)
        assert await look.value(READ) - before == 0


LARGE = """
INSERT INTO archibald.jobs (agent_id, user_id, kind, class, priority, max_attempts, due, run_after, wake, payload)
SELECT NULL, 'user-7', 'download-ddt-pdf', 'read', 1, 1, true, now(), true, '{}' FROM generate_series(1, 20000)
"""
FETCHED = """
SELECT sum(idx_tup_fetch + seq_tup_read)::bigint FROM pg_stat_user_tables WHERE schemaname = 'archibald' AND relname IN ('jobs', 'agents')
"""


async def test_a_turn_reads_a_bounded_number_of_rows_where_a_vacuum_found_the_table_large_and_empty(
    look: Look, database: str
) -> None:
    """The planner then takes thousands of new jobs for a handful, and a pass over all of them for the cheapest way to each."""
    async with hand(database) as worker:
        await look.value("SELECT archibald.enqueue('user-7', 'download-ddt-pdf')")
        await worker.settle(await worker.claim_one())
        await look.rows("ALTER TABLE archibald.jobs SET (autovacuum_enabled = off)")
        await look.rows("SET session_replication_role = replica")
        await look.rows(LARGE)
        await look.rows("DELETE FROM archibald.jobs WHERE id < (SELECT max(id) FROM archibald.jobs)")
        await look.rows("VACUUM ANALYZE archibald.jobs")  # the last page is in use: the table stays large
        await look.rows(LARGE)
    async with hand(database) as worker:  # a new session: its plans are made now
        sessions = (look.connection, worker.connection)
        await until_counted(look, sessions)
        before = await look.value(FETCHED)
        want = Want(10, 10, ahead=20, short={"download-ddt-pdf": 50})
        reports: list[Report] = []
        ran = 0
        for _ in range(12):
            claimed = (await worker.report(*reports, want=want, look=True)).claimed
            ran += len(claimed)
            items = [Settlement(job.job_id, Outcome.completed("1")) for job in claimed]
            reports = [Report(Owner(claimed[0].lane, claimed[0].epoch), items)] if items else []
        await until_counted(look, sessions)
        assert ran >= 300
        assert await look.value(FETCHED) - before < 20 * (ran + 12 * 500)


async def test_a_look_reads_a_bounded_number_of_agents_though_its_plan_was_made_while_there_were_none(
    look: Look, database: str
) -> None:
    """The cheapest plan for an empty table passes over all of it, and is kept."""
    async with hand(database) as worker:
        await look.rows("ALTER TABLE archibald.agents SET (autovacuum_enabled = off)")
        await look.rows("VACUUM ANALYZE archibald.agents")
        for _ in range(2):
            await worker.turn(want=1, look=True)
        await look.rows(AGENTS.replace("%s", "'idle'"))
        sessions = (look.connection, worker.connection)
        await until_counted(look, sessions)
        before = await look.value(FETCHED)
        for _ in range(5):
            await worker.turn(want=1, look=True)
        await until_counted(look, sessions)
        assert await look.value(FETCHED) - before < 100
