"""What a document claims, the code has: settings, states, operations, commands, log lines, tests, links."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.main import get_command

from archibald_pgq.cli import app as command_line
from archibald_pgq.domain.explanation import Reason
from tests.conftest import WANTED
from tests.documents import GENERATORS, ROOT, anchors, blocks, documents, generated, links
from tests.servers import TOO_OLD

PACKAGE = ROOT / "archibald_pgq"


def _name(document: Path) -> str:
    return str(document.relative_to(ROOT))


def _text(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


@pytest.mark.parametrize("document", documents(), ids=_name)
def test_generated_parts_are_up_to_date(document: Path) -> None:
    for name, found, wanted in generated(document):
        assert found == wanted, (
            f"the part {name!r} of {_name(document)} is out of date; run `python -m tests.documents`"
        )


def test_each_generated_part_stands_in_a_document() -> None:
    assert sorted(name for document in documents() for name, _, _ in generated(document)) == sorted(GENERATORS)


def test_every_variable_that_the_code_reads_is_documented() -> None:
    page = _text("docs/settings.md")
    named = {
        found
        for source in PACKAGE.rglob("*.py")
        for found in re.findall(
            r"\b(?:ARCHIBALD_[A-Z_]*[A-Z]|WORKER_CONCURRENCY|DATABASE_URL)\b", source.read_text(encoding="utf-8")
        )
    }
    assert "ARCHIBALD_DATABASE_URL" in named
    assert [name for name in sorted(named) if f"`{name}`" not in page] == []


@pytest.mark.parametrize("document", documents(), ids=_name)
def test_every_variable_that_a_document_names_exists(document: Path) -> None:
    page = _text("docs/settings.md")
    named = set(re.findall(r"\bARCHIBALD_[A-Z_]*[A-Z]\b", document.read_text(encoding="utf-8"))) - {WANTED, TOO_OLD}
    assert [name for name in sorted(named) if f"`{name}`" not in page] == []


@pytest.mark.parametrize("document", documents(), ids=_name)
def test_links_lead_somewhere(document: Path) -> None:
    for target in links(document):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        aim = (document.parent / path).resolve() if path else document
        assert aim.exists(), target
        assert aim.is_relative_to(ROOT), target
        if anchor:
            assert anchor in anchors(aim), target


@pytest.mark.parametrize("document", documents(), ids=_name)
def test_commands_and_their_options_exist(document: Path) -> None:
    commands = get_command(command_line).commands  # type: ignore[attr-defined]
    for command, rest in re.findall(r"\barchibald-pgq ([a-z]+)((?: [^\n`]*)?)", _code(document)):
        assert command in commands, command
        found = commands[command]
        if hasattr(found, "commands"):  # a group, such as `agent`
            assert rest.split()[0] in found.commands, rest
            found = found.commands[rest.split()[0]]
        options = {name for parameter in found.params for name in parameter.opts}
        if command != "psql":
            assert set(re.findall(r"(?<= )--[a-z-]+", rest)) <= options | {"--help"}, rest


def test_commands_offer_no_way_to_change_the_concurrency() -> None:
    for command in get_command(command_line).commands.values():  # type: ignore[attr-defined]
        if command.name == "health":
            continue  # its --worker names one
        names = {name for parameter in command.params for name in (parameter.name, *parameter.opts)}
        assert not [name for name in names if re.search("concurren|consumer|worker", str(name))]


@pytest.mark.parametrize("document", documents(), ids=_name)
def test_targets_of_make_exist(document: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):.*##", _text("Makefile"), re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z]+)", _code(document))) <= targets


def _code(document: Path) -> str:
    """A document's shell blocks and what stands between backquotes in its text."""
    name = _name(document)
    prose = re.sub(r"^```.*?^```$", "", _text(name), flags=re.DOTALL | re.MULTILINE)
    shell = [re.sub(r"\\\n\s*", " ", block.code) for block in blocks(name, "sh")]
    return "\n".join([*shell, *re.findall(r"`([^`\n]+)`", prose)])


def test_the_reasons_of_explain_are_documented_in_the_order_in_which_they_are_looked_for() -> None:
    page = _text("docs/operations.md").split("## When a job does not start")[1].split("\n## ")[0]
    assert re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE) == [str(reason) for reason in Reason]


@pytest.mark.parametrize("document", documents(), ids=_name)
def test_tests_and_files_that_a_document_names_exist(document: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", document.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    places = re.findall(r"`((?:archibald_pgq|tests|migrations|docker|examples)/[\w./*-]+)(?:::(\w+))?`", text)
    for path, function in places:
        assert (ROOT / path).exists(), path
        if function:
            assert re.search(rf"^\s*(?:async )?def {function}\b|^class {function}\b", _text(path), re.MULTILINE), (
                f"{path}::{function}"
            )


def test_no_row_of_the_fault_table_is_left_open() -> None:
    rows = [line.split(" | ") for line in _text("docs/faults.md").splitlines() if line.startswith("| ")][1:]
    assert all(len(row) == 5 for row in rows)
    assert {letter for row in rows for letter in row[1].split()} == set("LOTFRQS") - {"Q"}
    left = [row[0].removeprefix("| ") for row in rows if any("…" in cell for cell in row)]
    assert left == [], f"{len(left)} rows of docs/faults.md are open: {'; '.join(left)}"


def _log_lines() -> Iterator[tuple[str, str]]:
    """Level and text, with `…` for what differs, of each line that a worker may log."""
    for source in [
        *(PACKAGE / "runtime").glob("*.py"),
        *(PACKAGE / "browser").glob("*.py"),
        PACKAGE / "cli" / "run.py",
    ]:
        for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not node.args:
                continue
            text = _literal(node.args[0])
            match node.func:
                case ast.Attribute(attr=("info" | "warning" | "error" | "critical" | "exception") as level) if (
                    text != "…"
                ):
                    yield ("error" if level == "exception" else level).upper(), text
                case ast.Name(id="exit_fenced"):
                    yield "CRITICAL", text


def _literal(node: ast.expr) -> str:
    match node:
        case ast.Constant(value=str(text)):
            return re.sub(r"%(?:\.\d)?[sdfr]", "…", text)
        case ast.JoinedStr(values=parts):
            return "".join(_literal(part) for part in parts)
    return "…"


def test_every_log_line_is_documented_with_its_level_and_no_others() -> None:
    rows = re.findall(r"^\| (INFO|WARNING|ERROR|CRITICAL) \| `([^`]+)` \|", _text("docs/operations.md"), re.MULTILINE)
    in_code = set(_log_lines())
    assert sorted(in_code - set(rows)) == [], "not in docs/operations.md, “Log lines”"
    assert sorted(set(rows) - in_code) == [], "in docs/operations.md, but no longer in the code"
