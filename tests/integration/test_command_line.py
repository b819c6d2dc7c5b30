"""Every command of `archibald-pgq`, run as a process of its own against a real database."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from archibald_pgq import Archibald, JobCancelledError
from archibald_pgq.app import VERSION
from archibald_pgq.store.migrations import CODE_REVISION
from tests.commands import PATIENCE, PROGRAM, Ended, call, command, environment, fingerprint, together
from tests.support import Look, Stage, working
from tests.terminals import on_terminal, without_colours

ODD = "[bold]x[/] :bug: \\ \x1b[2J %s {}"
"""A user_id that a careless table would not show as it is."""

ODD_SHOWN = "[bold]x[/] :bug: \\ \\x1b[2J %s {}"

JOB_KEYS = [
    "id", "user_id", "kind", "class", "state", "wait_reason", "priority", "run_after", "requeue_count", "losses", "attempt",
    "max_attempts", "idempotency_key", "payload", "progress", "progress_label", "result", "error", "worker_id", "created_at",
    "started_at", "finished_at", "retried_from", "preempt_requested_at",
    "preempted_by", "preemptions",
]  # fmt: skip


def rows(database: str, statement: str, *params: Any) -> list[tuple[Any, ...]]:
    with psycopg.connect(database, autocommit=True) as connection:
        cursor = connection.execute(statement, params or None)
        return cursor.fetchall() if cursor.description else []


def printed(ended: Ended) -> Any:
    """The one JSON document that a command printed, in one line."""
    assert (ended.code, ended.err) == (0, ""), ended
    (line,) = ended.out.splitlines()
    return json.loads(line)


def test_version_and_help() -> None:
    assert command("--version") == Ended(0, f"archibald-pgq {VERSION}\n", "")
    shown = command("--help")
    assert (shown.code, shown.err) == (0, "")
    assert re.findall(r"^  ([a-z]+) ", shown.out, re.MULTILINE) == [
        "run", "migrate", "roles", "enqueue", "job", "jobs", "explain", "evidence", "cancel", "agents", "stats", "workers", "doctor",
        "health", "review", "retry", "discard", "psql", "demo", "bench", "agent",
    ]  # fmt: skip
    assert "..." not in "".join(line for line in shown.out.splitlines() if "ARGS" not in line)  # no summary is cut


def test_there_is_no_option_for_the_number_of_consumers() -> None:
    shown = command("run", "--help")
    assert re.findall(r"--[a-z-]+", shown.out) == ["--help"]


def test_migrate_makes_the_schema_and_does_nothing_the_second_time(empty_database: str) -> None:
    for _ in range(2):
        ended = command("migrate", database=empty_database)
        assert (ended.code, ended.err) == (0, "")
        assert re.fullmatch(rf".*, database test_\d+: schema archibald is at revision {CODE_REVISION}\n", ended.out)
        assert "\n".join(ended.out.splitlines()).count("archibald") == 1 + ended.out.count("/archibald-test")
    assert rows(empty_database, "SELECT count(*) FROM archibald.operations") == [(15,)]
    assert command("jobs", database=empty_database) == Ended(0, "no jobs\n", "")


def test_migrate_leaves_jobs_and_changed_policies_alone(database: str) -> None:
    rows(database, "SELECT archibald.enqueue('alice', 'submit-order')")
    rows(database, "UPDATE archibald.operations SET priority = 77 WHERE kind = 'edit-order'")
    before = fingerprint(database)
    assert command("migrate", database=database).code == 0
    assert fingerprint(database) == before


def test_enqueue_prints_the_id_of_the_job(database: str) -> None:
    first = command("enqueue", "submit-order", "alice", database=database)
    assert (first.code, first.err) == (0, "")
    assert rows(database, "SELECT id, user_id, kind, class, payload, wait_reason FROM archibald.jobs") == [
        (int(first.out), "alice", "submit-order", "write", {}, None)
    ]


def test_the_options_of_enqueue_reach_the_job_and_a_key_gives_the_same_job_again(database: str) -> None:
    arguments = ("enqueue", "submit-order", "alice", "--data", '{"order": 7, "näme": "ü"}', "--idempotency-key", "o-7")
    job = printed(command(*arguments, "--delay", "3600", "--json", database=database))
    assert printed(command(*arguments, "--json", database=database)) == job
    assert rows(
        database,
        "SELECT id, payload, idempotency_key, wait_reason, run_after - created_at BETWEEN '3599 s' AND '3601 s' FROM archibald.jobs",
    ) == [(job["id"], {"order": 7, "näme": "ü"}, "o-7", "delay", True)]


def test_data_from_stdin_may_be_larger_than_an_argument(database: str) -> None:
    payload = {"text": "x" * 1_000_000}
    job = printed(
        command(
            "enqueue", "submit-order", "alice", "--data", "-", "--json", database=database, stdin=json.dumps(payload)
        )
    )
    assert rows(database, "SELECT id, payload FROM archibald.jobs") == [(job["id"], payload)]


def test_a_database_can_be_named_in_each_accepted_form(database: str) -> None:
    rest = database.split("://", maxsplit=1)[1]
    forms = [f"postgres://{rest}", f"postgresql+psycopg://{rest}", make_conninfo(database)]
    ended = together(
        [
            *(call("jobs", "--json", database=form) for form in forms),
            call("jobs", "--json", env={"DATABASE_URL": database}),
            call("jobs", "--json", database=database, env={"DATABASE_URL": "postgresql://nowhere.invalid/x"}),
        ]
    )
    assert ended == [Ended(0, "[]\n", "")] * 5


@pytest.fixture
def five_jobs(database: str) -> dict[str, int]:
    """Two jobs of alice, one of them failed; one of bob; one of an odd user, whose error is odd, too; one that was requeued."""
    made = {
        name: rows(database, "SELECT archibald.enqueue(%s, %s, %s)", user, kind, json.dumps({"name": name}))[0][0]
        for name, user, kind in (
            ("a", "alice", "submit-order"),
            ("b", "alice", "edit-order"),
            ("c", "bob", "submit-order"),
            ("d", ODD, "edit-order"),
            ("e", "erin", "submit-order"),
        )
    }
    rows(
        database,
        "WITH gone AS (DELETE FROM archibald.jobs WHERE id = ANY (%s) RETURNING *) INSERT INTO archibald.job_history (id, user_id, kind, "
        "class, state, priority, run_after, requeue_count, losses, attempt, max_attempts, payload, created_at, waiting_since, error) "
        "SELECT id, user_id, kind, class, 'failed', priority, run_after, 0, 0, 1, 1, payload, created_at, waiting_since, "
        "CASE user_id WHEN 'alice' THEN %s ELSE %s END FROM gone",
        [made["b"], made["d"]],
        "long " * 100,
        "ValueError: [red]no[/]\n:bug:",
    )
    rows(
        database,
        "UPDATE archibald.jobs SET wait_reason = 'requeue', requeue_count = 3, run_after = now() + '16 s' WHERE id = %s",
        made["e"],
    )
    return made


def test_jobs_lists_the_newest_first_and_filters(database: str, five_jobs: dict[str, int]) -> None:
    expected = {
        (): ["e", "d", "c", "b", "a"],
        ("--user", "alice"): ["b", "a"],
        ("--user", ODD): ["d"],
        ("--state", "failed"): ["d", "b"],
        ("--kind", "submit-order", "--state", "queued"): ["e", "c", "a"],
        ("--user", "alice", "--kind", "edit-order", "--state", "queued"): [],
        ("--limit", "2"): ["e", "d"],
    }
    ended = together(call("jobs", "--json", *options, database=database) for options in expected)
    found = [[record["payload"]["name"] for record in printed(one)] for one in ended]
    assert dict(zip(expected, found, strict=True)) == expected


def test_job_shows_a_job_with_the_columns_of_all_jobs(database: str, five_jobs: dict[str, int]) -> None:
    record = printed(command("job", str(five_jobs["b"]), "--json", database=database))
    assert list(record) == JOB_KEYS
    assert (record["state"], record["error"], record["payload"]) == (
        "failed",
        "long " * 100,
        {"name": "b"},
    )
    (expected,) = rows(
        database, "SELECT created_at, finished_at, started_at FROM archibald.all_jobs WHERE id = %s", five_jobs["b"]
    )
    assert [record[name] for name in ("created_at", "finished_at", "started_at")] == [
        expected[0].isoformat(), expected[1].isoformat(), None,
    ]  # fmt: skip
    shown = command("job", str(five_jobs["d"]), database=database)
    assert (shown.code, shown.err) == (0, "")
    table = dict(re.findall(r"^(\w[\w ]*?)  +(.*?) *$", shown.out, re.MULTILINE))
    assert table["job"] == str(five_jobs["d"])
    assert table["user_id"] == ODD_SHOWN
    assert table["kind"] == "edit-order (write, priority 5)"
    assert table["state"] == "failed"
    assert table["payload"] == '{"name": "d"}'
    assert table["error"] == "ValueError: [red]no[/]"


def test_times_that_python_has_no_date_for_are_shown_as_the_last_and_the_first(database: str) -> None:
    """An INSERT refuses such a run_after, an UPDATE by hand does not; it must not make the list unreadable."""
    for time in ("infinity", "-infinity", "294000-01-01", "4000-01-01 BC"):
        job = rows(database, "SELECT archibald.enqueue('alice', 'submit-order')")[0][0]
        rows(database, "UPDATE archibald.jobs SET run_after = %s, wait_reason = 'delay' WHERE id = %s", time, job)
    listed = printed(command("jobs", "--json", database=database))
    last, first = "9999-12-31T23:59:59.999999+00:00", "0001-01-01T00:00:00+00:00"
    assert [record["run_after"] for record in listed] == [first, last, first, last]
    ended = together(call("job", str(job), database=database, env={"TZ": "UTC-2"}) for job in (1, 3))
    assert [one.code for one in ended] == [0, 0]
    assert re.search(r"^not before +9999-12-31 23:59:59", ended[0].out, re.MULTILINE)


def test_json_is_ascii_where_the_output_can_take_no_more(database: str) -> None:
    rows(database, "SELECT archibald.enqueue('zoë', 'submit-order')")
    ascii_only = {"PYTHONIOENCODING": "ascii"}
    assert printed(command("jobs", "--json", database=database, env=ascii_only))[0]["user_id"] == "zoë"
    shown = command("jobs", database=database, env=ascii_only)
    assert (shown.code, shown.err) == (0, "")
    assert "zo" in shown.out


def test_in_a_pipe_the_table_has_one_line_a_job_and_no_escape_codes(database: str, five_jobs: dict[str, int]) -> None:
    shown = command("jobs", database=database, env={"COLUMNS": "40"})
    assert (shown.code, shown.err) == (0, "")
    assert "\x1b" not in shown.out
    head, *lines = shown.out.splitlines()
    assert head.split() == ["id", "user_id", "kind", "state", "created", "note"]
    assert [int(line.split()[0]) for line in lines] == sorted(five_jobs.values(), reverse=True)
    assert re.search(r"erin +submit-order +queued \(requeue\) +\d\d-\d\d \d\d:\d\d:\d\d +requeued 3 times", lines[0])
    assert ODD_SHOWN in lines[1]
    assert lines[1].rstrip().endswith("ValueError: [red]no[/] :bug:")


def test_on_a_terminal_of_80_columns_no_line_is_longer_and_nothing_but_colour_is_obeyed(
    database: str, five_jobs: dict[str, int]
) -> None:
    shown = on_terminal("jobs", database=database)
    plain = without_colours(shown)
    assert shown != plain  # there are colours
    assert "\x1b" not in plain
    assert max(len(line) for line in plain.splitlines()) <= 80
    row = f"{five_jobs['e']}  erin .* submit-order  queued \\(requeue\\)  \\d+s ago +requeued 3 times"
    assert re.search(row, plain)


def test_a_reader_that_stops_reading_gets_no_complaint(database: str) -> None:
    rows(database, "SELECT archibald.enqueue('user-' || n, 'submit-order') FROM generate_series(1, 2000) n")
    for options, unbuffered in (([], ""), (["--json"], ""), (["--json"], "1")):
        process = subprocess.Popen(
            [*PROGRAM, "jobs", "--limit", "2000", *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(database, PYTHONUNBUFFERED=unbuffered),
        )
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(10)
        process.stdout.close()
        assert process.stderr.read() == b""
        process.stderr.close()
        assert process.wait(PATIENCE) == 141  # as a shell shows the end by SIGPIPE


def test_cancel_of_a_queued_job_and_of_one_that_had_ended(database: str, five_jobs: dict[str, int]) -> None:
    waiting, ended = five_jobs["a"], five_jobs["b"]
    assert command("cancel", str(waiting), database=database) == Ended(0, f"job {waiting} is cancelled\n", "")
    assert rows(database, "SELECT state FROM archibald.all_jobs WHERE id = %s", waiting) == [("cancelled",)]
    before = fingerprint(database)
    assert command("cancel", str(ended), database=database) == Ended(
        1, f"nothing to cancel: job {ended} is already failed\n", ""
    )
    again = command("cancel", str(waiting), database=database)
    assert again == Ended(1, f"nothing to cancel: job {waiting} is already cancelled\n", "")
    assert fingerprint(database) == before
    assert printed(command("cancel", str(five_jobs["c"]), "--json", database=database))["answer"] == "cancelled"


async def test_cancel_stops_a_job_that_runs_in_another_process(app: Archibald, look: Look, database: str) -> None:
    stage = Stage()
    stage.register(app, "submit-order")
    job = await app.enqueue("submit-order", user_id="alice")
    async with working(app):
        await stage.until_started(1)
        ended = await asyncio.to_thread(command, "cancel", str(job.id), database=database)
        assert ended == Ended(0, f"job {job.id} runs; it is asked to stop\n", "")
        with pytest.raises(JobCancelledError):
            await job.wait(timeout=20)
    assert stage.contexts[0].cancelled


def test_psql_opens_the_queues_database_and_passes_arguments_input_and_exit_code(database: str) -> None:
    rows(database, "SELECT archibald.enqueue('alice', 'submit-order')")
    query = "select user_id, kind, state, requeue_count from archibald.all_jobs order by id"
    assert command("psql", "-At", "-c", query, database=database) == Ended(0, "alice|submit-order|queued|0\n", "")
    assert command("psql", "-At", database=database, stdin=query).out == "alice|submit-order|queued|0\n"
    failed = command("psql", "-v", "ON_ERROR_STOP=1", "-f", "-", database=database, stdin="select nonsense;")
    assert (failed.code, failed.out) == (3, "")
    assert 'column "nonsense" does not exist' in failed.err


def test_psql_gets_every_part_of_the_url_but_no_password_in_its_arguments(database: str) -> None:
    password = str(conninfo_to_dict(database).get("password") or "Geheim77")  # a server that asks for none takes any
    dsn = make_conninfo(database, password=password, application_name="looking", options="-c work_mem=5MB")
    ended = command(
        "psql",
        "-At",
        "-c",
        "show work_mem",
        "-c",
        "show application_name",
        "-c",
        "\\! ps -ww -o args= -p $PPID",
        database=dsn,
    )
    assert (ended.code, ended.err) == (0, "")
    work_mem, name, arguments = ended.out.splitlines()
    assert (work_mem, name) == ("5MB", "looking")
    assert "show work_mem" in arguments
    assert password not in arguments


APP = """
from archibald_pgq import Archibald, JobContext
app = Archibald()
@app.operation("submit-order")
async def submit_order(ctx: JobContext, data: dict) -> dict:
    return {"by": "%s"}
