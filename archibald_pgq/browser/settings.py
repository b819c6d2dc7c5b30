"""The bounds of a pool."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from archibald_pgq.errors import ConfigError


@dataclass(frozen=True, slots=True)
class PoolSettings:
    """What a pool may use; times in seconds.

    Attributes:
        browsers: browser processes at most.
        contexts: contexts of each at most.
        chromium: the program; None: looked for.
        login_budget: logins that may begin within a minute.
        max_age: a context that is older is not used again.
        browser_age: a browser that is older is started anew when nobody uses it.
        browser_bytes: so is one that takes more memory, with all its processes.
    """

    browsers: int = 3
    contexts: int = 5
    chromium: Path | None = None
    login_budget: int = 60
    max_age: float = 1800.0
    browser_age: float = 4 * 3600.0
    browser_bytes: int = 1024**3


def check_margin(concurrency: int, browsers: int, contexts: int) -> None:
    """Refuse a pool that has too few contexts for all consumers while one browser is down (with one browser: while one context is closed).

    Raises:
        ConfigError: it has.
    """
    spare = (browsers - 1) * contexts if browsers > 1 else contexts - 1
    if concurrency > spare:
        without = "with one browser down" if browsers > 1 else "with one of its contexts being opened anew"
        raise ConfigError(
            f"WORKER_CONCURRENCY is {concurrency}, and {without} {browsers} × {contexts} browser contexts leave {spare}; "
            "lower it, or raise ARCHIBALD_BROWSERS or ARCHIBALD_BROWSER_CONTEXTS"
        )
