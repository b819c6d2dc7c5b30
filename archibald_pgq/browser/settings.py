"""The bounds of a pool, and whether they leave a margin.

Guarantees: a pool cannot be made with bounds that make no sense. Must not: read the environment.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from archibald_pgq.errors import ConfigError


@dataclass(frozen=True, slots=True)
class PoolSettings:
    """The bounds of a pool; times in seconds.

    Attributes:
        browsers: browser processes.
        contexts: contexts of each.
        chromium: the executable; None: found by itself.
        login_budget: logins that may start within any 60 s.
        max_age: a context is used again for so long after its login.
        browser_age: a browser that is older is started anew when it is idle.
        browser_memory: so is one that takes more bytes, with all its processes.

    Raises:
        ConfigError: one of them is below its least.
    """

    browsers: int = 3
    contexts: int = 5
    chromium: Path | None = None
    login_budget: int = 20
    max_age: float = 1800.0
    browser_age: float = 4 * 3600.0
    browser_memory: int = 1 << 30

    def __post_init__(self) -> None:
        for name in ("browsers", "contexts", "login_budget"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} of the browser pool is {getattr(self, name)}; it must be at least 1")


def check_margin(concurrency: int, browsers: int, contexts: int) -> None:
    """Check that so many jobs at once have contexts enough while one browser is down; of one browser's contexts one is the margin.

    Raises:
        ConfigError: they have not.
    """
    most = (browsers - 1) * contexts if browsers > 1 else contexts - 1
    if concurrency <= most:
        return
    while_down = (
        f"with one of {browsers} browsers down there are {most} contexts"
        if browsers > 1
        else f"one browser of {contexts} contexts serves {most}, for one is the margin"
    )
    lower = f"lower it to {most}, or " if most else ""
    raise ConfigError(
        f"WORKER_CONCURRENCY is {concurrency}, but {while_down}; {lower}raise ARCHIBALD_BROWSERS or ARCHIBALD_BROWSER_CONTEXTS"
    )