"""


@pytest.mark.parametrize("named", ["argument", "variable", "pyproject"])
async def test_run_takes_its_app_from_the_argument_else_the_variable_else_pyproject(
    named: str, tmp_path: Path, database: str, look: Look
) -> None:
    """Each of the three is there where an earlier one must win."""
    for module in ("argument", "variable", "pyproject"):
        (tmp_path / f"by_{module}.py").write_text(APP % module)
    (tmp_path / "pyproject.toml").write_text('[tool.archibald-pgq]\napp = "by_pyproject:app"\n')
    job = await look.value("SELECT archibald.enqueue('alice', 'submit-order')")
    process = await asyncio.create_subprocess_exec(
        *[*PROGRAM, "run"],
        *(["by_argument:app"] if named == "argument" else []),
        cwd=tmp_path,
        env=environment(database, **({} if named == "pyproject" else {"ARCHIBALD_APP": "by_variable:app"})),
        stderr=subprocess.PIPE,
    )
    try:
        await look.until_state(job, "completed")
        assert await look.job(job, "result") == ({"by": named},)
    finally:
        process.send_signal(signal.SIGTERM)
        _, log = await asyncio.wait_for(process.communicate(), PATIENCE)
    assert process.returncode == 0, log
    assert b"Traceback" not in log
    assert b"is ready: 10 consumers, 1 operations" in log


def test_who_only_enqueues_does_not_import_the_worker_and_who_asks_for_it_does() -> None:
    code = (
        "import sys, archibald_pgq\n"
        "print('archibald_pgq.runtime.dispatcher' in sys.modules, hasattr(archibald_pgq, 'Other'))\n"
        "from archibald_pgq import *\n"
        "print('archibald_pgq.runtime.dispatcher' in sys.modules, Worker.run.__name__)\n"
    )
    found = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True)
    assert found.stdout == "False False\nTrue run\n"


def test_a_start_imports_neither_alembic_nor_sqlalchemy_nor_the_demo_nor_what_the_example_needs() -> None:
    """They cost more than the rest of a short command."""
    found = subprocess.run(
        [sys.executable, "-c", "import sys, archibald_pgq.cli; print(*sys.modules)"],
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert not {"alembic", "sqlalchemy", "aiohttp", "jinja2", "bs4", "archibald_pgq.demo.run"} & set(found)
