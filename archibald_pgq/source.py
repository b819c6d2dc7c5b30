"""What the asynchronous and the synchronous side of one app share: its operations, its settings, and the database that it looks at.

Owns: the opened database, and with it the hold on the embedded server. Guarantees: it is opened once, at the first use, whichever
thread comes first, and stays open until the last side has let go of it; a forked child opens its own. Must not: talk to the database.
"""

from __future__ import annotations

import os
import threading
import weakref
from functools import cached_property
from typing import Protocol

from archibald_pgq import config
from archibald_pgq.runtime.registry import Registry
from archibald_pgq.store.enqueues import Limits
from archibald_pgq.store.pool import let_go_all
from archibald_pgq.store.target import Target, open_target


class Inherited(Protocol):
    """Something that a forked child gets a copy of, though it belongs to the parent."""

    def _forget(self) -> None:
        """Be as before the first use; runs in the child, where no other thread is and any lock may be held for ever."""


_inheritable: weakref.WeakSet[Inherited] = weakref.WeakSet()


def forget_after_fork(one: Inherited) -> None:
    """Have `one` forget what it opened in every child that is forked from now on, as a server that loads its app first does."""
    _inheritable.add(one)


def _forget_all() -> None:
    let_go_all()  # before anything forgets a connection: Python would close it, and the server say goodbye to the parent
    for one in list(_inheritable):
        one._forget()


os.register_at_fork(after_in_child=_forget_all)


class Source:
    """The database of one app; opened by `dsn`, let go by `close`."""

    def __init__(self, database_url: str | None) -> None:
        """Remember the URL; nothing is opened and no setting is read before the first use."""
        self.database_url = database_url
        self.registry = Registry()
        self._settings: config.Settings | None = None
        self._target: Target | None = None
        self._opening = threading.Lock()
        self._holders: set[object] = set()
        forget_after_fork(self)

    @property
    def settings(self) -> config.Settings:
        """The settings of this process, read once.

        Raises:
            ConfigError: one of them is not allowed.
        """
        if self._settings is None:
            self._settings = config.load()
        return self._settings

    @cached_property
    def limits(self) -> Limits:
        """What the settings say about enqueues.

        Raises:
            ConfigError: see `settings`.
        """
        return Limits(self.settings.dedup_window, self.settings.agent_backlog)

    def use(self, target: Target) -> None:
        """Use an opened database instead of looking for one; before the first use only."""
        self._target = target

    def dsn(self, holder: object) -> str:
        """Return the DSN of the database; the first call opens it, which may take a while. It stays open until `holder` closes it.

        Raises:
            ConfigError: the DSN cannot be read; DatabaseError: the embedded server cannot be started.
        """
        with self._opening:
            if self._target is None:
                self._target = open_target(self.database_url, self.settings)
            self._holders.add(holder)
            return self._target.dsn

    def close(self, holder: object) -> None:
        """Let go of the database unless another one holds it; the embedded server stops when nobody else uses it."""
        with self._opening:
            self._holders.discard(holder)
            if self._target is not None and not self._holders:
                self._target.close()
                self._target = None

    def _forget(self) -> None:
        """In a forked child: the embedded server is joined anew; see `Inherited`."""
        self._opening = threading.Lock()
        self._holders = set()
        if self._target is not None and self._target.embedded:
            self._target = None
