"""The heartbeat: keeps this worker's lease, and makes sure that nothing of it runs once the lease is lost.

Owns: two threads, because a handler that blocks the event loop must not cost the lease. One beats (a connection of its own), the other
watches the time since the last acknowledged beat was *sent*, on a clock that goes on while the machine sleeps: at half the lease the
handlers are cancelled, at 5/6 the process exits with 70 if handler code still runs; at the full lease others may take over.
A beat that is not acknowledged within a third of the lease is repeated on a new connection, which has a sixth of the lease to answer. The
watch also looks at the event loop.
Guarantees: a beat that was not acknowledged never counts. A server that is down or starting does not start that clock: nobody can take
over on it. Must not: touch the event loop but through `call_soon_threadsafe`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from typing import Any, NoReturn, Protocol

import psycopg

from archibald_pgq.runtime import loop_watch
from archibald_pgq.runtime.loop_watch import LoopWatch
from archibald_pgq.runtime.reconnect import Outage, in_need
from archibald_pgq.store.connect import cut, server_refuses, told
from archibald_pgq.store.workers import BEAT, Neighbour, neighbours

logger = logging.getLogger(__name__)

EXIT_FENCED = 70
"""EX_SOFTWARE of sysexits.h: the supervisor of the process starts it again."""

LONGEST_INTERVAL = 1.0
"""Seconds between two beats, however long the lease: each also asks for cancel requests that no notification brought."""

_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def boottime() -> float:
    """Return seconds on a clock that also counts while the machine sleeps, where there is one."""
    return time.clock_gettime(_CLOCK)


def exit_fenced(why: str) -> NoReturn:
    """End the process at once, whatever else it does: handlers that do not end must not meet their second copy."""
    logger.critical("%s", why)
    logging.shutdown()
    os._exit(EXIT_FENCED)


class Listener(Protocol):
    """What the heartbeat tells its worker; called from the heartbeat's threads."""

    def fenced(self) -> None:
        """This worker's agents were given to others."""

    def out_of_contact(self) -> None:
        """Half the lease has passed without an acknowledged beat."""

    def cancel_requested(self, job_ids: list[int]) -> None:
        """Somebody asked to cancel these running jobs."""

    def preempt_requested(self) -> None:
        """Running syncs are asked to make room."""

    def neighbours_seen(self, found: list[Neighbour]) -> None:
        """These workers of this boot of the machine live, by the database."""

    def handler_code_runs(self) -> bool:
        """True while any handler of this process may run."""

    def running(self) -> list[str]:
        """See `LoopWatch`."""

    def browsers(self) -> str | None:
        """What this worker's browsers are doing, as JSON; None if it has none."""


