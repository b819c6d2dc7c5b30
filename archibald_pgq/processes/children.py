"""A process of a command's own: started, watched, stopped, and quoted when it dies.

Guarantees: `stop` returns when the process has ended; a process that ends by itself raises `ChildDiedError` in `watch`,
with the end of its log. Must not: pass the caller's database or settings on, or put a DSN into a command line.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

from archibald_pgq.errors import ArchibaldError
from archibald_pgq.processes import leash

TAIL_LINES = 5


class ChildDiedError(ArchibaldError):
    """A process of the command ended too early; the text has the end of its log."""


def environment(**added: str) -> dict[str, str]:
    """Return this process's environment without the caller's databases, app and settings, plus `added`.

    Only WORKER_CONCURRENCY stays: it is the way to see the same with another number of consumers.
    """
    dropped = {"DATABASE_URL", "ERP_URL"}
    kept = {key: value for key, value in os.environ.items() if key not in dropped and not key.startswith("ARCHIBALD_")}
    return {**kept, "PYTHONUNBUFFERED": "1", **added}


class Child:
    """One process on its leash; build it with `Child.start`."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, log: Path) -> None:
        """Wrap a started process."""
        self._name = name
        self._process = process
        self._log = log

    @classmethod
    async def start(cls, name: str, module: str, *arguments: str, log: Path, env: Mapping[str, str]) -> Child:
        """Start `python -m module arguments`; its stderr goes to the file `log`, its stdout to `first_line`.

        It gets a session of its own: Ctrl-C goes to a whole group, but the command decides who ends when.
        """
        command = (sys.executable, "-I", leash.__file__, sys.executable, "-m", module, *arguments)
        with log.open("wb") as file:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=file,
                env=dict(env),
                start_new_session=True,
            )
        return cls(name, process, log)

    async def first_line(self) -> str:
        """Return the first line of its stdout.

        Raises:
            ChildDiedError: it ended before it said anything.
        """
        assert self._process.stdout is not None  # noqa: S101  # a pipe, as started
        line = await self._process.stdout.readline()
        if not line:
            await self._died()
        return line.decode().strip()

    async def watch(self) -> NoReturn:
        """Wait for its end, passing what it prints on to its log.

        Raises:
            ChildDiedError: always, when it has ended.
        """
        assert self._process.stdout is not None  # noqa: S101  # a pipe, as started
        with self._log.open("ab") as file:
            async for line in self._process.stdout:
                file.write(line)
                file.flush()
        await self._died()

    async def _died(self) -> NoReturn:
        code = await self._process.wait()
        tail = " / ".join(self._log.read_text(errors="replace").split("\n")[-TAIL_LINES - 1 : -1]) or "nothing"
        raise ChildDiedError(f"{self._name} ended too early with exit code {code}; {self._log} ends with: {tail}")

    async def stop(self) -> None:
        """End it, by SIGTERM and if need be by force (the leash does that), and wait for its end."""
        if self._process.returncode is None:
            self._process.terminate()
        await self._process.wait()
