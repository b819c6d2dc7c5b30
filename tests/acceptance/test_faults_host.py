"""What holds when the host is in trouble: a full disk or a wrong clock."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from archibald_pgq import DatabaseError
from archibald_pgq.store import migrations
from tests.acceptance.conftest import Measured
from tests.acceptance.faults import own_server, scene, until
from tests.acceptance.history import now
from tests.clock import LIBRARY
from tests.commands import command
from tests.support import looking

pytestmark = pytest.mark.long  # run by `make faults`

LEASE = 2.0
SHORT: dict[str, Any] = {"ARCHIBALD_LEASE": LEASE}

as_root = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("mount") is None, reason="only root may mount a small file system"
)
needs_faketime = pytest.mark.skipif(
    LIBRARY is None, reason="libfaketime is not installed (on Debian: apt install libfaketime)"
)


# -- the disk


@pytest.fixture
def small_disk() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="archibald-disk-"))
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=400m,mode=755", "none", str(folder)], capture_output=True, check=False
    )
    try:
        if mounted.returncode:
            pytest.skip(f"a tmpfs cannot be mounted: {mounted.stderr.decode().strip()}")
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], capture_output=True, check=False)
        folder.rmdir()


def fill(folder: Path) -> Path:
    """Take all the space that is left, to the last page."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file:
        size = 1 << 20
        while size >= 4096:
            try:
                file.write(bytes(size))
            except OSError:
                size //= 2
    return filler


@as_root
@pytest.mark.slow
async def test_with_a_full_disk_enqueues_are_refused_and_afterwards_all_goes_on(
    small_disk: Path, measured: Measured
) -> None:
    """Of what was committed nothing is lost; what ended meanwhile is settled once, with its result."""
    with own_server(small_disk / "server", max_wal_size="64MB", min_wal_size="32MB") as server:
        await server.start()
        migrations.upgrade(server.dsn)
        async with scene(server.dsn) as faults:
            worker = await faults.start("a")
            held = [await faults.enqueue("fault-idempotent", f"held-{n}", padding="x" * 5000) for n in range(8)]
            await faults.until_started(*held)
            filler = fill(small_disk)
            with pytest.raises(DatabaseError) as refused:  # noqa: PT012  # which of them meets it is the server's business
                for n in range(5000):
                    await faults.enqueue(
                        "fault-idempotent", f"more-{n}", "short", seconds=0.0, padding=os.urandom(9000).hex()
                    )
            assert "No space left on device" in str(refused.value) or not server.alive, refused.value
            assert "\n" not in str(refused.value)
            sentence = command(
                "enqueue", "fault-read", "alice", "--data", f'{{"a": "{os.urandom(90000).hex()}"}}', database=server.dsn
            ).refused()
            assert "\n" not in sentence
            faults.open()
            for job in held:
                await until(lambda job=job: faults.events("end", job))  # type: ignore[misc]
            if server.alive:
                await worker.until_logged("the server is in need")
            filler.unlink()
            freed = now()
            if not server.alive:
                await server.start()
            async with looking(server.dsn) as look:
                faults.look = look
                await faults.until_ended()
                measured("disk full: room again to all settled", now() - freed)
                for job in held:
                    assert await look.job(job, "state", "attempt", "losses") == ("completed", 1, 0)
                    assert len(faults.events("start", job)) == 1
                assert worker.process.poll() is None
                await faults.stop_all()
                await faults.check()


# -- the clock


@needs_faketime
@pytest.mark.slow
@pytest.mark.parametrize("offset", ["+3600", "-3600"])
async def test_a_workers_host_whose_clock_is_an_hour_off_loses_no_lease_and_runs_jobs_at_their_time(
    database: str, tmp_path: Path, offset: str, measured: Measured
) -> None:
    """It also jumps while the worker runs, from right to wrong."""
    clock = tmp_path / "clock"
    clock.write_text("+0")
    fake: dict[str, Any] = {
        "LD_PRELOAD": LIBRARY,
        "FAKETIME_TIMESTAMP_FILE": clock,
        "FAKETIME_NO_CACHE": "1",
        "DONT_FAKE_MONOTONIC": "1",
    }
    async with scene(database) as faults:
        wrong = await faults.start("wrong", **SHORT, **fake)
        held = await faults.enqueue("fault-read", "alice")
        await faults.until_started(held)
        clock.write_text(offset)
        beat = await faults.look.value("SELECT beat FROM archibald.workers WHERE id = %s", wrong.worker_id)
        await faults.look.until(
            "SELECT beat > %s::timestamptz + interval '2.5 s' AND fenced_at IS NULL "
            "AND abs(extract(epoch FROM clock_timestamp() - beat)) < 5 "
            "FROM archibald.workers WHERE id = %s", beat, wrong.worker_id,
        )  # fmt: skip
        delayed = await faults.app.enqueue("fault-read", user_id="bob", data={"do": "short", "seconds": 0.0}, delay=1)
        await faults.look.until_state(delayed.id, "completed")
        started, due = await faults.look.job(delayed.id, "started_at", "run_after")
        measured(f"clock {offset} s: a delayed job after its time", (started - due).total_seconds())
        assert started >= due
        heir = await faults.start("right", **SHORT)
        await faults.until_trusted(heir, LEASE)
        assert await faults.look.value("SELECT fenced_at IS NULL FROM archibald.workers WHERE id = %s", wrong.worker_id)
        assert len(faults.events("start", held)) == 1
        await faults.lose_witness(wrong)
        await faults.kill(wrong)
        await faults.until_started(held, times=2)
        faults.open()
        await faults.until_ended()
        assert await faults.look.job(held, "state", "losses") == ("completed", 1)
        await faults.stop_all()
