"""The commands with which people look at the queue and act on it, each as a process of its own against a real database."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import psycopg
import pytest

from archibald_pgq import Archibald
from tests.commands import PATIENCE, PROGRAM, Ended, call, command, environment, fingerprint, together
from tests.support import Look, Stage, working
from tests.terminals import on_terminal, without_colours

LISTS = ["agents", "review", "workers"]

ODD = "[bold]x[/] :bug: \x1b[2J {}"
ODD_SHOWN = "[bold]x[/] :bug: \\x1b[2J {}"


@pytest.fixture
def connection(database: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(database, autocommit=True) as made:
        yield made


def enqueued(connection: psycopg.Connection, user: str, kind: str = "submit-order", **data: Any) -> int:
    row = connection.execute("SELECT archibald.enqueue(%s, %s, %s)", (user, kind, json.dumps(data))).fetchone()
    assert row is not None
    return int(row[0])


def in_review(
    connection: psycopg.Connection, user: str, error: str = "its worker died while it ran", **data: Any
) -> int:
    job = enqueued(connection, user, **data)
    connection.execute(
        "UPDATE archibald.jobs SET state = 'needs_review', started_at = now() - interval '90 s', last_error = %s WHERE id = %s",
        (error, job),
    )
    return job


def cancelled(connection: psycopg.Connection, user: str, **data: Any) -> int:
    job = enqueued(connection, user, **data)
    connection.execute("SELECT archibald.cancel_job(%s)", (job,))
    return job


def ended_as(connection: psycopg.Connection, job: int, state: str) -> None:
    connection.execute("SELECT archibald.cancel_job(%s)", (job,))
    connection.execute("UPDATE archibald.job_history SET state = %s WHERE id = %s", (state, job))


def state(connection: psycopg.Connection, job: int) -> str:
    row = connection.execute("SELECT state FROM archibald.all_jobs WHERE id = %s", (job,)).fetchone()
    assert row is not None
    return str(row[0])


def printed(ended: Ended) -> Any:
    """The one JSON document that a command printed, in one line."""
    assert (ended.code, ended.err) == (0, ""), ended
    (line,) = ended.out.splitlines()
    return json.loads(line)


def table(ended: Ended) -> list[list[str]]:
    """The words of each line that a command printed in a pipe."""
    assert (ended.code, ended.err) == (0, ""), ended
    return [line.split() for line in ended.out.splitlines()]


ADOPT = "SELECT archibald.adopt(NULL, 0, 0, '{}', '{}', interval '1 h', 100)"
"""Gives each new agent its lane, as a worker's turn does."""


@pytest.fixture
def every_sort(connection: psycopg.Connection) -> dict[str, int]:
    """An agent for each thing that one can be doing; the names of the agents say which. A worker runs the job of `running`."""
    worker = connection.execute(
        "INSERT INTO archibald.workers (host, pid, version, concurrency, kinds, lease_s) "
        "VALUES ('erp-1', 4242, '0.1.0', 10, ARRAY['submit-order', 'sync-orders'], 6) RETURNING id"
    ).fetchone()
    assert worker is not None
    made = {name: enqueued(connection, name) for name in ("running", "paused", "requeued", "waiting")}
    enqueued(connection, "running", "sync-orders")
    made["delayed"] = enqueued(connection, "delayed", "download-ddt-pdf")
    made["needs_review"] = in_review(connection, "needs_review")
    connection.execute(ADOPT)
    for statement in (
        "UPDATE archibald.jobs SET state = 'running', worker_id = %(worker)s, progress = 40, progress_label = 'line 3' "
        "WHERE id = %(running)s",
        "UPDATE archibald.agents SET state = 'running', worker_id = %(worker)s, turn_job_ids = ARRAY[%(running)s], "
        "since = now() - interval '192 s' WHERE user_id = 'running'",
        "SELECT archibald.pause_agent('paused', 'no password')",
        "UPDATE archibald.jobs SET wait_reason = 'requeue', requeue_count = 3 WHERE id = %(requeued)s",
        "UPDATE archibald.agents SET retry_at = now() + interval '1 h' WHERE user_id = 'requeued'",
        "UPDATE archibald.jobs SET due = false, wait_reason = 'delay', run_after = now() + interval '1 h' WHERE id = %(delayed)s",
    ):
        connection.execute(statement, {**made, "worker": worker[0]})
    return made


