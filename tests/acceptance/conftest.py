"""Figures that the fault tests measured, shown at the end of the run: they are reported, not asserted."""

from __future__ import annotations

from collections.abc import Callable

import pytest

Measured = Callable[[str, float], None]

_figures = pytest.StashKey[list[tuple[str, float]]]()


@pytest.fixture
def measured(pytestconfig: pytest.Config) -> Measured:
    """Takes note of a figure in seconds."""

    def note(what: str, seconds: float) -> None:
        pytestconfig.stash.setdefault(_figures, []).append((what, seconds))

    return note


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Show them, also with -q."""
    for what, seconds in config.stash.get(_figures, []):
        terminalreporter.write_line(f"measured: {what}: {seconds:.2f} s")