class Heartbeat:
    """The lease of one registered worker."""

    def __init__(self, conninfo: str, worker_id: int, lease: float, listener: Listener, *, failover: bool) -> None:
        """Prepare; `lease` in seconds. The worker was registered just now.

        `failover`: a server that refuses connections may have been replaced by one that others reach, and counts as silent.
        """
        self.interval = min(lease / 6, LONGEST_INTERVAL)
        self._conninfo, self._worker_id, self._lease, self._listener = conninfo, worker_id, lease, listener
        self._failover = failover
        self._acknowledged = boottime()
        self._beat: tuple[psycopg.Connection[Any], float] | None = None
        """The one that is under way: its connection, and when it was sent."""
        self._outage = Outage("the heartbeat", longest=self.interval / 2)
        self._loop_watch = LoopWatch(listener.running)
        self._unbroken_since: float | None = None
        self._stopped = threading.Event()
        self._threads = [
            threading.Thread(target=self._beat_on, name="heartbeat", daemon=True),
            threading.Thread(target=self._watch, name="lease watch", daemon=True),
        ]

    def start(self) -> None:
        """Start both threads."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End both threads; the lease is no longer kept."""
        self._stopped.set()
        for thread in self._threads:
            thread.join(
                timeout=LONGEST_INTERVAL
            )  # one may wait for a server that does not answer; it ends with the process

    def in_contact(self) -> bool:
        """Return True within half the lease after a beat: only then may handlers be started."""
        return boottime() - self._acknowledged < self._lease / 2

    @property
    def trusted(self) -> bool:
        """True after a lease and a beat without a gap on one connection: only then may others be judged silent.

        After a start, a crash recovery or a failover of the server all beats look stale for a while.
        """
        since = self._unbroken_since
        return since is not None and boottime() - since >= self._lease + self.interval

    def _beat_on(self) -> None:
        connection: psycopg.Connection[Any] | None = None
        while not self._stopped.is_set():
            sent = boottime()
            try:
                if connection is None:
                    connection = psycopg.connect(self._conninfo, autocommit=True)
                    connection.prepare_threshold = 0
                    sent = boottime()
                self._beat = connection, sent
                row = connection.execute(
                    BEAT, {"worker": self._worker_id, "browsers": self._listener.browsers()}
                ).fetchone()
            except psycopg.errors.LockNotAvailable as error:  # of a migration, mostly; the wait for it was the pause
                self._unbroken_since = None  # the others' beats wait as well
                logger.debug("a beat met somebody's lock and is repeated: %s", told(error))
                continue
            except psycopg.Error as error:
                connection = self._missed(connection, error, sent)
                self._stopped.wait(self._outage.goes_on(error))
                continue
            finally:
                self._beat = None
            if self._stopped.is_set():
                break  # it hung for a while; what it would tell concerns a registration that is over
            if row is None or row[0] == 0:
                self._listener.fenced()
                break
            self._acknowledged = sent
            self._outage.is_over()
            if self._unbroken_since is None:
                self._unbroken_since = sent
            if row[1]:
                self._listener.cancel_requested(row[1])
            if row[2]:
                self._listener.preempt_requested()
            self._listener.neighbours_seen(neighbours(row[3]))
            self._stopped.wait(max(0.0, self.interval - (boottime() - sent)))
        if connection is not None:
            connection.close()

    def _missed(
        self, connection: psycopg.Connection[Any] | None, error: psycopg.Error, sent: float
    ) -> psycopg.Connection[Any] | None:
        """Take note of a beat that failed; return the connection for the next one, if it is worth keeping."""
        self._unbroken_since = None
        if connection is None:
            if not self._failover and server_refuses(self._conninfo, error):
                self._acknowledged = sent
            return None
        if in_need(error) and not connection.closed:
            return connection  # it will work again before a new one can be had
        with contextlib.suppress(psycopg.Error):
            connection.close()
        return None

    def _watch(self) -> None:
        told = False
        while not self._stopped.wait(min(self._lease / 60, loop_watch.EVERY)):
            self._loop_watch.look()
            silent = boottime() - self._acknowledged
            if silent >= self._lease / 3:
                self._cut_late_beat()
            if silent < self._lease / 2:
                told = False
                continue
            if not told:
                told = True
                logger.error(
                    "no heartbeat for %.1f s: handlers are cancelled before the lease of %.0f s ends",
                    silent,
                    self._lease,
                )
                self._listener.out_of_contact()
            self.exit_if_late()

    def _cut_late_beat(self) -> None:
        """Break the connection of a beat that had its time, which the first one after a long silence has too."""
        if (beat := self._beat) is not None and boottime() - beat[1] >= self._lease / 6:
            self._beat = None
            cut(beat[0])

    def exit_if_late(self) -> None:
        """End the process if the lease is nearly over and handler code still runs; from any thread, and from a signal handler."""
        silent = boottime() - self._acknowledged
        if silent >= self._lease * 5 / 6 and self._listener.handler_code_runs():
            exit_fenced(
                f"no heartbeat for {silent:.1f} s and handler code still runs: exiting, so that no second copy can"
            )
