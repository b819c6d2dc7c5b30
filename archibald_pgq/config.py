"""Every setting, in one place.

Owns: the names, defaults, ranges and meanings of the environment variables; the table in `docs/settings.md` is generated from
`SETTINGS`. Guarantees: a bad value is one sentence that names the variable, the value and what is allowed. Must not: read a
setting anywhere else than in `load`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from archibald_pgq.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Setting:
    """One environment variable: its name, its default as text, the meaning for the docs, and how its text is read."""

    name: str
    default: str
    meaning: str
    read: Callable[[str], Any]


def _whole(lowest: int, highest: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        # ASCII digits only: int() would also take "1_0", "+10", " 10 " and digits of other scripts.
        if not re.fullmatch(r"[0-9]{1,9}", text) or not lowest <= int(text) <= highest:
            raise ValueError(f"a whole number from {lowest} to {highest}")
        return int(text)

    return read


def _seconds(lowest: float, highest: float) -> Callable[[str], float]:
    def read(text: str) -> float:
        if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,6})?", text) or not lowest <= float(text) <= highest:
            raise ValueError(f"a number of seconds from {lowest:g} to {highest:g}")
        return float(text)

    return read


def _text(text: str) -> str:
    return text


def _switch(text: str) -> bool:
    if text not in {"0", "1"}:
        raise ValueError("0 or 1")
    return text == "1"


def _path(text: str) -> Path:
    try:
        return Path(text).expanduser().absolute()
    except RuntimeError:  # ~nobody
        raise ValueError("a path whose home folder is known") from None


SETTINGS: dict[str, Setting] = {
    "worker_concurrency": Setting(
        "WORKER_CONCURRENCY", "10", "consumers of a worker: how many jobs it runs at once", _whole(1, 1000)
    ),
    "direct_url": Setting(
        "ARCHIBALD_DIRECT_URL",
        "",
        "the same database without a pooler in between, for a worker's own connections and for `migrate` (default: the database's URL)",
        _text,
    ),
    "listen": Setting(
        "ARCHIBALD_LISTEN", "1", "0: a worker opens no connection for notifications, and looks once a second", _switch
    ),
    "app": Setting("ARCHIBALD_APP", "", "the app of `run`, as MODULE:APP", _text),
    "data_dir": Setting(
        "ARCHIBALD_DATA_DIR", "", "where the embedded Postgres keeps its data (default: the user's data folder)", _path
    ),
    "pg_bin": Setting("ARCHIBALD_PG_BIN", "", "folder of the PostgreSQL programs for the embedded server", _path),
    "shutdown_grace": Setting(
        "ARCHIBALD_SHUTDOWN_GRACE", "30", "seconds that running handlers get to end after SIGTERM", _seconds(0, 3600)
    ),
    "dedup_window": Setting(
        "ARCHIBALD_DEDUP_WINDOW",
        "30",
        "seconds after its enqueue in which an idempotency key still returns its job",
        _seconds(0, 86400),
    ),
    "agent_backlog": Setting(
        "ARCHIBALD_AGENT_BACKLOG",
        "",
        "queued jobs of one agent from which on an enqueue is refused (default: as many as `archibald.limits` allows, that is any number)",
        _whole(1, 1_000_000),
    ),
    "lease": Setting(
        "ARCHIBALD_LEASE", "6", "seconds of silence after which a worker's agents are given to others", _seconds(2, 600)
    ),
    "failover": Setting(
        "ARCHIBALD_FAILOVER",
        "0",
        "1: where the database's server goes down, another takes its place by itself: a worker that is refused a connection stops its "
        "handlers within the lease, for others may reach the new server already",
        _switch,
    ),
    "reserved_consumers": Setting(
        "ARCHIBALD_RESERVED_CONSUMERS",
        "",
        "consumers of a worker that no sync may take, so that what a person asks for starts at once (default: a fifth of them)",
        _whole(0, 999),
    ),
    "preempt_grace": Setting(
        "ARCHIBALD_PREEMPT_GRACE",
        "5",
        "seconds that a sync gets to stop by itself, when a write of its agent waits, before it is cancelled",
        _seconds(0, 3600),
    ),
    "max_preemptions": Setting(
        "ARCHIBALD_MAX_PREEMPTIONS",
        "5",
        "so often in a row a sync makes room; its next run is left alone",
        _whole(0, 1000),
    ),
    "max_wait": Setting(
        "ARCHIBALD_MAX_WAIT",
        "900",
        "seconds after which a waiting sync is no longer overtaken by other agents' jobs",
        _seconds(1, 86400),
    ),
    "max_losses": Setting(
        "ARCHIBALD_MAX_LOSSES", "3", "a job whose worker died this often while it ran fails", _whole(1, 100)
    ),
    "browsers": Setting(
        "ARCHIBALD_BROWSERS",
        "3",
        "browser processes of a worker whose app has operations that need one",
        _whole(1, 100),
    ),
    "browser_contexts": Setting(
        "ARCHIBALD_BROWSER_CONTEXTS",
        "5",
        "contexts of each browser at most; WORKER_CONCURRENCY must not exceed what is left with one browser down",
        _whole(1, 100),
    ),
    "chromium": Setting(
        "ARCHIBALD_CHROMIUM",
        "",
        "Chromium's program (default: looked for where Debian, Playwright and Chrome put it)",
        _path,
    ),
    "login_budget": Setting(
        "ARCHIBALD_LOGIN_BUDGET",
        "60",
        "logins of a worker's browser contexts that may begin within a minute",
        _whole(1, 10_000),
    ),
    "browser_trace": Setting(
        "ARCHIBALD_BROWSER_TRACE",
        "0",
        "1: a Playwright trace is kept of a run that fails, besides the screenshot",
        _switch,
    ),
    "retention_days": Setting(
        "ARCHIBALD_RETENTION_DAYS", "30", "days for which a job stays in the history after its end", _whole(1, 36500)
    ),
}


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of this process; times in seconds. `None` means: not given."""

    database_url: str | None
    worker_concurrency: int
    direct_url: str | None
    listen: bool
    app: str | None
    data_dir: Path | None
    pg_bin: Path | None
    shutdown_grace: float
    dedup_window: float
    agent_backlog: int | None
    lease: float
    failover: bool
    reserved_consumers: int
    preempt_grace: float
    max_preemptions: int
    max_wait: float
    max_losses: int
    browsers: int
    browser_contexts: int
    chromium: Path | None
    login_budget: int
    browser_trace: bool
    retention_days: int

    @property
    def max_syncs(self) -> int:
        """The consumers of one worker that syncs may use."""
        return self.worker_concurrency - self.reserved_consumers


def load(environ: Mapping[str, str] | None = None) -> Settings:
    """Read the settings from the environment; an empty variable counts as unset.

    Raises:
        ConfigError: a value is not allowed.
    """
    env = os.environ if environ is None else environ
    values: dict[str, Any] = {"database_url": env.get("ARCHIBALD_DATABASE_URL") or env.get("DATABASE_URL") or None}
    for field, setting in SETTINGS.items():
        text = env.get(setting.name) or setting.default
        try:
            values[field] = setting.read(text) if text else None
        except ValueError as error:
            unset = f"unset for {setting.default}" if setting.default else "unset"
            raise ConfigError(f"{setting.name} is {text!r}; it must be {error}, or {unset}") from None
    concurrency, reserved = values["worker_concurrency"], values["reserved_consumers"]
    if reserved is None:
        values["reserved_consumers"] = concurrency // 5
    elif reserved >= concurrency:
        raise ConfigError(
            f"ARCHIBALD_RESERVED_CONSUMERS is {reserved}; it must be less than WORKER_CONCURRENCY, which is {concurrency}, "
            "or no sync would ever run"
        )
    return Settings(**values)


assert {field.name for field in fields(Settings)} == {*SETTINGS, "database_url"}  # noqa: S101  # a setting in one list only
