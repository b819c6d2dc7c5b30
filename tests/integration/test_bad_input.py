"""Bad input: each has its one sentence and exit code 2, never a traceback or a password, and nothing is lost or half-written."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from archibald_pgq import Archibald, InvalidJobError, SchemaError, UnknownJobError, UnknownKindError
from archibald_pgq.errors import ConfigError, DatabaseError
from archibald_pgq.store import migrations
from tests.commands import Ended, call, command, fingerprint, together
from tests.support import Look, Stage, working

DROP = "'; DROP SCHEMA archibald CASCADE; --"
PASSWORD = "Geheim77"
MEND = "run `archibald-pgq migrate`"

GOOD_APP = "from archibald_pgq import Archibald\napp = Archibald()\n"


@pytest.fixture
def unchanged(database: str) -> Iterator[str]:
    """A database with a job in it, which a test must leave exactly as it is."""
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("SELECT archibald.enqueue('alice', 'submit-order', '{}', 'key')")
    before = fingerprint(database)
    yield database
    assert fingerprint(database) == before


def refused(arguments: list[str], **options: Any) -> str:
    return command(*arguments, **options).refused()


# -- the app


def test_an_app_that_cannot_be_found(unchanged: str, tmp_path: Path) -> None:
    for name, text in {
        "empty": "",
        "other": "app = object()",
        "none": "app = None",
        "broken": "raise RuntimeError('first line\\nsecond line')",
        "syntax": "def",
        "leaves": "import sys; sys.exit(0)",
        "silent": "raise ValueError",
        "needs": "import a_module_that_is_not_there",
        "twice": GOOD_APP + "async def f(ctx, data): ...\napp.operation('a')(f)\napp.operation('a')(f)",
        "notasync": GOOD_APP + "@app.operation('a')\ndef f(ctx, data): ...",
        "elsewhere": "from archibald_pgq import Archibald\napp = Archibald('mysql://u:Geheim77@h/d')",
    }.items():
        (tmp_path / f"{name}.py").write_text(text)
    where = re.escape(str(tmp_path))
    sentences = {
        "missing:app": f"the app's module 'missing' cannot be found from {where}",
        "missing.deep:app": f"the app's module 'missing.deep' cannot be found from {where}",
        "empty.deep:app": f"the app's module 'empty.deep' cannot be found from {where}",
        "empty:app": "the module 'empty' has no 'app'; write `app = Archibald\\(\\)` there",
        "none:app": "the module 'none' has no 'app'; .*",
        "other:app": "the module 'other' has a object, not an Archibald, as 'app'; .*",
        "empty": "the app 'empty' must be MODULE:APP, such as shop.tasks:app",
        ":app": "the app ':app' must be MODULE:APP, .*",
        "empty:": "the app 'empty:' must be MODULE:APP, .*",
        ".empty:app": "the app's module '.empty' fails when it is imported: TypeError: .*",
        "broken:app": (
            "the app's module 'broken' fails when it is imported: RuntimeError: first line second line "
            f"\\({where}/broken.py, line 1\\)"
        ),
        "syntax:app": "the app's module 'syntax' fails when it is imported: SyntaxError: .*",
        "leaves:app": "the app's module 'leaves' fails when it is imported: SystemExit: 0 .*",
        "silent:app": f"the app's module 'silent' fails when it is imported: ValueError \\({where}/silent.py, line 1\\)",
        "needs:app": "the app's module 'needs' needs a module that is not installed: a_module_that_is_not_there",
        "twice:app": ".*ConfigError: the operation 'a' has two handlers; register one .*",
        "notasync:app": ".*ConfigError: the handler of 'a' is not an async function; write it as `async def` .*",
        "elsewhere:app": "the database URL starts with 'mysql'; use postgresql://user@host:port/database",
        f"{DROP}:app": "the app's module \"'; DROP SCHEMA archibald CASCADE; --\" cannot be found from .*",
    }
    ended = together(call("run", name, database=unchanged, cwd=tmp_path) for name in sentences)
    for (name, sentence), one in zip(sentences.items(), ended, strict=True):
        assert re.fullmatch(sentence, one.refused()), (name, one)
        assert PASSWORD not in one.err


def test_an_app_named_by_the_variable_or_by_pyproject_is_refused_in_the_same_way(
    unchanged: str, tmp_path: Path
) -> None:
    named = tmp_path / "named"
    named.mkdir()
    (named / "pyproject.toml").write_text('[tool.archibald-pgq]\napp = "missing:app"')
    malformed = 'app in ./pyproject.toml must be a text such as "shop.tasks:app"'
    texts = {
        "[tool": "./pyproject.toml cannot be read: ",
        "tool = 3": malformed,
        "[tool]\narchibald-pgq = 3": malformed,
        "[tool.archibald-pgq]\napp = 3": malformed,
        "[tool.archibald-pgq]\napp = ['a:b']": malformed,
        "[tool.archibald-pgq]\napp = 'nonsense'": "the app 'nonsense' must be MODULE:APP",
        "[tool.other]\napp = 'a:b'": "no app is named; give it as `archibald-pgq run MODULE:APP`, or set ARCHIBALD_APP",
        "": "no app is named; give it as `archibald-pgq run MODULE:APP`, or set ARCHIBALD_APP",
    }
    folders = []
    for number, text in enumerate(texts):
        folders.append(tmp_path / str(number))
        folders[-1].mkdir()
        (folders[-1] / "pyproject.toml").write_text(text)
    not_text = tmp_path / "latin"
    not_text.mkdir()
    (not_text / "pyproject.toml").write_bytes(b"name = '\xff'")
    by_variable, by_pyproject, unreadable, *others = together(
        [
            call("run", database=unchanged, cwd=tmp_path, env={"ARCHIBALD_APP": "missing:app"}),
            call("run", database=unchanged, cwd=named),
            call("run", database=unchanged, cwd=not_text),
            *(call("run", database=unchanged, cwd=folder) for folder in folders),
        ]
    )
    assert by_variable.refused().startswith("the app's module 'missing' cannot be found from ")
    assert by_pyproject.refused().startswith("the app's module 'missing' cannot be found from ")
    assert unreadable.refused().startswith("./pyproject.toml cannot be read: ")
    for (text, sentence), one in zip(texts.items(), others, strict=True):
        assert sentence in one.refused(), (text, one)


def test_run_without_an_app_is_refused_on_a_given_database_before_it_is_looked_at(tmp_path: Path) -> None:
    assert refused(["run"], database="postgresql://u@127.0.0.1:1/d", cwd=tmp_path).startswith("no app is named; ")


# -- the database


@pytest.fixture
def asking(unchanged: str) -> Iterator[str]:
    """The same database for a role that must give a password, with the right one; the server is the test run's own."""
    with psycopg.connect(unchanged, autocommit=True) as admin:
        (path, rules) = admin.execute("SELECT p, pg_read_file(p) FROM current_setting('hba_file') p").fetchone() or (
            "",
            "",
        )

        def write(text: str) -> None:
            (large_object,) = admin.execute("SELECT lo_from_bytea(0, %s)", (text.encode(),)).fetchone() or (0,)
            admin.execute("SELECT lo_export(%s, %s)", (large_object, path))
            admin.execute("SELECT lo_unlink(%s)", (large_object,))
            admin.execute("SELECT pg_reload_conf()")

        admin.execute(f"CREATE ROLE asked LOGIN SUPERUSER PASSWORD '{PASSWORD}'")
        try:
            write(f"local all asked scram-sha-256\nhost all asked all scram-sha-256\n{rules}")
            for _ in range(10_000):  # the server has read the rules when it refuses
                try:
                    psycopg.connect(make_conninfo(unchanged, user="asked", password="wrong")).close()
                except psycopg.OperationalError:
                    break
            yield make_conninfo(unchanged, user="asked", password=PASSWORD)
        finally:
            write(rules)
            admin.execute("DROP ROLE asked")