def test_an_empty_queue_says_so_in_words(database: str) -> None:
    commands = {
        "agents": "no agent has anything to do\n",
        "stats": "no jobs yet; enqueue one with `archibald-pgq enqueue`\n",
        "workers": "no workers; start one with `archibald-pgq run`\n",
        "review": "nothing needs review\n",
    }
    assert together(call(name, database=database) for name in commands) == [
        Ended(0, text, "") for text in commands.values()
    ]
    assert together(call(name, "--json", database=database) for name in LISTS) == [Ended(0, "[]\n", "")] * len(LISTS)


def test_agents_shows_what_each_is_doing_and_why_not(database: str, every_sort: dict[str, int]) -> None:
    shown, as_json = together([call("agents", database=database), call("agents", "--json", database=database)])
    head, *lines = table(shown)
    assert head == ["user_id", "doing", "for", "waiting", "delayed", "review", "what"]
    assert [line[:2] for line in lines] == [
        [name, name] for name in ("running", "paused", "requeued", "waiting", "delayed", "needs_review")
    ]
    assert re.fullmatch(
        rf"running running 3m \d+s 1 job {every_sort['running']} submit-order 40 % line 3", " ".join(lines[0])
    )
    assert " ".join(lines[1]) == "paused paused 1 until resumed: no password"
    assert " ".join(lines[2][-7:-2]) == "locked elsewhere, next try in"
    assert " ".join(lines[4]).startswith("delayed delayed 1 due in 59m ")
    assert not any(line.endswith(" ") for line in shown.out.splitlines())
    records = printed(as_json)
    assert list(records[0]) == [
        "user_id", "doing", "job_id", "kind", "progress", "progress_label", "worker_id", "since", "waiting", "delayed",
        "needs_review", "waiting_since", "due_at", "retry_at", "paused", "paused_until", "paused_reason", "left_alone",
    ]  # fmt: skip
    assert [record["doing"] for record in records] == [line[0] for line in lines]
    assert (records[0]["job_id"], records[0]["waiting"], records[0]["progress"]) == (every_sort["running"], 1, 40)
    assert (records[1]["paused"], records[1]["paused_until"], records[1]["paused_reason"]) == (
        True,
        None,
        "no password",
    )
    assert datetime.fromisoformat(records[0]["since"]).tzinfo is not None
    assert datetime.fromisoformat(records[4]["due_at"]).tzinfo is not None


def test_a_paused_agent_whose_job_runs_is_shown_as_both(
    database: str, connection: psycopg.Connection, every_sort: dict[str, int]
) -> None:
    connection.execute("SELECT archibald.pause_agent('running')")
    connection.execute("SELECT archibald.pause_agent('paused', NULL, '2100-01-01 12:00Z')")
    first, second = table(command("agents", "--limit", "2", database=database, env={"TZ": "UTC"}))[1:]
    assert " ".join(first).endswith(f" then paused; job {every_sort['running']} submit-order 40 % line 3")
    assert " ".join(second).endswith(" until 2100-01-01 12:00:00")


def test_of_running_agents_the_one_whose_job_runs_longest_is_first(
    database: str, connection: psycopg.Connection
) -> None:
    """Whichever of them has other jobs that wait for longer."""
    for user, runs_for in (("short", 10), ("long", 60)):
        enqueued(connection, user)
        connection.execute(ADOPT)
        connection.execute(
            "UPDATE archibald.agents SET state = 'running', worker_id = 1, since = now() - make_interval(secs => %s) WHERE user_id = %s",
            (runs_for, user),
        )
    connection.execute("UPDATE archibald.jobs SET waiting_since = now() - interval '1 h' WHERE user_id = 'short'")
    assert [line[0] for line in table(command("agents", database=database))[1:]] == ["long", "short"]


def test_stats_counts_each_class_and_all_of_them(
    database: str, connection: psycopg.Connection, every_sort: dict[str, int]
) -> None:
    for outcome in ("completed", "completed", "failed", "cancelled"):
        ended_as(connection, enqueued(connection, "other", "download-ddt-pdf"), outcome)
    shown, as_json = together([call("stats", database=database), call("stats", "--json", database=database)])
    sorts = ["waiting", "active", "delayed", "requeued", "needs_review", "completed", "failed", "cancelled"]
    assert table(shown) == [
        ["class", *sorts],
        ["write", "2", "1", "0", "1", "1", "0", "0", "0"],
        ["read", "0", "0", "1", "0", "0", "2", "1", "1"],
        ["sync", "1", "0", "0", "0", "0", "0", "0", "0"],
        ["total", "3", "1", "1", "1", "1", "2", "1", "1"],
    ]
    records = printed(as_json)
    assert [list(record) for record in records] == [["class", *sorts]] * 3
    assert records[1] == dict(zip(["class", *sorts], ["read", 0, 0, 1, 0, 0, 2, 1, 1], strict=True))


