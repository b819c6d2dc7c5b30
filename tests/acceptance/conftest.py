"""Figures that the fault tests measured."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.reporting import say

Measured = Callable[[str, float], None]


@pytest.fixture
def measured(pytestconfig: pytest.Config) -> Measured:
    """Takes note of a figure in seconds."""
    return lambda what, seconds: say(pytestconfig, f"measured: {what}: {seconds:.2f} s")