def test_a_wrong_password_is_refused_and_a_right_one_serves(asking: str, tmp_path: Path) -> None:
    (tmp_path / "good.py").write_text(GOOD_APP)
    wrong = make_conninfo(asking, password="Falsch88")
    right, *others = together(
        call(*arguments, database=database, cwd=tmp_path)
        for arguments, database in (
            (["jobs", "--json"], asking),
            (["jobs"], wrong),
            (["migrate"], wrong),
            (["run", "good:app"], wrong),
            (["enqueue", "submit-order", "alice"], wrong),
        )
    )
    assert (right.code, right.err) == (0, "")
    for one in others:
        assert re.fullmatch(
            r"the database at .*, database test_\d+ cannot be used: password authentication failed for user \"asked\"; "
            "check ARCHIBALD_DATABASE_URL and that it is up",
            one.refused(),
        )
        assert "Falsch88" not in one.err


BAD_DATABASES = [
    ("mysql://ann:Geheim77@h/d", "the database URL starts with 'mysql'; use postgresql://user@host:port/database"),
    ("postgresql://ann:Geheim77%zz@h/d", "the database URL cannot be read; write it as .*"),
    ("postgresql://ann:x/Geheim77@h/d", "the database URL cannot be read; write it as .*"),
    ("Geheim77", "the database URL cannot be read; write it as .*"),
    (
        "postgresql://ann:Geheim77@127.0.0.1:1/shop",
        "the database at 127.0.0.1:1, database shop cannot be used: Connection refused; "
        "check ARCHIBALD_DATABASE_URL and that it is up",
    ),
    (
        "postgresql://ann:Geheim77@no-such-host.invalid/shop",
        "the database at no-such-host.invalid, database shop cannot be used: failed to resolve host .*",
    ),
    (
        "postgresql://ann:Geheim77@/shop?host=/no/such/folder",
        "the database at /no/such/folder, database shop cannot be used: No such file or directory; .*",
    ),
    (
        f"postgresql://ann@127.0.0.1:1/{DROP.replace(' ', '%20')}",
        "the database at 127.0.0.1:1, database '; DROP SCHEMA .*",
    ),
]