def test_workers_shows_who_is_alive_and_what_it_runs(
    database: str, connection: psycopg.Connection, every_sort: dict[str, int]
) -> None:
    connection.execute(
        "INSERT INTO archibald.workers (host, pid, version, concurrency, kinds, lease_s, beat, stopped_at, fenced_at) VALUES "
        "('gone', 1, '0.1.0', 10, '{}', 6, now() - interval '1 h', now(), NULL), "
        "('lost', 2, '0.1.0', 10, '{}', 6, now() - interval '1 h', NULL, now()), "
        "('silent', 3, '0.1.0', 10, '{}', 6, now() - interval '90 s', NULL, NULL)"
    )
    connection.execute(
        "UPDATE archibald.workers SET beat = now() + interval '1 h' WHERE host = 'erp-1'"
    )  # for as long as this test may take
    shown, as_json = together([call("workers", database=database), call("workers", "--json", database=database)])
    head, *lines = table(shown)
    assert head == ["id", "host", "pid", "health", "jobs", "started", "last", "beat", "kinds", "version"]
    assert [line[1] + " " + line[3] for line in lines] == ["silent silent", "erp-1 alive", "lost lost", "gone stopped"]
    assert [lines[1][2], lines[1][4], lines[1][-2]] == ["4242", "1/10", "2"]
    assert re.fullmatch(r"1m \d+s ago", " ".join(lines[0][7:10]))
    records = printed(as_json)
    assert list(records[0]) == [
        "id", "host", "pid", "version", "health", "running", "concurrency", "kinds", "started_at", "beat", "lease_s", "browsers",
    ]  # fmt: skip
    assert (records[1]["running"], records[1]["kinds"]) == (1, ["submit-order", "sync-orders"])


def test_review_shows_what_was_asked_for_why_it_stopped_and_how_to_decide(
    database: str, connection: psycopg.Connection
) -> None:
    first = in_review(connection, "alice", order=7)
    second = in_review(connection, ODD, error="its worker\nwas [red]told[/] to stop", text="x" * 1000)
    enqueued(connection, "alice", order=8)
    shown, as_json, limited = together(
        [call("review", *options, database=database) for options in ((), ("--json",), ("--json", "--limit", "1"))]
    )
    assert (shown.code, shown.err) == (0, "")
    blocks = shown.out.split("\n\n")
    assert blocks[0].splitlines()[0].startswith(f"{first}  submit-order of alice, asked for ")
    assert [line.strip() for line in blocks[0].splitlines()][1:2] == ['{"order": 7}']
    assert "(1m 3" in blocks[0]
    assert blocks[0].endswith("stopped: its worker died while it ran")
    assert f"{second}  submit-order of {ODD_SHOWN}, asked for " in blocks[1]
    assert "was [red]told[/] to stop" in blocks[1]
    assert f"and more: archibald-pgq job {second}" in blocks[1]
    assert "x" * 400 not in blocks[1].replace("\n", "").replace(" ", "")
    assert "archibald-pgq discard ID" in blocks[2]
    assert "archibald-pgq retry ID" in blocks[2]
    records = printed(as_json)
    assert [record["id"] for record in records] == [first, second]
    assert records[0]["payload"] == {"order": 7}
    assert records[0]["class"] == "write"
    assert [record["id"] for record in printed(limited)] == [first]
    decide = command("job", str(first), database=database)
    assert f"to decide  retry {first}, or discard {first}\n" in decide.out.replace("   ", "")


def test_retry_of_a_job_in_review_queues_that_same_job(database: str, connection: psycopg.Connection) -> None:
    job, other = in_review(connection, "alice"), in_review(connection, "bob")
    assert command("retry", str(job), database=database) == Ended(0, f"{job}\n", "")
    assert printed(command("retry", str(other), "--json", database=database)) == {"id": other}
    assert [state(connection, each) for each in (job, other)] == ["queued", "queued"]


