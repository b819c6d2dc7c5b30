"""A server whose clock is not that of the machine: an embedded Postgres whose programs run under libfaketime.

Owns: a data folder with wrappers of the programs in it. Guarantees: only the server's clock differs; this process, and with it a worker,
keeps the machine's. Time goes on in the server; it is moved with a restart, as no clock of a running server jumps by days.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from archibald_pgq.store import embedded
from archibald_pgq.store.embedded.account import prepare_folder, reachable
from archibald_pgq.store.embedded.layout import Layout, layout_of
from tests.servers import SETTINGS

LIBRARY = next(iter(sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))), None)
"""Of Debian's package libfaketime; None where it is not installed."""

WRAPPER = """#!/bin/sh
export LD_PRELOAD={library} FAKETIME="$(cat {offset})" DONT_FAKE_MONOTONIC=1
exec {program} "$@"
"""


class ClockedServer:
    """An embedded server that starts with the clock that it was told."""

    def __init__(self, folder: Path) -> None:
        self._layout: Layout = layout_of(folder)
        account = prepare_folder(self._layout)
        programs = reachable(embedded.find_programs(), account, self._layout)
        self._wrappers = self._layout.root / "clocked"
        self._wrappers.mkdir()
        self._wrappers.chmod(0o755)  # as root the server runs as somebody else
        self._offset = self._wrappers / "offset"
        for name in ("postgres", "initdb"):
            wrapper = self._wrappers / name
            wrapper.write_text(WRAPPER.format(library=LIBRARY, offset=self._offset, program=programs / name))
            wrapper.chmod(0o755)
        self.set(datetime.now(UTC))

    def set(self, when: datetime) -> None:
        """Let the next start of the server be at this time, if it comes at once."""
        fresh = self._offset.with_suffix(".new")
        fresh.write_text(f"{(when - datetime.now(UTC)).total_seconds():+f}")
        fresh.chmod(0o644)
        fresh.replace(self._offset)

    @contextmanager
    def running(self, when: datetime) -> Iterator[str]:
        """Run the server from this time on; yields its URL."""
        self.set(when)
        with embedded.join(self._layout.root, embedded.find_programs(self._wrappers), settings=SETTINGS) as server:
            yield server.dsn

    def restart(self, when: datetime) -> None:
        """End the server's process; its supervisor starts it anew, at this time."""
        self.set(when)
        pid = (self._layout.data / "postmaster.pid").read_text().split("\n", 1)[0]
        os.kill(int(pid), signal.SIGINT)


@contextmanager
def clocked_server() -> Iterator[ClockedServer]:
    """Make a data folder for a server with its own clock; it is removed at the end."""
    folder = Path(tempfile.mkdtemp(prefix="archibald-clock-"))
    try:
        yield ClockedServer(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