def test_a_database_that_is_wrong_or_down_is_one_sentence_of_every_command(tmp_path: Path) -> None:
    (tmp_path / "good.py").write_text(GOOD_APP)
    commands = [["migrate"], ["run", "good:app"], ["jobs"], ["enqueue", "submit-order", "alice"]]
    cases = [(dsn, sentence, arguments) for dsn, sentence in BAD_DATABASES for arguments in commands]
    ended = together(call(*arguments, database=dsn, cwd=tmp_path) for dsn, _, arguments in cases)
    for (_, sentence, arguments), one in zip(cases, ended, strict=True):
        assert re.fullmatch(sentence, one.refused()), (arguments, one)
        assert PASSWORD not in one.err


def test_psql_says_itself_that_a_database_is_down() -> None:
    unreadable, down = (
        command("psql", "-c", "select 1", database=dsn)
        for dsn in ("Geheim77", "postgresql://ann:Geheim77@127.0.0.1:1/shop")
    )
    assert unreadable.refused().startswith("the database URL cannot be read")
    assert down.code == 2
    assert "Connection refused" in down.err
    assert PASSWORD not in down.err


def test_a_database_that_is_not_there_is_named(unchanged: str) -> None:
    dsn = make_conninfo(unchanged, dbname="no_such_db")
    assert re.fullmatch(
        'the database at .*, database no_such_db cannot be used: database "no_such_db" does not exist; .*',
        refused(["jobs"], database=dsn),
    )


# -- the schema


def every_command(database: str, folder: Path) -> list[Ended]:
    (folder / "good.py").write_text(GOOD_APP)
    commands = [
        ["run", "good:app"],
        ["enqueue", "submit-order", "alice"],
        *(["jobs"], ["agents"], ["stats"], ["workers"], ["review"]),
        *([name, "1"] for name in ("job", "cancel", "retry", "discard")),
        *(["agent", name, "alice"] for name in ("pause", "resume")),
    ]
    return together(call(*arguments, database=database, cwd=folder) for arguments in commands)