def test_retry_of_a_finished_job_makes_a_new_one_and_each_names_the_other(
    database: str, connection: psycopg.Connection
) -> None:
    old = cancelled(connection, "alice", order=7)
    made, again = together([call("retry", str(old), database=database)] * 2)
    assert (made.code, made.err) == (0, "")
    assert again == made  # while that one is live there is no second
    new = int(made.out)
    assert new != old
    assert connection.execute("SELECT state, retried_from, payload FROM archibald.all_jobs WHERE id = %s", (new,)).fetchone() == (
        "queued", old, {"order": 7},
    )  # fmt: skip
    of_new, of_old, as_json = together(
        [
            call("job", str(new), database=database),
            call("job", str(old), database=database),
            call("job", str(new), "--json", database=database),
        ]
    )
    assert ["retried", "from", str(old)] in table(of_new)
    assert ["retried", "by", str(new), "(queued)"] in table(of_old)
    assert printed(as_json)["retried_from"] == old
    ended_as(connection, new, "failed")
    second = int(command("retry", str(old), database=database).out)
    assert ["retried", "by", f"{second}", "(queued),", f"{new}", "(failed)"] in table(
        command("job", str(old), database=database)
    )


def test_discard_puts_away_a_job_that_needs_review(database: str, connection: psycopg.Connection) -> None:
    job, other = in_review(connection, "alice"), in_review(connection, "bob")
    assert command("discard", str(job), database=database) == Ended(0, f"job {job} is discarded\n", "")
    assert printed(command("discard", str(other), "--json", database=database)) == {"id": other, "answer": "discarded"}
    assert [state(connection, each) for each in (job, other)] == ["cancelled", "cancelled"]


def test_what_the_state_of_a_job_does_not_allow_is_exit_code_1_and_one_sentence(
    database: str, connection: psycopg.Connection
) -> None:
    queued, failed, completed = (enqueued(connection, user) for user in ("alice", "bob", "carol"))
    ended_as(connection, failed, "failed")
    ended_as(connection, completed, "completed")
    before = fingerprint(database)
    cannot_retry = "only one that failed, was cancelled or needs review can be retried"
    cannot_discard = "only one that needs review can be discarded"
    expected = {
        ("retry", queued): f"job {queued} is already queued; {cannot_retry}",
        ("retry", completed): f"job {completed} is already completed; {cannot_retry}",
        ("discard", queued): f"job {queued} is already queued; {cannot_discard}",
        ("discard", failed): f"job {failed} is already failed; {cannot_discard}",
    }
    for options in ([], ["--json"]):
        ended = together(call(name, str(job), *options, database=database) for name, job in expected)
        assert ended == [Ended(1, "", f"archibald-pgq: {sentence}\n") for sentence in expected.values()]
    assert fingerprint(database) == before


def test_bad_arguments_are_exit_code_2_and_one_sentence(database: str, connection: psycopg.Connection) -> None:
    enqueued(connection, "alice")
    before = fingerprint(database)
    refused = {
        ("retry", "99"): "there is no job 99; `archibald-pgq jobs` lists the newest",
        ("discard", "99"): "there is no job 99; `archibald-pgq jobs` lists the newest",
        ("agent", "pause", "nobody"): "there is no agent 'nobody': no job of it was ever enqueued; check the name",
        ("agent", "resume", "nobody"): "there is no agent 'nobody': no job of it was ever enqueued; check the name",
        ("agent", "pause", ""): "user_id must be a text of 1 to 200 characters",
        ("agent", "pause", "alice", "--reason", ""): "reason must be a text of 1 to 500 characters",
        ("agent", "pause", "alice", "--reason", "x" * 501): "reason must be a text of 1 to 500 characters",
        ("agent", "resume", "x" * 201): "user_id must be a text of 1 to 200 characters",
    }
    ended = together(call(*arguments, database=database) for arguments in refused)
    assert [one.refused() for one in ended] == list(refused.values())
    usage = [
        *((name,) for name in ("retry", "discard")),
        *((name, job) for name in ("retry", "discard") for job in ("x", "0", "-1", str(2**63))),
        *((name, "--limit", limit) for name in LISTS for limit in ("0", "10001", "x")),
        ("stats", "--limit", "1"),
        ("stats", "extra"),
        ("agent", "pause"),
        ("agent", "halt", "alice"),
        ("agents", "alice"),
    ]
    for one in together(call(*arguments, database=database) for arguments in usage):
        one.usage_error()
    assert fingerprint(database) == before


