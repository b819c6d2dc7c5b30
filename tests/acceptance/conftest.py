"""What the fault tests play on, and the figures that they measured."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import pytest

from tests.acceptance.faults import Scene, scene
from tests.reporting import say

Measured = Callable[[str, float], None]


@pytest.fixture
async def faults(database: str) -> AsyncIterator[Scene]:
    """A scene on a database of the test's own; pytest shows what the workers logged where the test failed."""
    async with scene(database) as made:
        yield made
        made.show_logs()


@pytest.fixture
def measured(pytestconfig: pytest.Config) -> Measured:
    """Takes note of a figure in seconds."""
    return lambda what, seconds: say(pytestconfig, f"measured: {what}: {seconds:.2f} s")
