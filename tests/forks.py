"""Run by `tests.commands`: for each line of JSON, a command, runs `archibald-pgq` in a fork and answers with what it came to.

Run by `tests.daemons` with an argument: leaves the fork alone instead, as nobody's child, and answers with its number.
"""

from __future__ import annotations

import base64
import ctypes
import json
import os
import signal
import sys
import tempfile
import time
import traceback
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from archibald_pgq.cli import main

# What commands import only once they need it: here already, or each fork would do it anew.
for _name in ("pydantic.type_adapter", "alembic.command", "archibald_pgq.store.tables", "archibald_pgq.store.doctor"):
    import_module(_name)

PR_SET_PDEATHSIG = 1


def child(one: dict[str, Any], files: list[Any]) -> NoReturn:
    """Be the command."""
    code = 1
    try:
        for number, file in enumerate(files):
            os.dup2(file.fileno(), number)
        os.chdir(one["cwd"])
        os.environ.clear()
        os.environ.update(one["env"])
        sys.path[0] = one["cwd"]  # as with `python -m`
        sys.argv = ["archibald-pgq", *one["arguments"]]
        main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001  # what the interpreter does with it
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def run(one: dict[str, Any]) -> tuple[int, str, str]:
    """Run one command to its end."""
    with tempfile.TemporaryFile() as stdin, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        stdin.write(base64.b64decode(one["stdin"]))
        stdin.seek(0)
        pid = os.fork()
        if pid == 0:
            child(one, [stdin, out, err])
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode())
        return code, texts[0], texts[1]


def _end_with_the_starter(middle: int) -> None:
    """A test that is killed leaves no daemon: it would find the next server that gets the same port, and run jobs there."""
    while os.getppid() == middle:  # until the starter has adopted it
        time.sleep(0.001)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def leave(one: dict[str, Any]) -> int:
    """Start one command as an orphan; return its number."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        middle = os.getpid()
        daemon = os.fork()
        if daemon == 0:
            os.close(reading)
            os.close(writing)
            _end_with_the_starter(middle)
            sys.stdin.close()  # nothing of it may wait for what this program's starter sends
            with Path(os.devnull).open("rb") as nothing, Path(one["log"]).open("ab") as log:
                child(one, [nothing, log, log])
        os.write(writing, str(daemon).encode())
        os._exit(0)
    os.waitpid(pid, 0)
    os.close(writing)
    with os.fdopen(reading) as answer:
        return int(answer.read())


if __name__ == "__main__":
    answer = leave if sys.argv[1:] else run
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)  # noqa: T201  # to the one that started it
