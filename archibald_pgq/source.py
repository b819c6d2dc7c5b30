"""What the asynchronous and the synchronous side of one app share: its operations, its settings, and the database that it looks at.

Owns: the opened database, and with it the hold on the embedded server. Guarantees: it is opened once, at the first use, whichever
thread comes first. Must not: talk to the database.
"""

from __future__ import annotations

import threading

from archibald_pgq import config
from archibald_pgq.runtime.registry import Registry
from archibald_pgq.store.target import Target, open_target


class Source:
    """The database of one app; opened by `dsn`, let go by `close`."""

    def __init__(self, database_url: str | None) -> None:
        """Remember the URL; nothing is opened and no setting is read before the first use."""
        self.database_url = database_url
        self.registry = Registry()
        self._settings: config.Settings | None = None
        self._target: Target | None = None
        self._opening = threading.Lock()

    @property
    def settings(self) -> config.Settings:
        """The settings of this process, read once.

        Raises:
            ConfigError: one of them is not allowed.
        """
        if self._settings is None:
            self._settings = config.load()
        return self._settings

    def use(self, target: Target) -> None:
        """Use an opened database instead of looking for one; before the first use only."""
        self._target = target

    def dsn(self) -> str:
        """Return the DSN of the database; the first call opens it, which may take a while.

        Raises:
            ConfigError: the DSN cannot be read; DatabaseError: the embedded server cannot be started.
        """
        with self._opening:
            if self._target is None:
                self._target = open_target(self.database_url, self.settings)
            return self._target.dsn

    def close(self) -> None:
        """Let go of the database; the embedded server stops when nobody else uses it."""
        with self._opening:
            if self._target is not None:
                self._target.close()
            self._target = None
