"""The heartbeat on a real server: what a slow server or somebody's lock may not cost a worker."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from archibald_pgq.runtime import heartbeat as module
from archibald_pgq.runtime.heartbeat import Heartbeat
from archibald_pgq.store.connect import worker_options
from archibald_pgq.store.workers import Neighbour
from tests.hand import hand
from tests.support import LOOK_EVERY, PATIENCE, Look, looking

LEASE = 30.0
BEATS = "SELECT {} FROM pg_stat_activity WHERE datname = current_database() AND query LIKE '%%WITH beat AS%%' AND pid <> pg_backend_pid()"
SLOW_BEATS = """
CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(1); RETURN NEW; END';
CREATE TRIGGER slow BEFORE UPDATE ON archibald.workers FOR EACH ROW EXECUTE FUNCTION slow();
"""


class Worker:
    """A worker without handlers, which bears in mind what the heartbeat told it."""

    was_out_of_contact = was_fenced = False

    def fenced(self) -> None:
        self.was_fenced = True

    def out_of_contact(self) -> None:
        self.was_out_of_contact = True

    def cancel_requested(self, job_ids: list[int]) -> None:
        raise AssertionError(job_ids)

    def preempt_requested(self) -> None:
        raise AssertionError

    def neighbours_seen(self, found: list[Neighbour]) -> None:
        assert found == []

    def handler_code_runs(self) -> bool:
        return False

    def running(self) -> list[str]:
        return []

    def browsers(self) -> None:
        return None


@contextlib.asynccontextmanager
async def beating(database: str) -> AsyncIterator[tuple[Heartbeat, Worker]]:
    """Keep the lease of a registered worker."""
    worker = Worker()
    async with hand(database, lease=LEASE) as registered:
        heartbeat = Heartbeat(
            worker_options(database, "heartbeat", LEASE), registered.worker_id, LEASE, worker, failover=False
        )
        heartbeat.start()
        try:
            yield heartbeat, worker
        finally:
            heartbeat.stop()


async def test_after_a_long_silence_a_slow_server_has_time_to_answer_a_beat(
    database: str, look: Look, monkeypatch: pytest.MonkeyPatch
) -> None:
    await look.rows(SLOW_BEATS)
    passed, boottime = 0.0, module.boottime
    monkeypatch.setattr(module, "boottime", lambda: boottime() + passed)
    async with beating(database) as (heartbeat, worker):
        await look.until(BEATS.format("count(*) = 1") + " AND wait_event = 'PgSleep'")
        passed = LEASE / 2  # what the beat that is under way took; the next ones take a second, four looks of the watch
        async with asyncio.timeout(PATIENCE):
            while not (worker.was_out_of_contact and heartbeat.in_contact()):  # noqa: ASYNC110  # of its threads
                await asyncio.sleep(LOOK_EVERY)
    assert not worker.was_fenced


async def test_a_beat_that_meets_somebodys_lock_is_repeated_on_its_connection(
    database: str, look: Look, caplog: pytest.LogCaptureFixture
) -> None:
    async with beating(database) as (heartbeat, worker), looking(database) as migration:
        await look.until(BEATS.format("count(*) = 1"))
        pid = await look.value(BEATS.format("pid"))
        await migration.rows("BEGIN")
        await migration.rows("LOCK TABLE archibald.workers")
        for _ in range(2):
            began = await look.value("SELECT clock_timestamp()")
            await look.until(BEATS.format("count(*) = 1") + " AND wait_event_type = 'Lock' AND query_start > %s", began)
        await migration.rows("COMMIT")
        freed = await look.value("SELECT clock_timestamp()")
        await look.until("SELECT bool_and(beat > %s) FROM archibald.workers", freed)
        assert await look.value(BEATS.format("array_agg(pid)")) == [pid]
        assert heartbeat.in_contact()
    assert not worker.was_out_of_contact
    assert "lost its connection" not in caplog.text