async def test_no_schema_is_refused_with_the_command_that_makes_it(empty_database: str, tmp_path: Path) -> None:
    before = fingerprint(empty_database)
    for one in every_command(empty_database, tmp_path):
        assert re.fullmatch(f"there is no schema archibald at .*; {MEND}", one.refused())
    async with Archibald(empty_database) as app:
        with pytest.raises(SchemaError, match=MEND):
            await app.enqueue("submit-order", user_id="alice")
    assert fingerprint(empty_database) == before


NEWER = "9999"


async def revise(look: Look, revision: str, oldest_code: str | None) -> None:
    await look.rows("UPDATE archibald.alembic_version SET version_num = %s", revision)
    if oldest_code is not None:
        await look.rows("INSERT INTO archibald.schema_revisions VALUES (%s, %s)", revision, oldest_code)


@pytest.mark.parametrize("oldest_code", [NEWER, None])
async def test_a_newer_schema_that_no_longer_serves_this_code_is_refused(
    database: str, look: Look, tmp_path: Path, oldest_code: str | None
) -> None:
    await look.rows("SELECT archibald.enqueue('alice', 'submit-order')")
    await revise(look, NEWER, oldest_code)
    before = fingerprint(database)
    for one in every_command(database, tmp_path):
        assert re.fullmatch(
            rf"the schema archibald at .* is at revision {NEWER} and no longer serves this code "
            rf"\(revision {migrations.CODE_REVISION}\); upgrade archibald-pgq",
            one.refused(),
        )
    assert re.fullmatch(
        "the schema archibald at .* is newer than this code; upgrade archibald-pgq",
        refused(["migrate"], database=database),
    )
    assert fingerprint(database) == before


async def test_a_newer_schema_that_still_serves_this_code_is_used(database: str, look: Look) -> None:
    await revise(look, NEWER, migrations.CODE_REVISION)
    assert migrations.ready(database)
    stage = Stage(hold=False)
    async with Archibald(database) as app:
        stage.register(app, "submit-order")
        async with working(app):
            job = await app.enqueue("submit-order", user_id="alice")
            await job.wait(timeout=20)
    assert command("jobs", database=database).code == 0


async def test_an_older_schema_is_refused_with_the_command_that_mends_it(
    database: str, look: Look, tmp_path: Path
) -> None:
    await revise(look, "0000", "0000")
    assert not migrations.ready(database)
    for one in every_command(database, tmp_path):
        assert re.fullmatch(
            f"the schema archibald at .* is at revision 0000, this code needs {migrations.CODE_REVISION}; {MEND}",
            one.refused(),
        )


async def test_a_schema_of_somebody_elses_is_no_schema_of_ours(empty_database: str) -> None:
    with psycopg.connect(empty_database, autocommit=True) as connection:
        connection.execute("CREATE SCHEMA archibald")
        connection.execute("CREATE TABLE archibald.jobs (mine text)")
        connection.execute("INSERT INTO archibald.jobs VALUES ('mine')")
    before = fingerprint(empty_database)
    assert MEND in refused(["jobs"], database=empty_database)
    migrated = refused(["migrate"], database=empty_database)
    assert migrated.endswith('cannot be migrated: relation "jobs" already exists')
    after = fingerprint(empty_database)
    assert {name: rows for name, rows in after.items() if rows[0]} == before


async def test_a_role_without_rights_is_told_so_and_one_that_may_only_enqueue_can(database: str, look: Look) -> None:
    await look.rows("CREATE ROLE guest LOGIN")
    try:
        dsn = make_conninfo(database, options="-c role=guest")
        assert re.fullmatch(
            "the database at .* refuses: permission denied for schema archibald", refused(["jobs"], database=dsn)
        )
        await look.rows("GRANT USAGE ON SCHEMA archibald TO guest")
        assert re.fullmatch(
            "the database at .* refuses: permission denied for function enqueue",
            refused(["enqueue", "submit-order", "alice"], database=dsn),
        )
        await look.rows("GRANT EXECUTE ON FUNCTION archibald.enqueue TO guest")
        assert command("enqueue", "submit-order", "alice", database=dsn).code == 0
    finally:
        await look.rows("DROP OWNED BY guest; DROP ROLE guest")


