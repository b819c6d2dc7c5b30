"""Least privilege: each role may do what it needs, and nothing else. The matrix below is the decision; a new table needs a line in it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from archibald_pgq import Archibald, NewJob
from archibald_pgq.store import migrations
from tests.commands import alembic, call, command, fingerprint, together
from tests.roles import GROUPS, PASSWORD, logins, psql, run_roles_sql
from tests.servers import Server
from tests.support import Look, Stage, looking, working

CALLER = "INSERT (idempotency_key, kind, payload, priority, run_after, user_id)"
NO = ""
READ = "SELECT"

# table: (enqueuer, worker, inspector)
TABLES = {
    "agents": (NO, "INSERT SELECT UPDATE", READ),
    "alembic_version": (READ, READ, READ),
    "all_jobs": (READ, READ, READ),
    "breakers": (NO, "DELETE INSERT SELECT UPDATE", READ),
    "checkpoints": (NO, "DELETE INSERT SELECT UPDATE", READ),
    "idempotency_keys": (NO, "DELETE SELECT UPDATE", READ),
    "job_evidence": (NO, "DELETE INSERT SELECT UPDATE", READ),
    "job_history": (NO, "INSERT SELECT", READ),
    "jobs": (f"{CALLER} SELECT (id)", f"DELETE {CALLER} SELECT UPDATE", READ),
    "limits": (NO, READ, READ),
    "operations": (NO, "INSERT SELECT UPDATE", READ),
    "schema_revisions": (READ, READ, READ),
    "sync_keys": (NO, NO, NO),
    "workers": (NO, "DELETE INSERT SELECT UPDATE", READ),
}

# What the enqueuer and the inspector may call, and what not even a worker may; a worker calls everything else.
ENQUEUER = {
    "cancel_job",
    "enqueue",
    "enqueue_many",
    "expect_agents",
    "hint",
    "lock_key",
    "try_lock_agent",
    "unlock_agent",
}
INSPECTOR = {"bucket", "lock_key", "odd_lanes", "requeue_delay"}
NOBODY = {"check_payload", "jobs_before_insert", "queued_sync", "refuse_job", "steps_of_retry", "take_key"}
WORKER = {
    "absorb_followups", "add_lanes", "adopt", "ask_for_room", "begin_step", "bucket", "cancel_job", "claim", "claim_on",
    "discard_job", "drain_for_solo", "drop_checkpoints", "drop_evidence", "drop_history_partitions", "drop_stray_locks", "end_jobs",
    "end_lost_backends", "end_requeue", "enqueue", "enqueue_many", "expect_agents", "fence_dead_worker", "fence_stale_workers",
    "finish_step", "forget_steps", "free_lanes", "hint", "hint_lanes", "keep_evidence", "lock_key", "look_again",
    "make_history_partitions", "make_room", "mend_lanes", "next_write", "note_failed_sync", "note_outage", "note_recovery",
    "note_refused_login", "odd_lanes", "owns_job", "pause_agent", "preempt_requests", "refresh_lanes", "release_fenced_lanes",
    "release_unlocked", "requeue_delay", "requeue_waiting", "rest_after", "resume_agent", "retake", "retry_job", "settle", "sound_payload",
    "takeover_due", "try_lock_agent", "turn", "unlock_agent", "wake_lanes", "withdraw_requests",
}  # fmt: skip
DEFINER = {
    "cancel_job", "discard_job", "drop_history_partitions", "enqueue", "enqueue_many", "expect_agents", "jobs_before_insert",
    "make_history_partitions", "pause_agent", "resume_agent", "retry_job", "try_lock_agent",
}  # fmt: skip
INLINED = {"bucket", "lock_key", "next_write"}

OF_TABLES = """
SELECT c.relname, r.rolname, string_agg(DISTINCT p.right, ' ' ORDER BY p.right)
  FROM pg_class c
 CROSS JOIN pg_roles r
 CROSS JOIN LATERAL (
   SELECT a.privilege_type AS right FROM aclexplode(c.relacl) AS a WHERE a.grantee = r.oid
   UNION ALL
   SELECT format('%%s (%%s)', a.privilege_type, string_agg(t.attname, ', ' ORDER BY t.attname))
     FROM pg_attribute t CROSS JOIN LATERAL aclexplode(t.attacl) AS a WHERE t.attrelid = c.oid AND a.grantee = r.oid
    GROUP BY a.privilege_type) AS p
 WHERE c.relnamespace = 'archibald'::regnamespace AND r.rolname LIKE 'archibald\\_%%' AND r.rolname <> 'archibald_owner'
 GROUP BY 1, 2
