"""What a bench comes to: rows of figures, each beside what it can be measured by."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from archibald_pgq.store.limits import ServerLimits


@dataclass(frozen=True, slots=True)
class Row:
    """One figure.

    Attributes:
        scene: the scene that it is of; what: what was measured.
        unit: `jobs/s`, `ms` or `s`.
        values: of each round.
        beside: what it is measured by: a limit of the server, an ideal, or another row; `by` is its figure, in the unit that it names.
    """

    scene: str
    what: str
    unit: str
    values: Sequence[float]
    beside: str = ""
    by: float | None = None

    @property
    def median(self) -> float:
        """The figure."""
        return statistics.median(self.values)

    @property
    def ratio(self) -> float | None:
        """How many times what it is measured by."""
        return self.median / self.by if self.by else None

    def as_json(self) -> dict[str, Any]:
        """Return it for `--json`."""
        return {**asdict(self), "median": self.median, "ratio": self.ratio}


@dataclass(slots=True)
class Report:
    """All of a bench; `problems` are broken promises, each a sentence."""

    server_version: str
    limits: ServerLimits
    rows: list[Row] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Return it for `--json`."""
        return {
            "server_version": self.server_version,
            "limits": asdict(self.limits),
            "rows": [row.as_json() for row in self.rows],
            "problems": self.problems,
        }
