"""The schema is migrated while workers of the code before it run under load; that code comes from git's history."""

from __future__ import annotations

import asyncio
import io
import subprocess
import tarfile
import time
from pathlib import Path

import pytest

from archibald_pgq.store import migrations
from tests.acceptance import faults
from tests.acceptance.conftest import Measured
from tests.acceptance.faults import CHECKOUT, Scene
from tests.acceptance.history import Event, append, now
from tests.commands import alembic
from tests.support import looking

NEXT = "Begin migration 0002"
"""The commit whose parent is the last one of revision 0001."""


def _git(*arguments: str) -> bytes:
    try:
        return subprocess.run(["git", *arguments], cwd=CHECKOUT, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return b""


@pytest.fixture
def old_code(tmp_path: Path) -> Path:
    commit = _git("log", f"--grep=^{NEXT}", "--format=%H", "-1").decode().strip()
    archive = _git("archive", f"{commit}^") if commit else b""
    if not archive:
        pytest.skip("git's history with the code of revision 0001 is not here")
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        files.extractall(tmp_path / "old", filter="data")
    return tmp_path / "old"


@pytest.mark.long
async def test_workers_of_revision_0001_go_on_while_the_schema_is_migrated_under_them(
    empty_database: str, old_code: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, measured: Measured
) -> None:
    assert alembic(empty_database, "upgrade", "0001").returncode == 0
    async with looking(empty_database) as look, looking(empty_database) as caller:
        there = Scene(empty_database, tmp_path, look, None)  # type: ignore[arg-type]  # an app of today refuses that schema
        stop, stalls = asyncio.Event(), list[tuple[float, float]]()

        async def load() -> None:
            number = 0
            while not stop.is_set():
                number += 1
                began = time.monotonic()
                job = await caller.value(
                    """SELECT archibald.enqueue(%s, 'fault-idempotent', '{"do": "short", "seconds": 0.01}', NULL)""",
                    f"u{number % 10}",
                )
                stalls.append((began, time.monotonic()))
                append(there.history, Event(now(), "enqueued", job_id=job, user_id=f"u{number % 10}"))

        async def go_on(jobs: int) -> None:
            done = await look.value("SELECT count(*) FROM archibald.job_history")
            await look.until("SELECT count(*) > %s FROM archibald.job_history", done + jobs)

        try:
            with monkeypatch.context() as patched:
                patched.setattr(faults, "CHECKOUT", old_code)
                # Nothing is preloaded; named, it makes a new process of each instead of a fork that has today's code.
                old = [await there.start(name, LD_PRELOAD="") for name in ("old one", "old two")]
            loading = asyncio.create_task(load())
            await go_on(50)
            began = time.monotonic()
            await asyncio.to_thread(migrations.upgrade, empty_database)
            ended = time.monotonic()
            measured("migration from 0001 under load: migrate", ended - began)
            await go_on(50)
            await there.start("new")
            await go_on(50)
            assert [worker.process.poll() for worker in old] == [None, None]
            stop.set()
            await loading
            beside = [start < ended and end > began for start, end in stalls]
            for when, wanted in (("while it is migrated", True), ("before and after", False)):
                lengths = [end - start for (start, end), found in zip(stalls, beside, strict=True) if found is wanted]
                measured(f"migration from 0001 under load: longest enqueue {when}", max(lengths))
            await there.until_ended()
            await there.stop_all()
            await there.check()
        finally:
            there.clear()
