"""The documents as data: their links, code blocks and generated parts.

`python -m tests.documents` writes the generated parts anew; `tests/unit/test_docs.py` fails where one is out of date. A generated
part stands between `<!-- generated: NAME -->` and `<!-- end -->`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from archibald_pgq.config import SETTINGS
from archibald_pgq.domain.operations import CATALOGUE
from archibald_pgq.domain.states import TERMINAL, TRANSITIONS, State

ROOT = Path(__file__).resolve().parent.parent

_GENERATED = re.compile(r"(<!-- generated: (?P<name>[a-z-]+) -->\n)(?P<body>.*?)(?=<!-- end -->)", re.DOTALL)
_BLOCK = re.compile(r"^```(?P<language>\w+)(?P<note>[^\n]*)\n(?P<code>.*?)^```$", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"(?<!!)\[[^\]]+\]\((?P<target>[^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block: its language, what follows the language on that line, and its text."""

    document: str
    line: int
    language: str
    note: str
    code: str

    @property
    def name(self) -> str:
        """Where it stands, such as `docs/sql.md:12`."""
        return f"{self.document}:{self.line}"


def documents() -> list[Path]:
    """Return every document of the project, sorted."""
    return sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/*.md")])


def blocks(document: str, *languages: str) -> list[Block]:
    """Return the fenced blocks of a document, of these languages if any are named."""
    text = (ROOT / document).read_text(encoding="utf-8")
    found = [
        Block(document, text.count("\n", 0, match.start()) + 1, match["language"], match["note"].strip(), match["code"])
        for match in _BLOCK.finditer(text)
    ]
    return [block for block in found if not languages or block.language in languages]


def links(document: Path) -> list[str]:
    """Return the targets of a document's links."""
    text = _BLOCK.sub("", document.read_text(encoding="utf-8"))
    return [match["target"] for match in _LINK.finditer(text)]


def anchors(document: Path) -> set[str]:
    """Return the anchors of a document's headings, as a forge makes them."""
    text = _BLOCK.sub("", document.read_text(encoding="utf-8"))
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in _HEADING.findall(text))
    return set(plain)


def state_diagram() -> str:
    """Return the states of a job as a mermaid diagram, from the code's own table."""
    lines = ["```mermaid", "stateDiagram-v2", f"    [*] --> {State.QUEUED}: enqueue"]
    lines += [f"    {state} --> {after}: {event}" for (state, event), after in TRANSITIONS.items()]
    lines += [f"    {state} --> [*]" for state in State if state in TERMINAL]
    return "\n".join([*lines, "```"]) + "\n"


def settings_table() -> str:
    """Return the settings as a table, from the one place that defines them."""
    rows = [
        f"| `{setting.name}` | {f'`{setting.default}`' if setting.default else 'unset'} | {setting.meaning} | {_allowed(setting.read)} |"
        for setting in SETTINGS.values()
    ]
    return _table("| variable | default | meaning | allowed |", rows)


def _allowed(read: Callable[[str], object]) -> str:
    """Ask a setting what it allows: its refusal says so; one that refuses nothing takes any text."""
    try:
        read("not a number")
    except ValueError as error:
        return str(error)
    return "a path" if isinstance(read("x"), Path) else "any text"


def operations_table() -> str:
    """Return the catalogue of operations as a table."""
    rows = []
    for kind, policy in CATALOGUE.items():
        shape = {"fixed": "{:g} s each time", "exponential": "doubled from {:g} s"}
        wait = shape[policy.backoff.shape].format(policy.backoff.seconds) if policy.backoff else ""
        rows.append(
            f"| {kind} | {policy.priority} | {policy.job_class} | {policy.timeout:g} s | {policy.max_attempts} | {wait} |"
        )
    return _table("| kind | priority | class | timeout | attempts | wait between attempts |", rows)


def _table(head: str, rows: list[str]) -> str:
    columns = head.count("|") - 1
    return "\n".join([head, "|" + "---|" * columns, *rows]) + "\n"


GENERATORS: dict[str, Callable[[], str]] = {
    "operations": operations_table,
    "settings": settings_table,
    "states": state_diagram,
}


def generated(document: Path) -> Iterator[tuple[str, str, str]]:
    """Yield name, text as it stands and text as it should be of each generated part of a document."""
    for match in _GENERATED.finditer(document.read_text(encoding="utf-8")):
        yield match["name"], match["body"], GENERATORS[match["name"]]()


def write_generated() -> None:
    """Write every generated part anew."""
    for document in documents():
        text = document.read_text(encoding="utf-8")
        fresh = _GENERATED.sub(lambda match: match[1] + GENERATORS[match["name"]](), text)
        if fresh != text:
            document.write_text(fresh, encoding="utf-8")


if __name__ == "__main__":
    write_generated()
