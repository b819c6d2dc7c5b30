"""Running the command line on a terminal of a given width."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import struct
import subprocess
import termios

from tests.commands import PATIENCE, PROGRAM, environment


def on_terminal(*arguments: str, database: str, columns: int = 80, **variables: str) -> str:
    """Return what a command that must end with 0 writes to a terminal."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    try:
        process = subprocess.Popen(
            [*PROGRAM, *arguments],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=environment(database, TERM="xterm", **variables),
        )
        os.close(theirs)
        out = b""
        with contextlib.suppress(OSError):  # Linux says so where the other side has gone
            while part := os.read(ours, 65536):
                out += part
        assert process.wait(PATIENCE) == 0, out
    finally:
        os.close(ours)
    return out.decode(variables.get("PYTHONIOENCODING", "utf-8"))


def without_colours(text: str) -> str:
    """Return the text without the codes that change colours."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text)