# -- the settings


def test_worker_concurrency_that_is_no_number_from_1_to_1000(unchanged: str, tmp_path: Path) -> None:
    (tmp_path / "good.py").write_text(GOOD_APP)
    values = ["0", "-1", "abc", "1_0", "１０", " 10", "1001"]  # noqa: RUF001
    ended = together(
        call("run", "good:app", database=unchanged, cwd=tmp_path, env={"WORKER_CONCURRENCY": value}) for value in values
    )
    for value, one in zip(values, ended, strict=True):
        assert one.refused() == (
            f"WORKER_CONCURRENCY is {value!r}; it must be a whole number from 1 to 1000, or unset for 10"
        )


# -- jobs


def test_payloads_and_arguments_that_cannot_be_a_job(unchanged: str) -> None:
    enqueue = ["enqueue", "submit-order", "alice"]
    cases: dict[tuple[str | bytes, ...], str] = {
        (*enqueue, "--data", "nonsense"): "the payload is no JSON: .*",
        (*enqueue, "--data", ""): "the payload is no JSON: .*",
        (*enqueue, "--data", DROP): "the payload is no JSON: .*",
        (*enqueue, "--data", "[1]"): 'the payload must be a JSON object, such as {"order": 7}',
        (*enqueue, "--data", "null"): 'the payload must be a JSON object, such as {"order": 7}',
        (*enqueue, "--data", '{"a": NaN}'): "the payload holds NaN, which is no JSON; write a number or null",
        (*enqueue, "--data", '{"a": -Infinity}'): "the payload holds -Infinity, .*",
        (*enqueue, "--data", '{"a": 1e999}'): "the payload cannot be stored as JSON: .*",
        (
            *enqueue,
            "--data",
            '{"a": "\\u0000"}',
        ): "the payload holds a NUL character, which Postgres cannot store; remove it",
        (*enqueue, "--data", '{"\\u0000": 1}'): "the payload holds a NUL character, .*",
        (
            *enqueue,
            "--data",
            '{"a": "\\ud800"}',
        ): "the payload holds a lone surrogate, which Postgres cannot store; remove it",
        (*enqueue, "--data", b'{"a": "\xff"}'): "the payload holds a lone surrogate, .*",
        (
            *enqueue,
            "--data",
            '{"a":' * 300 + "1" + "}" * 300,
        ): "the payload is nested too deeply; at most 200 levels are kept",
        (*enqueue, "--data", "[" * 100_000): "the payload is nested too deeply; .*",
        (*enqueue, "--data", '{"a": ' + "9" * 5000 + "}"): "the payload is no JSON: .*",
        (*enqueue, "--delay", "-1"): r"delay must be a number of seconds from 0 to 315360000 \(10 years\)",
        (*enqueue, "--delay", "nan"): "delay must be a number of seconds .*",
        (*enqueue, "--delay", "inf"): "delay must be a number of seconds .*",
        (*enqueue, "--delay", "1e12"): "delay must be a number of seconds .*",
        (*enqueue, "--idempotency-key", ""): "idempotency_key must be a text of 1 to 200 characters",
        (*enqueue, "--idempotency-key", "k" * 201): "idempotency_key must be a text of 1 to 200 characters",
        ("enqueue", "submit-order", ""): "user_id must be a text of 1 to 200 characters",
        ("enqueue", "submit-order", "u" * 201): "user_id must be a text of 1 to 200 characters",
        ("enqueue", "submit-order", b"\xff"): "user_id holds a lone surrogate, which Postgres cannot store; remove it",
        ("enqueue", "", "alice"): "kind must be 1 to 100 of .*",
        ("enqueue", DROP, "alice"): "kind must be 1 to 100 of .*",
        ("enqueue", "no-such-kind", "alice"): (
            "unknown kind 'no-such-kind': it is not in archibald.operations; "
            r"declare it with @app.operation\(…\) and start that app once, or correct the name"
        ),
        ("jobs", "--kind", DROP): "kind must be 1 to 100 of .*",
        ("jobs", "--user", b"\xff"): "user_id holds a lone surrogate, .*",
        ("jobs", "--user", ""): "user_id must be a text of 1 to 200 characters",
        ("job", "999"): "there is no job 999; `archibald-pgq jobs` lists the newest",
        ("cancel", "999"): "there is no job 999; `archibald-pgq jobs` lists the newest",
    }
    ended = together(call(*arguments, database=unchanged) for arguments in cases)
    for (arguments, sentence), one in zip(cases.items(), ended, strict=True):
        assert re.fullmatch(sentence, one.refused()), (arguments, one)