"""


@dataclass(frozen=True)
class Logins:
    database: str
    owner: str
    enqueuer: str
    worker: str
    inspector: str
    nobody: str


def names(**more: str) -> dict[str, str]:
    """Logins of these tests, each with its group."""
    groups = {f"a_{group.removeprefix('archibald_')}": group for group in GROUPS}
    return {**groups, "a_nobody": "", **more}


@pytest.fixture
def roles(database: str) -> Iterator[Logins]:
    """A database with the roles, and a login in each."""
    run_roles_sql(database)
    with logins(database, **names()) as urls:
        yield Logins(database, *urls.values())


def test_each_role_has_the_rights_of_the_matrix_and_no_others(roles: Logins) -> None:
    with psycopg.connect(roles.database, autocommit=True) as connection:
        relations = {
            name
            for (name,) in connection.execute(
                "SELECT relname FROM pg_class WHERE relnamespace = 'archibald'::regnamespace AND relkind IN ('r', 'p', 'v') "
                "AND NOT relispartition"
            )
        }
        assert relations == set(TABLES), "a new table needs a decision: who may do what with it?"
        found = {(table, role): rights for table, role, rights in connection.execute(OF_TABLES, ())}
        assert found == {
            (table, role): rights
            for table, line in TABLES.items()
            for role, rights in zip(GROUPS[1:], line, strict=True)
            if rights
        }
        functions = connection.execute(
            "SELECT proname, proacl::text LIKE '%%{=X%%' OR proacl IS NULL OR proacl::text LIKE '%%,=X%%', prosecdef, proconfig, "
            "ARRAY (SELECT r FROM unnest(%s::text[]) AS r WHERE has_function_privilege(r, p.oid, 'EXECUTE')) "
            "FROM pg_proc p WHERE pronamespace = 'archibald'::regnamespace",
            (list(GROUPS[1:]),),
        ).fetchall()
        assert {name for name, *_ in functions} == WORKER | NOBODY, "a new function needs a decision: who may call it?"
        for name, public, definer, config, who in functions:
            assert not public, name
            assert definer == (name in DEFINER), name
            assert ("search_path=pg_catalog, pg_temp" in (config or [])) == (name not in INLINED), name
            allowed = zip(GROUPS[1:], (ENQUEUER, WORKER, INSPECTOR), strict=True)
            assert who == [role for role, may in allowed if name in may], name
        others = connection.execute(
            "SELECT relname FROM pg_class WHERE relnamespace = 'archibald'::regnamespace AND relkind IN ('r', 'p', 'v', 'S') "
            "AND (relowner <> 'archibald_owner'::regrole OR (relispartition OR relkind = 'S') "
            "     AND EXISTS (SELECT FROM aclexplode(relacl) WHERE grantee <> relowner)) "
            "UNION ALL SELECT proname FROM pg_proc WHERE pronamespace = 'archibald'::regnamespace "
            "AND proowner <> 'archibald_owner'::regrole "
            "UNION ALL SELECT nspname FROM pg_namespace WHERE nspname = 'archibald' AND nspowner <> 'archibald_owner'::regrole"
        ).fetchall()
        assert others == []
        for group in GROUPS:
            row = connection.execute(
                "SELECT rolcanlogin, rolsuper, rolcreaterole, rolcreatedb, rolbypassrls, rolreplication FROM pg_roles WHERE rolname = %s",
                (group,),
            ).fetchone()
            assert row == (False,) * 6


def test_each_login_is_refused_what_it_has_no_right_to(roles: Logins) -> None:
    """By what the server does, not by what its catalogue says."""
    statements = {
        "SELECT": "SELECT * FROM archibald.{} LIMIT 0",
        "DELETE": "DELETE FROM archibald.{} WHERE false",
        "TRUNCATE": "TRUNCATE archibald.{}",
        "DROP": "DROP TABLE archibald.{}",
    }
    for url, column in ((roles.enqueuer, 0), (roles.worker, 1), (roles.inspector, 2), (roles.nobody, None)):
        with psycopg.connect(url) as connection:
            for table, line in TABLES.items():
                if table == "all_jobs":
                    continue
                for verb, statement in statements.items():
                    allowed = column is not None and verb in line[column].replace("SELECT (id)", "").split()
                    try:
                        with connection.transaction(force_rollback=True):
                            connection.execute(sql.SQL(statement).format(sql.Identifier(table)))
                    except psycopg.errors.InsufficientPrivilege:
                        assert not allowed, (url, verb, table)
                    else:
                        assert allowed, (url, verb, table)
            for statement in (
                "CREATE TABLE archibald.mine (x int)",
                "CREATE FUNCTION archibald.mine() RETURNS int LANGUAGE sql AS 'SELECT 1'",
                "UPDATE archibald.limits SET agent_backlog = NULL",
                "SET ROLE archibald_owner",
                "ALTER TABLE archibald.jobs DISABLE TRIGGER ALL",
            ):
                with pytest.raises(psycopg.errors.InsufficientPrivilege), connection.transaction():
                    connection.execute(statement)


REFUSED_TO_ENQUEUERS = [
    "INSERT INTO archibald.jobs (user_id, kind, state) VALUES ('alice', 'submit-order', 'running')",
    "INSERT INTO archibald.jobs (user_id, kind, retried_from) VALUES ('alice', 'submit-order', 1)",
    "INSERT INTO archibald.jobs (id, user_id, kind) OVERRIDING SYSTEM VALUE VALUES (1, 'alice', 'submit-order')",
    "INSERT INTO archibald.jobs (user_id, kind) VALUES ('alice', 'submit-order') RETURNING payload",
    "UPDATE archibald.jobs SET run_after = now()",
    "SELECT payload FROM archibald.jobs",
    "SELECT archibald.take_key('alice', 'k', 1, now(), '1 day')",
    "SELECT archibald.retry_job(1)",
    "SELECT archibald.discard_job(1)",
    "SELECT archibald.pause_agent('alice')",
    "SELECT archibald.resume_agent('alice')",
    "SELECT archibald.drop_history_partitions(1)",
    "SELECT archibald.make_history_partitions(1)",
    "SELECT archibald.settle(1, '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}')",
    "SELECT archibald.turn(1, '{}', '{}', '{}', '{}', '{}', '{}', '{}', 1, 1, 1, true)",
    "SELECT setval('archibald.jobs_id_seq', 1)",
]


async def test_an_enqueuer_enqueues_in_every_way_sees_and_cancels_jobs_and_nothing_else(
    roles: Logins, look: Look
) -> None:
    async with Archibald(roles.enqueuer) as app, await psycopg.AsyncConnection.connect(roles.enqueuer) as own:
        Stage().register(
            app, "submit-order", "an-apps-own", priority=7
        )  # an app that also declares; a worker does that for it
        await look.rows("INSERT INTO archibald.operations (kind, class, priority, timeout_s, max_attempts) "
                        "VALUES ('an-apps-own', 'read', 9, 60, 1)")  # fmt: skip
        job = await app.enqueue("an-apps-own", user_id="alice", data={"n": 1}, idempotency_key="k")
        assert (await app.enqueue("submit-order", user_id="alice", data={"n": 1}, idempotency_key="k")).id == job.id
        await app.enqueue_many([NewJob("submit-order", user_id="bob", data={"n": n}) for n in range(3)])
        await app.enqueue("submit-order", user_id="alice", data={"n": 2}, connection=own)
        await own.execute("INSERT INTO archibald.jobs (user_id, kind, payload, idempotency_key, run_after, priority) "
                          "VALUES ('carl', 'sync-orders', '{}', 'c', now(), 3) RETURNING id")  # fmt: skip
        async with (
            own.cursor() as cursor,
            cursor.copy("COPY archibald.jobs (user_id, kind, payload) FROM STDIN") as rows,
        ):
            for n in range(5):
                await rows.write_row((f"agent {n}", "submit-order", json.dumps({"n": n})))
        await own.commit()
        assert (await app.job(job.id)).payload == {"n": 1}
        for statement in REFUSED_TO_ENQUEUERS:
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                async with own.transaction():
                    await own.execute(statement)
        assert await app.cancel(job.id) == "cancelled"
        await own.execute("SELECT archibald.try_lock_agent('alice'), archibald.unlock_agent('alice')")
        await own.commit()
    made, cancelled, retried, paused, run = (
        command(*arguments, database=roles.enqueuer)
        for arguments in (
            ["enqueue", "submit-order", "dora"], ["cancel", str(job.id + 4)], ["retry", str(job.id)], ["agent", "pause", "dora"],
            ["run", "archibald_pgq.examples.erp:app"],
        )
    )  # fmt: skip
    assert (made.code, cancelled.code) == (0, 0)
    assert "refuses: permission denied for function retry_job" in retried.refused()
    assert "refuses: permission denied for function pause_agent" in paused.refused()
    assert "permission denied" in run.err.splitlines()[-1]
    assert run.code == 2
    assert await look.value("SELECT count(*) FROM archibald.all_jobs") == 13 - 1
    assert await look.value("SELECT count(*) FROM archibald.jobs WHERE class = 'sync' AND priority = 3") == 1
    assert await look.rows("SELECT class, priority FROM archibald.operations WHERE kind = 'an-apps-own'") == [
        ("read", 9)
    ]


def test_an_inspector_reads_with_every_command_and_changes_nothing(roles: Logins) -> None:
    with psycopg.connect(roles.database, autocommit=True) as connection:
        connection.execute("SELECT archibald.enqueue('alice', 'submit-order', '{\"order\": 7}', 'k')")
    before = fingerprint(roles.database)
    reads = [["jobs"], ["job", "1"], ["explain", "1"], ["agents"], ["stats"], ["workers"], ["review"]]
    for ended in together(call(*read, database=roles.inspector) for read in reads):
        assert (ended.code, ended.err) == (0, "")
    acts = [
        ["enqueue", "submit-order", "alice"], ["cancel", "1"], ["retry", "1"], ["discard", "1"], ["agent", "pause", "alice"],
        ["agent", "resume", "alice"], ["migrate"],
    ]  # fmt: skip
    refused = [ended.refused() for ended in together(call(*act, database=roles.inspector) for act in acts[:-1])]
    assert all("refuses: permission denied for function " in sentence for sentence in refused), refused
    assert fingerprint(roles.database) == before


def test_who_is_in_no_group_gets_nothing(roles: Logins) -> None:
    assert "permission denied for schema archibald" in command("jobs", database=roles.nobody).refused()


async def test_a_worker_runs_with_the_workers_role_alone(roles: Logins, look: Look) -> None:
    """Everything that `run` does: declare, register, turn, progress, requeue, history, and the decisions of a person."""
    await look.rows("DROP TABLE " + ", ".join(f"archibald.{name}" for (name,) in await look.rows(
        "SELECT relname FROM pg_class WHERE relispartition AND relname ~ '\\d{8}$'")))  # fmt: skip
    stage = Stage()
    async with Archibald(roles.worker) as app, looking(roles.enqueuer) as caller:
        stage.register(app, "submit-order")
        stage.register(app, "an-apps-own", job_class="sync", priority=7)

        @app.operation("nested", job_class="read")
        async def nested(ctx: object, data: dict[str, int]) -> dict[str, int]:
            return {"made": (await app.enqueue("submit-order", user_id="bob")).id}

        async with working(app):
            # before any job: beside one whose commit is slow, a day is left for the next hour
            await look.until(
                "SELECT count(*) = 8 FROM pg_class WHERE relispartition AND relname ~ '^job_history_\\d{8}$'"
            )
            assert await look.value("SELECT class FROM archibald.operations WHERE kind = 'an-apps-own'") == "sync"
            first = await caller.value("SELECT archibald.enqueue('alice', 'an-apps-own', '{\"n\": 1}')")
            await stage.until_started(1)
            await stage.contexts[0].progress(50, "half")
            await stage.contexts[0].save({"page": 7})
            write = await caller.value("SELECT archibald.enqueue('alice', 'submit-order', '{\"n\": 2}', 'k')")
            await look.until("SELECT preempt_requested_at IS NOT NULL FROM archibald.jobs WHERE id = %s", first)
            await stage.let_go()
            await look.until_state(write, "completed")
            await look.until_state(first, "completed")
            other = await caller.value("SELECT archibald.enqueue('bob', 'nested')")
            await look.until_state(other, "completed")
            await app.pause_agent("alice")
            waiting = await app.enqueue("submit-order", user_id="alice")
            assert await app.cancel(waiting.id) == "cancelled"
            again = await app.retry(waiting.id)
            await app.resume_agent("alice")
            await look.until_state(again.id, "completed")
    assert await look.rows(
        "SELECT DISTINCT relowner::regrole::text FROM pg_class WHERE relispartition AND relnamespace = 'archibald'::regnamespace"
    ) == [("archibald_owner",)]
    dropped = command(
        "psql", "-Atc", "select count(*) from archibald.drop_history_partitions(30)", database=roles.worker
    )
    assert (dropped.code, dropped.out) == (0, "0\n"), dropped


def test_a_member_of_the_owner_migrates_and_owner_and_rights_stay(
    server: Server, empty_database: str, roles: Logins
) -> None:
    """Roles first, then `migrate` by a member who may create no schema; and a later migration, which replaces a function."""
    run_roles_sql(empty_database)
    member = make_conninfo(empty_database, user="a_owner", password=PASSWORD)
    first = alembic(member, "upgrade", "0001")
    assert first.returncode == 0, first.stderr
    with psycopg.connect(empty_database, autocommit=True) as empty, psycopg.connect(roles.database) as other:
        ended = command("migrate", database=member)
        assert (ended.code, ended.err) == (0, ""), ended
        assert sorted(empty.execute(OF_TABLES, ())) == sorted(other.execute(OF_TABLES, ()))
        acls = (
            "SELECT proname, proowner::regrole::text, proacl::text FROM pg_proc "
            "WHERE pronamespace = 'archibald'::regnamespace ORDER BY 1"
        )
        rights = empty.execute(acls).fetchall()
        assert rights == other.execute(acls).fetchall()
        assert {owner for _, owner, _ in rights} == {"archibald_owner"}
        for group in GROUPS:
            empty.execute(sql.SQL("DROP OWNED BY {} CASCADE").format(sql.Identifier(group)))


def test_roles_can_be_run_again_and_by_a_role_that_is_no_superuser(server: Server, empty_database: str) -> None:
    with logins(empty_database, installer="") as urls:
        with psycopg.connect(empty_database, autocommit=True) as admin:
            admin.execute("ALTER ROLE installer CREATEROLE")
            admin.execute(sql.SQL("GRANT CREATE ON DATABASE {} TO installer").format(
                sql.Identifier(admin.info.dbname)))  # fmt: skip
        migrations.upgrade(urls["installer"])
        before = fingerprint(empty_database)
        printed = command("roles").out
        for _ in range(2):
            psql(urls["installer"], printed)
        run_roles_sql(empty_database)
        assert fingerprint(empty_database) == before
        assert command("migrate", database=urls["installer"]).code == 0
        with psycopg.connect(empty_database, autocommit=True) as admin:
            assert admin.execute(
                "SELECT nspowner::regrole::text FROM pg_namespace WHERE nspname = 'archibald'"
            ).fetchone() == ("archibald_owner",)


HOSTILE = """
CREATE FUNCTION public.{name}({arguments}) RETURNS {result} LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO public.caught VALUES ('{name}', current_user, current_query());
  {end};
