"""Lines that a run says at its end, also with -q: which server the tests ran on, and figures that are reported and not asserted.

With several processes (pytest-xdist) each hands its lines to the one that prints.
"""

from __future__ import annotations

from typing import Any

import pytest

_lines = pytest.StashKey[list[str]]()
_OUTPUT = "archibald_lines"


def say(config: pytest.Config, line: str) -> None:
    """Have a line printed at the end of the run."""
    config.stash.setdefault(_lines, []).append(line)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """In a process of several: hand over."""
    output: dict[str, Any] | None = getattr(session.config, "workeroutput", None)
    if output is not None:
        output[_OUTPUT] = session.config.stash.get(_lines, [])


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """In the one that prints: take over."""
    for line in getattr(node, "workeroutput", {}).get(_OUTPUT, []):
        say(node.config, line)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print each line once."""
    lines: list[str] = config.stash.get(_lines, [])
    for line in dict.fromkeys(lines):
        terminalreporter.write_line(line)