def test_a_payload_over_1_mb_from_stdin(unchanged: str) -> None:
    cases: dict[str | bytes, str] = {
        '{"a": "' + "x" * 1_048_576 + '"}': r"the payload is 1048585 bytes as JSON; at most 1048576 \(1 MB\) are kept",
        '{"a": "' + "x" * 10_000_000 + '"}': "the payload is no JSON: .*",  # it is not read to its end
        "": "the payload is no JSON: .*",
        b'{"a": "\xff"}': "the payload holds a lone surrogate, which Postgres cannot store; remove it",
    }
    arguments = ["enqueue", "submit-order", "alice", "--data", "-"]
    ended = together(call(*arguments, database=unchanged, stdin=stdin) for stdin in cases)
    for sentence, one in zip(cases.values(), ended, strict=True):
        assert re.fullmatch(sentence, one.refused())


def test_what_the_command_line_cannot_parse(unchanged: str) -> None:
    cases = [
        ("job", "0"), ("job", "-1"), ("job", str(10**30)), ("job", "abc"), ("job", "1.5"), ("job", DROP), ("job",), ("cancel", "0"),
        ("cancel", str(2**63)), ("cancel", "x"), ("jobs", "--state", "done"), ("jobs", "--state", DROP), ("jobs", "--limit", "0"),
        ("jobs", "--limit", "10001"), ("enqueue", "submit-order"), ("enqueue", "submit-order", "alice", "--delay", "soon"),
        ("enqueue", "submit-order", "alice", "--nonsense"), ("run", "a:b", "--concurrency", "3"), ("run", "a:b", "c"), ("nonsense",),
    ]  # fmt: skip
    for arguments, one in zip(cases, together(call(*each, database=unchanged) for each in cases), strict=True):
        assert one.usage_error().startswith("Error: "), (arguments, one)


NUL, LONE = "a\x00", "\udcff"


BAD_IN_PYTHON: list[tuple[dict[str, Any], type[Exception]]] = [
    ({"data": [1]}, InvalidJobError),
    ({"data": "text"}, InvalidJobError),
    ({"data": {"a": float("nan")}}, InvalidJobError),
    ({"data": {"a": NUL}}, InvalidJobError),
    ({"data": {NUL: 1}}, InvalidJobError),
    ({"data": {"a": LONE}}, InvalidJobError),
    ({"data": {1: 2}}, InvalidJobError),
    ({"data": {"a": object()}}, InvalidJobError),
    ({"data": {"a": "x" * 1_048_576}}, InvalidJobError),
    ({"data": {"a": [1e300] * 150_000}}, InvalidJobError),
    ({"data": {"a": [1e300] * 5_000}}, InvalidJobError),
    ({"user_id": ""}, InvalidJobError),
    ({"user_id": "u" * 201}, InvalidJobError),
    ({"user_id": NUL}, InvalidJobError),
    ({"user_id": LONE}, InvalidJobError),
    ({"user_id": 7}, InvalidJobError),
    ({"kind": "no-such-kind"}, UnknownKindError),
    ({"kind": DROP}, InvalidJobError),
    ({"idempotency_key": ""}, InvalidJobError),
    ({"idempotency_key": NUL}, InvalidJobError),
    ({"delay": -1}, InvalidJobError),
    ({"delay": float("nan")}, InvalidJobError),
    ({"delay": float("inf")}, InvalidJobError),
    ({"delay": "5"}, InvalidJobError),
    ({"connection": object()}, ConfigError),
]


