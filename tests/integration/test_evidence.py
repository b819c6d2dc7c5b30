"""`archibald-pgq evidence`: what a failed job last saw, as files."""

from __future__ import annotations

import json
from pathlib import Path

from archibald_pgq import Archibald
from archibald_pgq.domain.evidence import MAX_SCREENSHOT_BYTES, MAX_TRACE_BYTES
from archibald_pgq.store import evidence, workers
from archibald_pgq.store.client import Client
from tests.commands import command
from tests.hand import hand
from tests.support import Look

PNG, ZIP = b"\x89PNG", b"PK"


async def keep(database: str, attempt: int, screenshot: bytes | None = PNG, trace: bytes | None = None) -> None:
    client = Client(database)
    try:
        await client.ask(evidence.keep(7, attempt, "http://erp/orders", screenshot, trace))
    finally:
        await client.close()


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


async def test_it_writes_the_files_of_each_run_and_says_where(database: str, look: Look, tmp_path: Path) -> None:
    await keep(database, 1)
    await keep(database, 2, trace=ZIP)
    ended = command("evidence", "7", "--to", str(tmp_path), database=database)
    assert (ended.code, ended.err) == (0, "")
    assert "attempt 2, " in ended.out
    assert ", at http://erp/orders" in ended.out
    found = files(tmp_path)
    assert found == {"job-7-attempt-1.png": PNG, "job-7-attempt-2.png": PNG, "job-7-attempt-2.trace.zip": ZIP}
    assert all(str(tmp_path / name) in ended.out for name in found)


async def test_its_json_names_the_files(database: str, look: Look, tmp_path: Path) -> None:
    await keep(database, 1)
    ended = command("evidence", "7", "--to", str(tmp_path), "--json", database=database)
    (one,) = json.loads(ended.out)
    assert (one["attempt"], one["url"], one["files"]) == (
        1,
        "http://erp/orders",
        [str(tmp_path / "job-7-attempt-1.png")],
    )


def test_where_nothing_is_kept_it_says_so(database: str, tmp_path: Path) -> None:
    ended = command("evidence", "7", database=database)
    assert (ended.code, ended.out) == (1, "nothing is kept of job 7\n")


async def test_a_folder_that_is_not_there_is_one_sentence(database: str, look: Look, tmp_path: Path) -> None:
    await keep(database, 1)
    ended = command("evidence", "7", "--to", str(tmp_path / "none"), database=database)
    assert ended.code == 2
    assert "cannot be written: No such file or directory; name another folder with --to" in ended.err


async def test_of_a_job_the_last_five_are_kept_and_nothing_that_is_too_large(database: str, look: Look) -> None:
    for attempt in range(1, 8):
        await keep(database, attempt, b"x" * (MAX_SCREENSHOT_BYTES + (attempt == 7)), b"x" * (MAX_TRACE_BYTES + 1))
    assert await look.rows("SELECT attempt, screenshot IS NULL, trace IS NULL FROM archibald.job_evidence ORDER BY 1") == [
        (3, False, True), (4, False, True), (5, False, True), (6, False, True), (7, True, True),
    ]  # fmt: skip


async def test_it_is_dropped_after_the_retention(app: Archibald, database: str, look: Look) -> None:
    await keep(database, 1)
    await keep(database, 2)
    await look.rows("UPDATE archibald.job_evidence SET made_at = now() - interval '31 days' WHERE attempt = 1")
    async with hand(database) as worker:
        assert [await workers.drop_evidence(worker.connection, 30) for _ in range(2)] == [1, 0]
    assert await look.rows("SELECT attempt FROM archibald.job_evidence") == [(2,)]
