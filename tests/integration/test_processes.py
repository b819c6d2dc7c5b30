"""The processes of a command: nobody outlives it, and a death is told with its reason."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import psutil
import pytest

from archibald_pgq.processes import leash
from archibald_pgq.processes.children import Child, ChildDiedError, environment

SLEEPER = "import os, signal; print(os.getpid(), flush=True); signal.pause()"
STUBBORN = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {SLEEPER}"


def module(folder: Path, name: str, code: str) -> dict[str, str]:
    """Put a module into a folder; return the environment in which `python -m name` finds it."""
    (folder / f"{name}.py").write_text(code)
    return {**environment(), "PYTHONPATH": str(folder)}


async def test_stop_ends_the_process(tmp_path: Path) -> None:
    env = module(tmp_path, "sleeper", SLEEPER)
    child = await Child.start("the sleeper", "sleeper", log=tmp_path / "log", env=env)
    pid = int(await child.first_line())

    await child.stop()

    assert not psutil.pid_exists(pid)


async def test_a_process_that_ends_by_itself_is_told_with_the_end_of_its_log(tmp_path: Path) -> None:
    env = module(tmp_path, "dying", "import sys; print('ready', flush=True); sys.exit('the disk is full')")
    child = await Child.start("the worker", "dying", log=tmp_path / "log", env=env)
    assert await child.first_line() == "ready"

    with pytest.raises(
        ChildDiedError, match=r"^the worker ended too early with exit code 1; .*log ends with: .*disk is full$"
    ):
        await child.watch()


async def test_a_process_that_says_nothing_and_ends_is_told(tmp_path: Path) -> None:
    env = module(tmp_path, "silent", "raise SystemExit(3)")
    child = await Child.start("the ERP", "silent", log=tmp_path / "log", env=env)

    with pytest.raises(ChildDiedError, match=r"the ERP ended too early with exit code 3; .* ends with: nothing"):
        await child.first_line()


@pytest.mark.parametrize("code", [SLEEPER, STUBBORN])
async def test_a_process_does_not_outlive_a_command_that_was_killed(code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Stdin is the sign of life: the kernel closes it however the command ends.
    command = (sys.executable, "-c", f"import sys; sys.path.insert(0, {str(Path(leash.__file__).parent)!r}); import leash; "
               f"leash.LAST_SECONDS = 0.1; sys.argv[1:] = [sys.executable, '-c', {code!r}]; leash.main()")  # fmt: skip
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdin is not None
    pid = int(await process.stdout.readline())

    process.stdin.close()

    assert await process.wait() in {128 + 15, 128 + 9}
    assert not psutil.pid_exists(pid)


def test_a_child_knows_nothing_of_the_callers_databases_and_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DATABASE_URL", "ARCHIBALD_DATABASE_URL", "ARCHIBALD_APP", "ARCHIBALD_LEASE", "ERP_URL"):
        monkeypatch.setenv(name, "the caller's")
    monkeypatch.setenv("WORKER_CONCURRENCY", "4")

    env = environment(ARCHIBALD_DATABASE_URL="the demo's")

    assert "the caller's" not in env.values()
    assert (env["ARCHIBALD_DATABASE_URL"], env["WORKER_CONCURRENCY"]) == ("the demo's", "4")
    assert env["PATH"] == os.environ["PATH"]