async def test_python_refuses_what_cannot_be_a_job(unchanged: str) -> None:
    async with Archibald(unchanged) as app:
        for given, error in BAD_IN_PYTHON:
            with pytest.raises(error) as caught:
                await app.enqueue(**{"kind": "submit-order", "user_id": "alice", **given})
            assert "\n" not in str(caught.value), given


async def test_a_connection_that_is_none_of_the_three_sorts_is_named(unchanged: str) -> None:
    async with Archibald(unchanged) as app:
        with (
            psycopg.connect(unchanged) as sync_connection,
            pytest.raises(
                ConfigError, match=r"connection must be a psycopg AsyncConnection .*, not psycopg.Connection"
            ),
        ):
            await app.enqueue("submit-order", user_id="alice", connection=sync_connection)  # type: ignore[arg-type]


async def test_python_refuses_ids_and_filters_that_no_job_can_have(unchanged: str) -> None:
    async with Archibald(unchanged) as app:
        for job_id in (0, -1, 10**30, 999, "1", True):
            with pytest.raises(UnknownJobError, match=f"there is no job {job_id!r}"):
                await app.job(job_id)  # type: ignore[arg-type]
            with pytest.raises(UnknownJobError, match=f"there is no job {job_id!r}"):
                await app.cancel(job_id)  # type: ignore[arg-type]
        bad: dict[str, Any]
        for bad in (
            {"limit": 0},
            {"limit": -1},
            {"state": "done"},
            {"user_id": NUL},
            {"user_id": LONE},
            {"kind": DROP},
        ):
            with pytest.raises(InvalidJobError):
                await app.jobs(**bad)


async def test_python_says_in_one_sentence_that_the_database_is_down() -> None:
    async with Archibald("postgresql://ann:Geheim77@127.0.0.1:1/shop") as app:
        for call in (app.enqueue("submit-order", user_id="alice"), app.jobs(), app.job(1), app.worker()):
            with pytest.raises(
                DatabaseError, match=r"the database at 127.0.0.1:1, database shop cannot be used: Connection refused"
            ):
                await call


INSERT = "INSERT INTO archibald.jobs (user_id, kind, payload) VALUES (%s, %s, %s)"


BAD_IN_SQL: list[tuple[tuple[str | None, str | None, str], str]] = [
    (("alice", "no-such-kind", "{}"), "AQ001"),
    (("alice", DROP, "{}"), "AQ001"),
    (("alice", None, "{}"), "AQ001"),
    (("", "submit-order", "{}"), "AQ002"),
    (("u" * 201, "submit-order", "{}"), "AQ002"),
    ((None, "submit-order", "{}"), "AQ002"),
    (("alice", "submit-order", "[]"), "AQ002"),
    (("alice", "submit-order", '"text"'), "AQ002"),
    (("alice", "submit-order", "nonsense"), "22P02"),
    (("alice", "submit-order", '{"a": NaN}'), "22P02"),
    (("alice", "submit-order", '{"a": "\\u0000"}'), "22P05"),
    (("alice", "submit-order", '{"a": "\\ud800"}'), "22P02"),
    (("alice", "submit-order", '{"a": "' + "x" * 1_048_576 + '"}'), "23514"),
]


@pytest.mark.parametrize("statement", [INSERT, "SELECT archibald.enqueue(%s, %s, %s)"])
def test_the_database_itself_refuses_what_cannot_be_a_job(unchanged: str, statement: str) -> None:
    with psycopg.connect(unchanged, autocommit=True) as connection:
        for values, state in BAD_IN_SQL:
            with pytest.raises(psycopg.Error) as caught:
                connection.execute(statement, values)
            assert caught.value.sqlstate == state, values