async def test_pause_holds_an_agents_jobs_back_until_resume(app: Archibald, look: Look, database: str) -> None:
    stage = Stage(hold=False)
    stage.register(app, "submit-order")
    held = await app.enqueue("submit-order", user_id="alice")
    pause = call("agent", "pause", "alice", "--reason", "no password", database=database)
    (paused,) = together([pause])
    assert paused == Ended(0, "alice is paused: its queued jobs wait until it is resumed, one that runs ends\n", "")
    async with working(app):
        await (await app.enqueue("submit-order", user_id="bob")).wait(timeout=20)
        assert (await held.record()).state == "queued"
        (shown,) = together([call("agents", database=database)])
        assert "until resumed: no password" in shown.out
        answers = together([call("agent", "resume", "alice", database=database)] * 2)
        assert answers == [Ended(0, "alice goes on\n", ""), Ended(0, "alice was not paused\n", "")]
        await held.wait(timeout=20)


def test_pause_and_resume_answer_in_json_and_show_an_odd_name_as_it_is(
    database: str, connection: psycopg.Connection
) -> None:
    enqueued(connection, ODD)
    calls = [("pause",), ("resume",), ("resume",)]
    as_json = together(call("agent", *arguments, ODD, "--json", database=database) for arguments in calls)
    assert [printed(one) for one in as_json] == [
        {"user_id": ODD, "answer": answer} for answer in ("paused", "resumed", "not paused")
    ]
    spoken = together(call("agent", *arguments, ODD, database=database) for arguments in calls)
    assert [one.out[: len(ODD_SHOWN) + 1] for one in spoken] == [f"{ODD_SHOWN} "] * 3


def test_an_agent_whose_only_job_was_cancelled_before_any_worker_came_is_known(
    database: str, connection: psycopg.Connection
) -> None:
    cancelled(connection, "alice")
    ended = together(call("agent", name, "alice", database=database) for name in ("resume", "pause"))
    assert [one.code for one in ended] == [0, 0]


@pytest.mark.parametrize("name", ["agents", "stats", "workers", "review", "jobs"])
def test_on_80_columns_no_line_is_longer_and_nothing_but_colour_is_obeyed(
    name: str, database: str, connection: psycopg.Connection, every_sort: dict[str, int]
) -> None:
    in_review(connection, ODD * 5, error="long " * 50, text="long " * 100)
    connection.execute("SELECT archibald.pause_agent('paused', %s)", ("\x1b[2J" + "long " * 50,))
    connection.execute("UPDATE archibald.workers SET host = %s, version = %s", ("host\x07" * 10, "0.1.0.dev" * 5))
    shown = on_terminal(name, database=database)
    text = without_colours(shown)
    assert text != shown
    assert "\x1b" not in text
    assert "\x07" not in text
    assert max(len(line) for line in text.splitlines()) <= 80
    grey = on_terminal(name, database=database, NO_COLOR="1")
    assert "\x1b[3" not in grey


def test_what_a_latin_1_terminal_has_no_letter_for_is_shown_within_its_columns(
    database: str, connection: psycopg.Connection
) -> None:
    for job in (enqueued(connection, "Łukasz"), enqueued(connection, "Zoë")):
        connection.execute("UPDATE archibald.jobs SET last_error = %s WHERE id = %s", ("ł" * 100, job))
    for name in ("jobs", "agents"):
        text = without_colours(on_terminal(name, database=database, PYTHONIOENCODING="latin-1"))
        assert "\\u0141ukasz" in text
        assert "\\u2026" not in text
        assert max(len(line) for line in text.splitlines()) <= 80


def test_a_list_that_may_go_on_says_so_on_a_terminal_only(database: str, connection: psycopg.Connection) -> None:
    for n in range(3):
        in_review(connection, f"user-{n}")
    for name in ("jobs", "agents", "review"):
        assert "at most 2 are shown; --limit changes that" in on_terminal(name, "--limit", "2", database=database)
        assert "are shown" not in on_terminal(name, "--limit", "4", database=database)
        assert "are shown" not in command(name, "--limit", "2", database=database).out


@pytest.mark.parametrize("arguments", [["stats"], ["agents", "--json"], ["review"], ["enqueue", "submit-order", "bob"]])
def test_without_a_reader_a_command_ends_as_a_pipeline_expects(
    database: str, connection: psycopg.Connection, arguments: list[str]
) -> None:
    in_review(connection, "alice")
    process = subprocess.Popen(
        [*PROGRAM, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(database)
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    with contextlib.closing(process.stderr):
        assert process.stderr.read() == b""
    assert process.wait(PATIENCE) == 141
