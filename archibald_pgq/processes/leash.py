"""A leash for a process: `python leash.py COMMAND …` runs the command until its end, SIGTERM, or the end of stdin.

Owns: nothing but the one process. Guarantees: the process does not outlive whoever holds the other end of stdin, also when
that one was killed; the exit code is the process's own. Must not: import the package (half a second for each child).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

LAST_SECONDS = 8.0
"""After the first SIGTERM a process has this long before it is killed."""


def main() -> int:
    """Run the command of the arguments; return its exit code, 128 + the number of the signal that ended it."""
    # Its stdin is empty: the command must not read what is the leash's own sign of life.
    child = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)  # the caller's own command line

    def end() -> None:
        if child.poll() is None:
            child.terminate()
            threading.Timer(LAST_SECONDS, child.kill).start()

    def watch() -> None:
        while os.read(0, 4096):
            pass
        end()

    signal.signal(signal.SIGTERM, lambda *_: end())
    threading.Thread(target=watch, daemon=True).start()
    code = child.wait()
    # Not sys.exit: the timer's thread may still wait to kill a process that has ended by now.
    os._exit(code if code >= 0 else 128 - code)


if __name__ == "__main__":
    main()