async def test_sql_text_in_every_field_is_inert(database: str, look: Look) -> None:
    """Through each way in; the jobs run and come back as they were given, and every table is still there."""
    relations = fingerprint(database).keys()
    ended = command(
        "enqueue",
        "submit-order",
        DROP,
        "--data",
        f'{{"{DROP}": "{DROP}"}}',
        "--idempotency-key",
        DROP,
        database=database,
    )
    assert (ended.code, ended.err) == (0, "")
    await look.rows(INSERT, DROP, "edit-order", f'{{"{DROP}": "{DROP}"}}')
    stage = Stage(hold=False)
    async with Archibald(database) as app:
        stage.register(app, "submit-order", "edit-order")
        again = await app.enqueue("submit-order", user_id=DROP, data={DROP: DROP}, idempotency_key=DROP)
        assert again.id == int(ended.out)
        async with working(app):
            assert await again.wait(timeout=20) == {"ran": {DROP: DROP}}
            await look.until("SELECT count(*) = 2 FROM archibald.job_history WHERE state = 'completed'")
    assert stage.started == [(DROP, {DROP: DROP})] * 2
    shown, listed, none, job, paused, agents, resumed = together(
        [
            call("jobs", database=database),
            call("jobs", "--user", DROP, "--json", database=database),
            call("jobs", "--user", DROP.replace("archibald", "other"), "--json", database=database),
            call("job", str(again.id), database=database),
            call("agent", "pause", DROP, "--reason", DROP, database=database),
            call("agents", "--json", database=database),
            call("agent", "resume", DROP, database=database),
        ]
    )
    assert shown.out.count(DROP) == 2
    assert listed.out.count(f'"user_id": "{DROP}"') == 2
    assert none.out == "[]\n"
    assert job.out.count(DROP) == 6
    assert (paused.code, resumed.code) == (0, 0)
    assert f'"user_id": "{DROP}"' in agents.out
    assert f'"paused_reason": "{DROP}"' in agents.out
    assert fingerprint(database).keys() == relations


RULES = {
    "jobs_user_id": "user_id = ''",
    "jobs_class": "class = 'urgent'",
    "jobs_state": "state = 'done'",
    "jobs_wait_reason": "wait_reason = 'rain'",
    "jobs_priority": "priority = -1",
    "jobs_progress": "progress = 101",
    "jobs_running": "state = 'running'",
    "jobs_key": "idempotency_key = ''",
    "jobs_payload_object": "payload = '[]'",
    "jobs_saved_state_size": "saved_state = to_jsonb(repeat('x', 70000))",
    "jobs_counts": "max_attempts = 0",
}


@pytest.mark.parametrize(("rule", "change"), RULES.items(), ids=RULES)
async def test_an_update_by_hand_cannot_make_a_job_that_no_worker_understands(
    look: Look, rule: str, change: str
) -> None:
    """By a trigger, which an INSERT does not read: CHECKs were read anew by each enqueue."""
    job = await look.value("SELECT archibald.enqueue('alice', 'submit-order')")
    before = await look.rows("SELECT * FROM archibald.jobs")
    with pytest.raises(psycopg.errors.CheckViolation, match=rule) as caught:
        await look.rows(f"UPDATE archibald.jobs SET {change} WHERE id = %s", job)
    assert caught.value.diag.constraint_name == rule
    assert await look.rows("SELECT * FROM archibald.jobs") == before


@pytest.mark.parametrize(
    ("column", "value", "rule"), [("idempotency_key", "''", "jobs_key"), ("requeue_count", "-1", "jobs_counts")]
)
async def test_an_insert_by_hand_is_held_to_the_same_rules(look: Look, column: str, value: str, rule: str) -> None:
    with pytest.raises(psycopg.errors.CheckViolation) as caught:
        await look.rows(
            f"INSERT INTO archibald.jobs ({column}, user_id, kind) VALUES ({value}, 'alice', 'submit-order')"
        )
    assert caught.value.diag.constraint_name == rule


async def test_an_enqueue_has_no_checks_to_read(look: Look) -> None:
    assert (
        await look.rows("SELECT FROM pg_constraint WHERE conrelid = 'archibald.jobs'::regclass AND contype = 'c'") == []
    )
