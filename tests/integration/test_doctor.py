"""What the doctor finds: every fault is made for real, is found with its numbers and its remedy, and is not found where it is not there."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from archibald_pgq import Archibald, NewJob, config
from archibald_pgq.domain.doctor import queue, sessions
from archibald_pgq.domain.doctor.finding import Finding, Severity
from archibald_pgq.store import doctor
from tests.commands import command
from tests.hand import Hand, hand
from tests.pooler import needs_pgbouncer, pooler
from tests.support import Look, Stage, looking, working
from tests.terminals import on_terminal, without_colours

OK, NOTICE, SERIOUS = Severity.OK, Severity.NOTICE, Severity.SERIOUS


async def examined(database: str, **kwargs: Any) -> dict[str, list[Finding]]:
    """Look at everything; the findings by their check."""
    found: dict[str, list[Finding]] = {}
    for finding in await asyncio.to_thread(doctor.examine, database, config.load({}), **kwargs):
        found.setdefault(finding.name, []).append(finding)
    return found


async def one(database: str, name: str) -> Finding:
    """The one finding of a check."""
    (finding,) = (await examined(database))[name]
    return finding


def says(finding: Finding, severity: Severity, found: str, remedy: str) -> None:
    """Compare a finding; `found` and `remedy` are searched for as patterns."""
    assert finding.severity is severity, finding
    assert re.search(found, finding.found), finding
    assert finding.remedy, finding
    assert re.search(remedy, finding.remedy), finding


async def without(database: str, name: str) -> None:
    """Nothing is wrong with this check."""
    for finding in (await examined(database))[name]:
        assert (finding.severity, finding.remedy) == (OK, None), finding


@contextlib.asynccontextmanager
async def role(look: Look, database: str, *grants: str) -> AsyncIterator[str]:
    """A role with these rights; the URL with which it connects."""
    name = f"role_of_{conninfo_to_dict(database)['dbname']}"
    await look.rows(f"CREATE ROLE {name} LOGIN PASSWORD 'x'")
    try:
        for grant in grants:
            await look.rows(f"GRANT {grant} TO {name}")
        yield make_conninfo(database, user=name, password="x")
    finally:
        await look.rows(f"DROP OWNED BY {name}")
        await look.rows(f"DROP ROLE {name}")


# -- a healthy queue


async def test_where_all_is_well_every_check_says_ok_and_what_it_saw(app: Archibald, look: Look, database: str) -> None:
    stage = Stage()
    stage.register(app, "submit-order", "sync-orders")
    async with working(app):
        for user in ("alice", "bob"):
            await app.enqueue("submit-order", user_id=user)
            await app.enqueue("sync-orders", user_id=user)
        await stage.until_started(2)
        found = await examined(database)
        assert {name: [f.severity for f in each] for name, each in found.items()} == {
            name: [OK]
            for name in (
                "connection", "server", "notify_queue", "clock", "schema", "rights", "workers", "kinds", "lanes", "unseen_jobs", "review",
                "agent_locks", "blocked", "oldest_transaction", "dead_rows", "autovacuum", "history", "settings",
            )
        }, found  # fmt: skip
        assert found["lanes"][0].found == "2 lanes agree with their jobs"
        assert found["workers"][0].found.startswith("1 live worker with 10 consumers")
        await stage.let_go()
        await look.until("SELECT count(*) = 0 FROM archibald.jobs")


@pytest.mark.slow
async def test_while_workers_run_many_jobs_no_lane_is_said_to_be_wrong(
    app: Archibald, look: Look, database: str
) -> None:
    Stage(hold=False).register(app, "submit-order", "edit-order", "sync-orders", "sync-prices")
    async with working(app):
        looks = 0
        for _ in range(5):
            await app.enqueue_many(
                [
                    NewJob(kind, user_id=f"user-{n}")
                    for n in range(100)
                    for kind in ("sync-prices", "edit-order", "sync-orders", "submit-order")
                ]
            )
            while await look.value("SELECT count(*) > 40 FROM archibald.jobs"):
                await without(database, "lanes")
                looks += 1
        assert looks > 5
        await look.until("SELECT count(*) = 0 FROM archibald.jobs")


# -- the server and the way to it


async def test_a_direct_url_that_leads_nowhere_is_serious(database: str) -> None:
    url = make_conninfo(database, host="/nowhere")
    (finding,) = (await examined(database, direct_dsn=url))["connection"]
    says(finding, SERIOUS, "ARCHIBALD_DIRECT_URL .* cannot be used", "correct ARCHIBALD_DIRECT_URL")
    (finding,) = (await examined(database, direct_dsn=database))["connection"]
    assert finding.severity is OK
    assert "ARCHIBALD_DIRECT_URL is direct" in finding.found


@needs_pgbouncer
async def test_a_pooler_is_told_apart_from_the_server_behind_it(database: str) -> None:
    async with pooler(database) as there:
        (finding,) = (await examined(there.dsn))["connection"]
        says(finding, NOTICE, "goes through a connection pooler", "ARCHIBALD_DIRECT_URL")
        (finding,) = (await examined(there.dsn, direct_dsn=there.dsn))["connection"]
        says(finding, SERIOUS, "ARCHIBALD_DIRECT_URL .* leads to a connection pooler", "set ARCHIBALD_DIRECT_URL")
        (finding,) = (await examined(there.dsn, direct_dsn=database))["connection"]
        assert finding.severity is OK
        ended = command(
            "doctor", "--json", database=f"postgresql://{there.url}", env={"ARCHIBALD_DIRECT_URL": database}
        )
        assert ended.code == 0, ended
        assert "and ARCHIBALD_DIRECT_URL is direct" in ended.out


async def test_a_database_without_the_schema_is_serious_and_nothing_more_is_asked(empty_database: str) -> None:
    found = await examined(empty_database)
    says(found["schema"][0], SERIOUS, "there is no schema archibald", "archibald-pgq migrate")
    assert list(found) == ["connection", "server", "notify_queue", "clock", "schema"]
    assert command("doctor", database=empty_database).code == 1


async def test_an_older_schema_is_serious(look: Look, database: str) -> None:
    await look.rows("UPDATE archibald.alembic_version SET version_num = '0001'")
    says(await one(database, "schema"), SERIOUS, "revision 0001, this code needs", "archibald-pgq migrate")


async def test_a_host_whose_clock_is_wrong_is_told_so(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    await without(database, "clock")
    right = time.time
    monkeypatch.setattr("archibald_pgq.store.doctor.time.time", lambda: right() + 3600)
    says(await one(database, "clock"), NOTICE, r"clock is 3[56]\d\d\.\d+ s ahead of the database's \(± 0", "NTP")


async def test_what_a_role_may_not_do_is_named(look: Look, database: str) -> None:
    own = ["USAGE ON SCHEMA archibald", "SELECT ON ALL TABLES IN SCHEMA archibald"]
    async with role(look, database, *own) as url:
        found = await examined(url)
        says(found["rights"][0], NOTICE, r"lacks what an enqueuer needs \(INSERT on jobs.*a worker needs", "grant it")
        says(found["sight"][0], NOTICE, "does not see what other roles' sessions do", "GRANT pg_read_all_stats TO")
    enqueues = [
        *own,
        "INSERT ON archibald.jobs, archibald.idempotency_keys, archibald.sync_keys",
        "UPDATE ON archibald.idempotency_keys",
        "EXECUTE ON ALL FUNCTIONS IN SCHEMA archibald",
        "pg_read_all_stats",
    ]
    async with role(look, database, *enqueues) as url:
        found = await examined(url)
        assert found["rights"][0].severity is OK
        assert "has what an enqueuer needs and lacks what a worker needs (INSERT on workers" in found["rights"][0].found
        assert "sight" not in found


async def test_a_check_that_is_refused_is_a_notice_and_the_others_go_on(look: Look, database: str) -> None:
    tables_ = "archibald.agents, archibald.schema_revisions, archibald.alembic_version"
    async with role(look, database, "USAGE ON SCHEMA archibald", f"SELECT ON {tables_}") as url:
        found = await examined(url)
        says(
            found["review"][0], NOTICE, "could not be looked at: permission denied for table jobs", "connect as a role"
        )
        says(found["workers"][0], NOTICE, "could not be looked at: permission denied for table workers", "connect as")
        assert found["autovacuum"][0].severity is OK


# -- other people's sessions


async def test_the_backend_that_keeps_dead_rows_alive_is_named(
    look: Look, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await without(database, "oldest_transaction")
    async with looking(database, application_name="a report") as other:
        await other.rows("BEGIN ISOLATION LEVEL REPEATABLE READ")
        await other.rows("SELECT count(*) FROM archibald.jobs")
        pid = other.connection.info.backend_pid
        holder = rf"backend {pid} \(application a report, user \w+\), open for [\d.]+ s, idle in transaction, keeps dead rows"
        finding = await one(database, "oldest_transaction")
        assert finding.severity is OK  # it is young
        assert re.match(holder, finding.found), finding
        monkeypatch.setattr(sessions, "OPEN_NOTICE", timedelta(0))
        says(await one(database, "oldest_transaction"), NOTICE, holder, rf"SELECT pg_terminate_backend\({pid}\)")
        monkeypatch.setattr(sessions, "OPEN_SERIOUS", timedelta(0))
        assert (await one(database, "oldest_transaction")).severity is SERIOUS


async def test_a_prepared_transaction_that_was_forgotten_is_named(
    look: Look, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if await look.value("SELECT current_setting('max_prepared_transactions') = '0'"):
        pytest.skip("this server has max_prepared_transactions = 0")
    await look.rows("BEGIN")
    await look.rows("SET LOCAL archibald.notify = off")  # two-phase commit needs that
    await look.rows("SELECT archibald.enqueue('alice', 'submit-order')")
    await look.rows("PREPARE TRANSACTION 'it''s lost'")
    monkeypatch.setattr(sessions, "OPEN_SERIOUS", timedelta(0))
    says(
        await one(database, "oldest_transaction"),
        SERIOUS,
        "the prepared transaction .it's lost. of",
        "ROLLBACK PREPARED 'it''s lost'",
    )
    await look.rows("ROLLBACK PREPARED 'it''s lost'")
    await without(database, "oldest_transaction")


async def test_who_holds_an_agents_lock_from_outside_is_named(look: Look, database: str) -> None:
    async with hand(database) as worker, looking(database, application_name="a script") as other:
        await look.value("SELECT archibald.enqueue('alice', 'submit-order')")
        job = await worker.claim_one()
        await without(database, "agent_locks")  # its own worker holds it
        await worker.settle(job)
        await other.value("SELECT archibald.try_lock_agent('alice')")
        pid = other.connection.info.backend_pid
        says(
            await one(database, "agent_locks"),
            NOTICE,
            rf"^1 agent locked from outside \(alice\): the lock of alice is held by backend {pid} \(application a script.*connected for",
            rf"unlock_agent, or SELECT pg_terminate_backend\({pid}\)",
        )
        await other.value("SELECT archibald.unlock_agent('alice')")
        await without(database, "agent_locks")


async def test_a_lock_that_somebody_has_while_another_runs_the_agent_is_serious(look: Look, database: str) -> None:
    async with hand(database) as worker, looking(database) as other:
        await look.value("SELECT archibald.enqueue('alice', 'submit-order')")
        await worker.claim_one()
        await worker.connection.execute("SELECT pg_advisory_unlock_all()")
        await other.value("SELECT pg_try_advisory_lock(archibald.lock_key('alice'))")
        says(
            await one(database, "agent_locks"), SERIOUS, "alice .* while a worker runs a job of this agent", "terminate"
        )


async def test_a_transaction_for_which_enqueuers_wait_is_named_with_its_length(look: Look, database: str) -> None:
    enqueue = "SELECT archibald.enqueue('alice', 'submit-order', '{}', 'key')"
    async with looking(database, application_name="slow shop") as first, looking(database) as second:
        await first.rows("BEGIN")
        await first.rows(enqueue)
        waits = asyncio.create_task(second.rows(enqueue))
        waiting, holding = (each.connection.info.backend_pid for each in (second, first))
        await look.until("SELECT cardinality(pg_blocking_pids(%s)) = 1", waiting)
        await look.until("SELECT xact_start < now() - interval '1.1 s' FROM pg_stat_activity WHERE pid = %s", holding)
        says(
            await one(database, "blocked"),
            NOTICE,
            rf"^1 session \(such as backend {waiting}\) waits for .* for backend {holding} \(application slow shop, user \w+\), "
            r"idle in transaction, whose transaction is open for [1-9]\.\d s$",
            rf"commit it soon.*pg_terminate_backend\({holding}\)",
        )
        await first.rows("COMMIT")
        await waits
    await without(database, "blocked")


# -- the tables


async def test_a_table_whose_autovacuum_is_off_and_its_dead_rows_are_serious_or_noticed(
    look: Look, database: str
) -> None:
    await without(database, "autovacuum")
    await without(database, "dead_rows")
    await look.rows("ALTER TABLE archibald.idempotency_keys SET (autovacuum_enabled = off)")
    says(
        await one(database, "autovacuum"),
        SERIOUS,
        "off for 1 table of the queue: idempotency_keys",
        r"^ALTER TABLE archibald.idempotency_keys RESET \(autovacuum_enabled\)$",
    )
    await look.rows(
        "INSERT INTO archibald.idempotency_keys SELECT 'u', n::text, n, now(), now() FROM generate_series(1, 11000) n"
    )
    await look.rows("DELETE FROM archibald.idempotency_keys")
    await look.until("SELECT n_dead_tup > 10000 FROM pg_stat_all_tables WHERE relname = 'idempotency_keys'")
    says(
        await one(database, "dead_rows"),
        NOTICE,
        "archibald.idempotency_keys has 11,000 dead rows beside 0 live ones, last vacuumed never",
        "VACUUM archibald.idempotency_keys$",
    )
    await look.rows("ALTER TABLE archibald.idempotency_keys RESET (autovacuum_enabled)")
    await look.rows("VACUUM archibald.idempotency_keys")
    await look.until("SELECT n_dead_tup = 0 FROM pg_stat_all_tables WHERE relname = 'idempotency_keys'")
    await without(database, "autovacuum")
    await without(database, "dead_rows")


async def test_days_of_the_history_that_are_over_or_missing_are_noticed(look: Look, database: str) -> None:
    await without(database, "history")
    await look.rows(
        "CREATE TABLE archibald.job_history_20200301 PARTITION OF archibald.job_history FOR VALUES "
        "FROM ('2020-03-01 00:00+00') TO ('2020-03-02 00:00+00')"
    )
    says(
        await one(database, "history"),
        NOTICE,
        "^1 day of the history, the oldest 2020-03-01, should have been dropped after 30 days",
        r"^SELECT archibald.drop_history_partitions\(30\)",
    )
    assert await look.rows("SELECT archibald.drop_history_partitions(30)") == [("job_history_20200301",)]
    await without(database, "history")
    tomorrow = await look.value(
        "SELECT 'job_history_' || to_char(now() AT TIME ZONE 'UTC' + interval '1 day', 'YYYYMMDD')"
    )
    await look.rows(f"DROP TABLE archibald.{tomorrow}")
    says(await one(database, "history"), NOTICE, "no partition for tomorrow", r"make_history_partitions\(7\)")


# -- lanes


async def broken(database: str, look: Look, worker: Hand, *statements: str) -> tuple[str, str]:
    """Break a lane by hand; what the doctor says of it, and its remedy."""
    for each in statements:
        await look.rows(each)
    (finding,) = (await examined(database))["lanes"]
    assert finding.severity is SERIOUS, finding
    return finding.found.split(": ")[-1], finding.remedy or ""


FIX = "archibald-pgq doctor --fix"


@pytest.mark.parametrize(
    ("fault", "change"),
    [
        (
            "1 idle though a job is due",
            "UPDATE archibald.agents SET state = 'idle', ready_at = NULL WHERE user_id = 'alice'",
        ),
        ("1 ready for another job than its first", "UPDATE archibald.agents SET head_priority = 9"),
        ("1 ready without a job", "DELETE FROM archibald.jobs"),
    ],
)
async def test_a_lane_whose_hint_is_wrong_is_found_and_computed_anew(
    look: Look, database: str, fault: str, change: str
) -> None:
    async with hand(database) as worker:
        job = await look.value("SELECT archibald.enqueue('alice', 'submit-order')")
        await worker.turn(look=True)
        await without(database, "lanes")
        assert await broken(database, look, worker, change) == (fault, FIX)
        ended = command("doctor", "--fix", "--json", database=database)
        assert re.fullmatch(r"repaired the lane of alice: [a-z ]+\n", ended.err), ended
        assert ended.code == 0, ended
        await without(database, "lanes")
        assert [run.job_id for run in await worker.claim()] == ([] if "without a job" in fault else [job])


async def test_a_lane_that_somebody_is_about_to_look_at_is_not_wrong(look: Look, database: str) -> None:
    async with hand(database) as worker:
        await look.value("SELECT archibald.enqueue('alice', 'submit-order')")
        await worker.turn(look=True)
        await worker.settle(await worker.claim_one())
        await look.value("SELECT archibald.enqueue('alice', 'submit-order')")  # wake is set
        assert await look.value("SELECT state FROM archibald.agents") == "idle"
        await without(database, "lanes")
        await look.rows("UPDATE archibald.jobs SET wake = false")
        assert (await one(database, "lanes")).severity is SERIOUS
        await look.rows("UPDATE archibald.agents SET doubt_at = now()")
        await without(database, "lanes")
        await look.rows("UPDATE archibald.agents SET doubt_at = NULL, paused_until = 'infinity'")
        await without(database, "lanes")


async def test_jobs_of_a_worker_that_is_not_there_go_the_way_of_a_lost_workers_jobs(look: Look, database: str) -> None:
    async with hand(database) as gone, hand(database) as worker:
        write = await look.value("SELECT archibald.enqueue('alice', 'submit-order')")
        sync = await look.value("SELECT archibald.enqueue('bob', 'sync-orders')")
        assert len(await gone.claim()) == 2
        delete = f"DELETE FROM archibald.workers WHERE id = {gone.worker_id}"
        assert await broken(database, look, worker, delete) == (
            "2 running on a worker that is not there",
            f"restart worker {gone.worker_id}: its agents are then taken over",
        )
        assert doctor.mend(database, 3) == []  # its session holds the locks: handler code may run
        await gone.connection.close()
        await look.until("SELECT count(*) = 0 FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 1")
        assert (await one(database, "lanes")).remedy == FIX
        assert sorted(doctor.mend(database, 3), key=lambda lane: lane.user_id) == [
            doctor.Mended("alice", "running_without_worker"),
            doctor.Mended("bob", "running_without_worker"),
        ]
        await without(database, "lanes")
        assert await look.job(write, "state", "losses") == ("needs_review", 1)
        assert await look.job(sync, "state", "losses") == ("queued", 1)
        assert [run.job_id for run in await worker.claim()] == [sync]


async def test_a_running_job_whose_lane_does_not_run_is_repaired_when_nobody_holds_the_agents_lock(
    look: Look, database: str
) -> None:
    async with hand(database) as worker:
        job = await look.value("SELECT archibald.enqueue('bob', 'sync-orders')")
        await worker.claim_one()
        free = "UPDATE archibald.agents SET state = 'ready', ready_at = now(), worker_id = NULL"
        fault, remedy = await broken(database, look, worker, free)
        assert fault == "1 not running though a job of it is marked running"
        assert remedy == f"restart worker {worker.worker_id}: its agents are then taken over"
        assert doctor.mend(database, 3) == []  # the worker still runs it
        await worker.connection.execute("SELECT pg_advisory_unlock_all()")
        assert doctor.mend(database, 3) == [doctor.Mended("bob", "job_without_lane")]
        assert await look.job(job, "state", "losses") == ("queued", 1)
        await without(database, "lanes")


async def test_a_running_lane_of_a_live_worker_is_never_touched(look: Look, database: str) -> None:
    async with hand(database) as worker:
        await look.value("SELECT archibald.enqueue('alice', 'submit-order')")
        await worker.claim_one()
        await without(database, "lanes")
        assert doctor.mend(database, 3) == []
        assert await broken(database, look, worker, "DELETE FROM archibald.jobs") == (
            "1 running without a running job",
            f"restart worker {worker.worker_id}: its agents are then taken over",
        )
        before = await look.rows("SELECT * FROM archibald.agents")
        assert doctor.mend(database, 3) == []
        assert await look.rows("SELECT * FROM archibald.agents") == before


async def test_a_repair_waits_for_nobody_and_goes_on_in_batches(
    look: Look, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "MENDED_AT_ONCE", 3)
    monkeypatch.setattr(doctor, "LANES", 7)
    async with hand(database) as worker, looking(database) as other:
        await look.rows("SELECT archibald.enqueue('user-' || n, 'submit-order') FROM generate_series(1, 30) n")
        await worker.turn(look=True)
        await look.rows("UPDATE archibald.agents SET state = 'idle', ready_at = NULL")
        await other.rows("BEGIN")
        await other.rows("SELECT FROM archibald.agents WHERE user_id = 'user-5' FOR UPDATE")
        mended = {lane.user_id for lane in await asyncio.to_thread(doctor.mend, database, 3)}
        assert await look.rows("SELECT user_id FROM archibald.agents WHERE state = 'idle'") == [("user-5",)]
        assert len(mended) == 29
        await other.rows("ROLLBACK")
        assert doctor.mend(database, 3) == [doctor.Mended("user-5", "idle_with_job")]


# -- workers and jobs


async def test_no_live_worker_is_serious_while_jobs_are_due(look: Look, database: str) -> None:
    says(await one(database, "workers"), NOTICE, "no worker is alive, and 0 jobs are due", "archibald-pgq run")
    await look.value("SELECT archibald.enqueue('alice', 'submit-order')")
    says(await one(database, "workers"), SERIOUS, "no worker is alive, and 1 job is due", "archibald-pgq run")
    async with hand(database):
        await without(database, "workers")


async def test_a_worker_that_went_silent_and_was_not_taken_over_is_named(look: Look, database: str) -> None:
    async with hand(database) as silent, hand(database):
        await look.rows("UPDATE archibald.workers SET beat = now() - interval '8 s' WHERE id = %s", silent.worker_id)
        words = rf"^1 worker silent and not taken over yet: worker {silent.worker_id} \(.* was last heard of 8.\d s ago, its lease is 6 s$"
        says(await one(database, "workers"), NOTICE, words, "restart it")
        await look.rows("UPDATE archibald.workers SET fenced_at = now() WHERE id = %s", silent.worker_id)
        await without(database, "workers")


async def test_a_kind_that_waits_and_nobody_handles_is_serious(look: Look, database: str) -> None:
    await look.rows("SELECT archibald.enqueue(u, 'edit-order') FROM unnest(ARRAY['a', 'b']) u")
    async with hand(database, ["submit-order"]) as worker:
        await worker.turn(look=True)
        says(await one(database, "kinds"), SERIOUS, r"handles edit-order \(2 agents\)", "archibald-pgq run MODULE:APP")
        async with hand(database, ["edit-order"]):
            await without(database, "kinds")


async def test_jobs_that_nobody_looks_at_are_counted(
    look: Look, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await look.rows("SELECT archibald.enqueue('user-' || n, 'submit-order') FROM generate_series(1, 1002) n")
    await without(database, "unseen_jobs")
    monkeypatch.setattr(queue, "UNSEEN", timedelta(0))
    says(await one(database, "unseen_jobs"), NOTICE, "^over 1,000 jobs ask for a look, the longest for", "pgq run")
    async with hand(database) as worker:
        says(await one(database, "unseen_jobs"), SERIOUS, "and no worker has looked$", "the workers' log")
        for _ in range(5):
            await worker.turn(look=True)
        await without(database, "unseen_jobs")


async def test_jobs_in_review_for_over_a_day_are_named(look: Look, database: str) -> None:
    async with hand(database) as worker:
        job = await look.value("SELECT archibald.enqueue('alice', 'submit-order')")
        await worker.claim_one()
        await look.rows("UPDATE archibald.workers SET fenced_at = now() WHERE id = %s", worker.worker_id)
        await look.rows("SELECT archibald.release_fenced_lanes(10, 3)")
        assert (await look.job(job, "state")) == ("needs_review",)
        await without(database, "review")
        await look.rows("UPDATE archibald.jobs SET started_at = now() - interval '3 days'")
        says(
            await one(database, "review"),
            NOTICE,
            f"^1 job needs a person for over a day, the oldest, job {job}, began 3 days ago$",
            "archibald-pgq review",
        )


# -- settings


async def test_workers_that_differ_and_timeouts_that_hit_them_are_named(look: Look, database: str) -> None:
    async with hand(database, lease=6), hand(database, lease=9, max_wait=60):
        differ = (await examined(database))["settings"]
        assert [finding.found for finding in differ] == [
            "live workers differ in ARCHIBALD_LEASE: 6, 9",
            "live workers differ in ARCHIBALD_MAX_WAIT: 60, 900",
        ]
    await look.rows("UPDATE archibald.workers SET stopped_at = now()")
    name = conninfo_to_dict(database)["dbname"]
    for value, severity in (("500ms", SERIOUS), ("5s", NOTICE), ("1min", OK)):
        await look.rows(f"ALTER DATABASE {name} SET statement_timeout = '{value}'")
        finding = await one(database, "settings")
        assert finding.severity is severity, finding
    await look.rows(f"ALTER DATABASE {name} SET statement_timeout = '2s'")
    says(await one(database, "settings"), NOTICE, r"^statement_timeout is 2 s for \w+, and workers", "ALTER ROLE")


async def test_more_workers_than_the_server_can_carry_are_serious(look: Look, database: str) -> None:
    async with hand(database, concurrency=1_000_000):
        says(await one(database, "settings"), NOTICE, "hold 1,000,000 agents' locks", "max_locks_per_transaction")
    await look.rows("UPDATE archibald.workers SET stopped_at = now()")
    await without(database, "settings")
    await look.rows(
        "INSERT INTO archibald.workers (host, pid, version, concurrency, kinds, lease_s) "
        "SELECT 'h', n, 'test', 1, '{}', 600 FROM generate_series(1, 200) n"
    )
    says(await one(database, "settings"), SERIOUS, "^200 live workers .* need 1205 connections", "max_connections")


# -- the command


async def test_the_command_prints_what_was_found_and_ends_with_1_where_it_is_serious(look: Look, database: str) -> None:
    ended = command("doctor", "--json", database=database)
    assert (ended.code, ended.err) == (0, "")
    findings = json.loads(ended.out)
    assert {tuple(finding) for finding in findings} == {("name", "severity", "found", "remedy")}
    shown = without_colours(on_terminal("doctor", database=database, columns=80))
    assert max(len(line) for line in shown.splitlines()) <= 80
    assert re.search(r"workers +notice +no worker is alive, and 0 jobs are due\s+→ start one with", shown)
    await look.value("SELECT archibald.enqueue('[red]x', 'submit-order')")
    ended = command("doctor", database=database)
    assert (ended.code, ended.err) == (1, "")
    assert "no worker is alive, and 1 job is due" in ended.out
    assert "\x1b" not in ended.out
    nowhere = command("doctor", database="postgresql://nobody@localhost:1/nowhere")
    assert "cannot be used" in nowhere.refused()
    assert "database URL" in command("doctor", database="mysql://x").refused()


async def test_no_check_reads_all_jobs_or_all_of_the_history(look: Look, database: str) -> None:
    scans = (
        "SELECT coalesce(sum(seq_scan), 0)::bigint, coalesce(sum(idx_scan), 0)::bigint FROM pg_stat_all_tables "
        "WHERE schemaname = 'archibald' AND (relname = 'jobs' OR relname LIKE 'job_history%%')"
    )
    async with hand(database) as worker:
        await look.rows("SELECT archibald.enqueue('user-' || n, 'submit-order') FROM generate_series(1, 300) n")
        await worker.turn(look=True)
    await look.until("SELECT count(*) = 0 FROM pg_stat_activity WHERE application_name LIKE 'archibald-pgq%%'")
    await look.rows("SELECT pg_stat_clear_snapshot()")
    ((before, by_index),) = await look.rows(scans)
    await examined(database)
    await look.until(f"SELECT i > {by_index} FROM ({scans}) AS s(n, i)")
    ((after, _),) = await look.rows(scans)
    assert after == before