END $$
"""


async def test_functions_and_operators_of_a_hostile_schema_are_never_called(roles: Logins, look: Look) -> None:
    """Named like ours and like built-in ones, with types that fit better than the built-in ones do."""
    await look.rows("GRANT CREATE, USAGE ON SCHEMA public TO a_nobody")
    await look.rows("CREATE TABLE public.caught (what text, by text, during text)")
    await look.rows("GRANT ALL ON public.caught TO PUBLIC")
    async with looking(roles.nobody) as hostile:
        for name, arguments, result in (
            ("lock_key", "text", "bigint"), ("bucket", "bigint", "integer"), ("enqueue", "text, text", "bigint"),
            ("now", "", "timestamptz"), ("clock_timestamp", "", "timestamptz"), ("coalesced", "text", "text"),
            ("pg_notify", "text, text", "void"), ("char_length", "varchar", "integer"), ("jsonb_typeof", "json", "text"),
            ("make_interval", "integer", "interval"), ("pg_advisory_xact_lock_shared", "integer, bigint", "void"),
            ("hashtextextended", "text, integer", "bigint"), ("requeue_delay", "integer", "interval"),
            ("power", "integer, integer", "float8"),
            ("cardinality", "bigint[]", "integer"), ("array_position", "bigint[], bigint", "integer"), ("format", "text, text", "text"),
            ("and_it", "bigint, integer", "bigint"), ("eq_it", "text, varchar", "boolean"), ("mul_it", "interval, numeric", "interval"),
            ("div_it", "bigint, numeric", "bigint"), ("lt_it", "smallint, numeric", "boolean"), ("cat_it", "text, bigint", "text"),
            ("plus_it", "integer, text", "integer"), ("shift_it", "bigint, bigint", "bigint"),
        ):  # fmt: skip
            await hostile.rows(
                HOSTILE.format(
                    name=name, arguments=arguments, result=result, end="RETURN" if result == "void" else "RETURN NULL"
                )
            )
        for operator, function, left, right in (
            ("&", "and_it", "bigint", "integer"), ("=", "eq_it", "text", "varchar"), ("*", "mul_it", "interval", "numeric"),
            ("/", "div_it", "bigint", "numeric"), ("<", "lt_it", "smallint", "numeric"), ("||", "cat_it", "text", "bigint"),
            ("<<", "shift_it", "bigint", "bigint"),
        ):  # fmt: skip
            await hostile.rows(
                f"CREATE OPERATOR public.{operator} (FUNCTION = public.{function}, LEFTARG = {left}, RIGHTARG = {right})"
            )
    # the worst that a database can be set to
    await look.rows(
        "DO $$ BEGIN EXECUTE pg_catalog.format('ALTER DATABASE %I SET search_path = public, pg_catalog', current_database()); END $$"
    )
    stage = Stage(hold=False)
    async with Archibald(roles.worker) as app, Archibald(roles.enqueuer) as caller:
        stage.register(app, "submit-order", "sync-orders")
        async with working(app), looking(roles.enqueuer) as session:
            job = await session.value(
                "SELECT archibald.enqueue('alice'::text, 'submit-order'::text, '{}'::jsonb, 'k'::text)"
            )
            await session.rows("INSERT INTO archibald.jobs (user_id, kind) VALUES ('bob', 'sync-orders')")
            await look.until_state(job, "completed")
            assert await session.value("SELECT archibald.try_lock_agent('carl'::text)")
            held = await session.value("SELECT archibald.enqueue('carl'::text, 'submit-order'::text)")
            await look.until("SELECT requeue_count > 0 FROM archibald.jobs WHERE id = %s", held)
            assert await session.value("SELECT archibald.cancel_job(%s)", held) == "cancelled"
            await look.until("SELECT NOT EXISTS (SELECT FROM archibald.jobs)")
            await session.rows("SELECT archibald.unlock_agent('carl'::text)")
            await app.pause_agent("alice")
            await app.resume_agent("alice")
        assert (await caller.job(job)).state == "completed"
    assert await look.rows("SELECT * FROM public.caught") == []
