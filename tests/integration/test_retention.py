"""Retention: what is over is dropped and nothing else, and whoever reads or settles meanwhile is not disturbed."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from datetime import UTC, date, datetime, timedelta

import psycopg
import pytest

from archibald_pgq import Archibald, UnknownJobError
from archibald_pgq.runtime import history, maintenance
from archibald_pgq.store import migrations
from tests.clock import LIBRARY, ClockedServer, clocked_server
from tests.commands import command, fingerprint
from tests.hand import hand
from tests.support import Look, Stage, looking, working

DROP = "SELECT archibald.drop_history_partitions(%s)"
# What is attached to the history, without the default partition.
PARTITIONS = (
    "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'archibald.job_history'::regclass "
    "AND inhrelid <> 'archibald.job_history_default'::regclass"
)
# A drop that waits for the lock of the history.
WAITS = "SELECT FROM pg_locks WHERE relation = 'archibald.job_history'::regclass AND mode = 'AccessExclusiveLock' AND NOT granted"
FINISHED = (
    "INSERT INTO archibald.job_history SELECT n, 1, 'alice', 'submit-order', 'write', 'completed', 1, {created}, 0, 0, 1, 1, NULL, "
    "'{{}}', NULL, NULL, NULL, NULL, NULL, NULL, {created}, {created}, {created}, {finished} FROM generate_series({first}, {last}) AS n"
)


def name_of(day: date) -> str:
    return f"job_history_{day:%Y%m%d}"


async def today(look: Look) -> date:
    found = await look.value("SELECT (now() AT TIME ZONE 'UTC')::date")
    assert isinstance(found, date)
    return found


async def attach(look: Look, name: str, start: str, end: str) -> None:
    await look.rows(f"CREATE TABLE {name} PARTITION OF archibald.job_history FOR VALUES FROM ({start}) TO ({end})")


async def days(look: Look, *ago: int) -> list[str]:
    """Make the partitions of past days as the queue made them then, and return their names."""
    names = []
    for day in [await today(look) - timedelta(days=n) for n in ago]:
        names.append(name_of(day))
        await attach(look, f"archibald.{names[-1]}", f"'{day}T00:00:00+00'", f"'{day + timedelta(days=1)}T00:00:00+00'")
    return names


async def finished(look: Look, created: str, ended: str, first: int = 1, last: int = 1) -> None:
    """Put jobs into the history that were enqueued and ended so long ago."""
    await look.rows(
        FINISHED.format(
            created=f"now() - interval '{created}'", finished=f"now() - interval '{ended}'", first=first, last=last
        )
    )


async def drop(look: Look, p_days: int = 30) -> list[str]:
    return [row[0] for row in await look.rows(DROP, p_days)]


async def partitions(look: Look) -> set[str]:
    return {row[0].removeprefix("archibald.") for row in await look.rows(PARTITIONS)}


# -- what is dropped, and what is not


@pytest.mark.parametrize("zone", ["UTC", "Pacific/Kiritimati", "America/Los_Angeles"])
async def test_a_day_is_dropped_30_days_after_its_end_in_utc_and_not_before(look: Look, zone: str) -> None:
    await look.rows(f"SET TimeZone = '{zone}'")
    before = await partitions(look)
    async with look.connection.transaction():  # in which now() stands still
        kept_1, kept_2, over_1, over_2 = await days(look, 29, 30, 31, 400)
        assert await drop(look) == [over_2, over_1]
    assert await partitions(look) == before | {kept_1, kept_2}
    assert await look.value("SELECT count(*) FROM pg_class WHERE relname = ANY (%s)", [over_1, over_2]) == 0


async def test_a_job_that_ended_late_keeps_its_day_until_30_days_after_its_end(look: Look) -> None:
    async with look.connection.transaction():
        late, plain = await days(look, 60, 59)
        await finished(look, "60 days", "60 days", 1, 10)
        await finished(look, "59 days", "59 days", 11, 20)
        await finished(look, "60 days", "30 days", 21, 21)
        assert await drop(look) == [plain]
        assert await look.value("SELECT count(*) FROM archibald.job_history") == 11
        await look.rows("UPDATE archibald.job_history SET finished_at = finished_at - interval '1 us' WHERE id = 21")
        assert await drop(look) == [late]
        assert await look.value("SELECT count(*) FROM archibald.job_history") == 0


async def test_a_live_job_is_untouched_and_keeps_its_day(app: Archibald, look: Look, database: str) -> None:
    waiting, doubtful, other = await days(look, 60, 50, 40)
    jobs = [await app.enqueue("submit-order", user_id=user, delay=3600) for user in ("alice", "bob")]
    await look.rows(
        "UPDATE archibald.jobs SET created_at = now() - CASE user_id WHEN 'bob' THEN interval '50 d' ELSE '60 d' END, "
        "state = CASE user_id WHEN 'bob' THEN 'needs_review' ELSE 'queued' END"
    )
    before = fingerprint(database)
    assert await drop(look) == [other]
    after = fingerprint(database)
    assert after["archibald.jobs"] == before["archibald.jobs"]
    for job in jobs:
        assert await app.cancel(job.id) == "cancelled"
    assert await drop(look) == []  # they have ended now
    assert {row[0] for row in await look.rows("SELECT tableoid::regclass::text FROM archibald.job_history")} == {
        f"archibald.{waiting}",
        f"archibald.{doubtful}",
    }


async def test_old_jobs_in_the_default_partition_are_deleted_500_a_call_and_no_others(look: Look) -> None:
    await finished(look, "99 days", "31 days", 1, 620)
    await finished(look, "99 days", "29 days", 1001, 1010)
    for left in (130, 10, 10):
        assert await drop(look) == []
        assert await look.value("SELECT count(*) FROM archibald.job_history_default") == left
    assert await look.value("SELECT min(id) FROM archibald.job_history_default") == 1001


async def test_only_what_the_queue_made_is_dropped(look: Look, database: str) -> None:
    day = await today(look) - timedelta(days=100)
    (ours,) = await days(look, 100)
    await look.rows("CREATE SCHEMA elsewhere")
    # not attached; another name; a good name, but other bounds; a good name, but in another schema; no day at all
    await look.rows(f"CREATE TABLE archibald.{name_of(day - timedelta(days=1))} AS SELECT 1 AS one")
    await attach(look, "archibald.job_history_old", "'2001-01-01Z'", "'2001-01-02Z'")
    await attach(look, "archibald.job_history_20020101", "'2002-01-01Z'", "'2002-02-01Z'")
    await attach(look, "archibald.job_history_20020302", "'2002-03-01Z'", "'2002-03-02Z'")
    await attach(look, "archibald.job_history_20020401", "'2002-04-01 01:00Z'", "'2002-04-02 01:00Z'")
    await attach(look, "archibald.job_history_99999999", "'2002-05-01Z'", "'2002-05-02Z'")
    await attach(look, "elsewhere.job_history_20030101", "'2003-01-01Z'", "'2003-01-02Z'")
    await look.rows("CREATE TABLE archibald.job_history_20030101 (finished_at timestamptz)")
    await attach(look, "archibald.job_history_20000101", "MINVALUE", "'2000-01-02Z'")
    await attach(look, "archibald.job_history_20000102", "'infinity'", "MAXVALUE")
    for number, created in enumerate(("2001-01-01", "2002-01-01", "2002-03-01", "2002-04-01 12:00", "2003-01-01")):
        when = f"'{created}Z'::timestamptz"
        await look.rows(FINISHED.format(created=when, finished=when, first=number, last=number))
    before = fingerprint(database)
    assert await drop(look) == [ours]
    after = fingerprint(database)
    del before[f"archibald.{ours}"]
    assert after == before


async def test_today_and_the_days_to_come_are_never_dropped(look: Look) -> None:
    async with look.connection.transaction():
        ahead = {name_of(await today(look) + timedelta(days=n)) for n in range(8)}
        await look.rows("SELECT archibald.make_history_partitions(7)")
        yesterday, before = await days(look, 1, 2)
        assert await drop(look, 1) == [before]
        assert await partitions(look) == ahead | {yesterday}
    for refused in (0, -1, 36501, 2**31 - 1, None):
        with pytest.raises(psycopg.errors.InvalidParameterValue, match="p_days must be 1 to 36500"):
            await look.rows(DROP, refused)
    assert await partitions(look) == ahead | {yesterday}


async def test_a_dropped_job_is_unknown_and_its_key_is_free(app: Archibald, look: Look, database: str) -> None:
    stage = Stage(hold=False)
    stage.register(app, "submit-order")
    await look.rows("SET archibald.dedup_window = '99999999'")
    enqueue = "SELECT archibald.enqueue('alice', 'submit-order', '{}', 'key')"
    number = await look.value(enqueue)
    async with working(app):
        await look.until_state(number, "completed")
    job = await app.enqueue("submit-order", user_id="alice", idempotency_key="key")
    assert job.id == await look.value(enqueue) == number
    # it was all 60 days ago
    (day,) = await days(look, 60)
    await look.rows(
        "UPDATE archibald.job_history SET created_at = created_at - interval '60 d', finished_at = finished_at - interval '60 d'"
    )
    await look.rows("UPDATE archibald.idempotency_keys SET job_created_at = job_created_at - interval '60 d'")
    assert await look.value(enqueue) == number
    assert await drop(look) == [day]
    for gone in (app.job(number), app.cancel(number), job.wait(), job.record()):
        with pytest.raises(UnknownJobError, match=f"there is no job {number};"):
            await gone
    shown = await asyncio.to_thread(command, "job", str(number), database=database)
    assert f"there is no job {number};" in shown.refused()
    again = await look.value(enqueue)
    assert again != number
    assert await look.job(again, "state") == ("queued",)


# -- beside others


async def test_an_open_reader_delays_the_drop_and_does_not_stop_a_settle(look: Look, database: str) -> None:
    (day,) = await days(look, 60)
    await finished(look, "60 days", "60 days", 1001, 1001)
    async with hand(database) as worker, looking(database) as reader, looking(database) as dropper:
        async with reader.connection.transaction():
            assert await reader.value("SELECT count(*) FROM archibald.all_jobs") == 1
            trying = asyncio.create_task(_drop_again_and_again(dropper))
            for _ in range(5):
                await look.value("SELECT archibald.enqueue('alice', 'submit-order')")
                job = await worker.claim_one()
                await look.until(f"SELECT EXISTS ({WAITS})")
                await worker.settle(job)  # behind that request; it raises if it waits for over 200 ms
                await look.until_state(job.job_id, "completed")
            assert not trying.done()
            assert day in await partitions(look)
        assert await trying == [day]  # the reader is gone: a later call drops it
    assert day not in await partitions(look)


async def _drop_again_and_again(dropper: Look) -> list[str]:
    while not (dropped := await drop(dropper)):
        pass
    return dropped


async def test_a_day_that_cannot_be_dropped_does_not_keep_the_others(look: Look, database: str) -> None:
    read, viewed, closed, free = await days(look, 63, 62, 61, 60)
    await look.rows(f"CREATE VIEW public.mine AS SELECT id FROM archibald.{viewed}")
    async with looking(database) as reader, looking(database) as owner:
        async with reader.connection.transaction(), owner.connection.transaction():
            await reader.rows(f"SELECT FROM archibald.{read}")
            await owner.rows(f"LOCK TABLE archibald.{closed} IN ACCESS EXCLUSIVE MODE")
            assert await drop(look) == [free]
        assert await drop(look) == [read, closed]
    await look.rows("DROP VIEW public.mine")
    assert await drop(look) == [viewed]


async def test_of_two_that_drop_at_once_one_does_it(look: Look, database: str) -> None:
    over = await days(look, 61, 60)
    async with looking(database) as other:
        await finished(look, "99 days", "31 days", 1, 620)
        async with look.connection.transaction():
            assert await drop(look) == over
            assert await drop(other) == []
        async with look.connection.transaction():
            await look.rows(
                "SELECT archibald.make_history_partitions(7)"
            )  # also one of the two, and locks no table here
            assert await drop(other) == []
            assert await other.value("SELECT count(*) FROM archibald.job_history_default") == 120
        assert await drop(other) == []
        assert await other.value("SELECT count(*) FROM archibald.job_history_default") == 0
    assert not set(over) & await partitions(look)


async def test_a_hundred_settles_during_drops_lose_nothing(app: Archibald, look: Look, database: str) -> None:
    over = await days(look, *range(90, 40, -1))
    stage = Stage(hold=False)
    stage.register(app, "submit-order", "download-ddt-pdf")
    jobs = [
        await app.enqueue(("submit-order", "download-ddt-pdf")[n % 2], user_id=f"user-{n % 20}") for n in range(100)
    ]
    async with looking(database) as dropper, working(app):
        dropped = []
        for p_days in range(89, 39, -1):
            dropped += await drop(dropper, p_days)
        await look.until("SELECT count(*) = 100 FROM archibald.job_history WHERE state = 'completed'")
    assert set(over) >= set(dropped)
    assert len(stage.started) == 100
    found = await look.rows("SELECT id, attempt, losses FROM archibald.all_jobs ORDER BY id")
    assert found == [(job.id, 1, 0) for job in jobs]


# -- what a worker does of it


async def test_a_call_holds_the_history_for_a_tenth_of_a_second_and_the_worker_calls_until_all_is_dropped(
    app: Archibald, look: Look
) -> None:
    over = await days(look, 64, 63, 62, 61, 60)
    await look.rows(
        "CREATE FUNCTION public.take_long() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(0.11); END $$"
    )
    await look.rows("CREATE EVENT TRIGGER take_long ON sql_drop EXECUTE FUNCTION public.take_long()")
    assert await drop(look) == over[:1]
    assert await drop(look) == over[1:2]
    async with working(app):
        await look.until(
            "SELECT bool_and(to_regclass(name) IS NULL) FROM unnest(%s::text[]) AS name", _qualified(*over)
        )


async def _replace(look: Look, function: str, body: str) -> None:
    """Let a function of the history do something else."""
    await look.rows(
        f"CREATE OR REPLACE FUNCTION archibald.{function}(p_days integer) RETURNS SETOF text LANGUAGE plpgsql AS "
        f"$$ BEGIN {body} END $$"
    )


async def test_the_retention_of_the_setting_reaches_the_worker_which_logs_what_it_drops(
    app: Archibald, look: Look, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("ARCHIBALD_RETENTION_DAYS", "10")
    caplog.set_level(logging.INFO)
    first, second, kept = await days(look, 14, 13, 9)
    async with working(app):
        await look.until("SELECT to_regclass(%s) IS NULL AND to_regclass(%s) IS NULL", *_qualified(first, second))
        await _until_logged(caplog, f"dropped {second}: its last job ended over 10 days ago")
    lines = [record.getMessage() for record in caplog.records if record.name == history.__name__]
    assert lines == [f"dropped {name}: its last job ended over 10 days ago" for name in (first, second)]
    assert kept in await partitions(look)


def _qualified(*names: str) -> list[str]:
    return [f"archibald.{name}" for name in names]


async def _until_logged(caplog: pytest.LogCaptureFixture, words: str) -> None:
    async with asyncio.timeout(20):
        while not any(words in record.getMessage() for record in caplog.records):  # noqa: ASYNC110  # a log has no event
            await asyncio.sleep(0.01)


async def test_after_a_start_the_partitions_of_the_next_seven_days_are_there(app: Archibald, look: Look) -> None:
    for name in await partitions(look):
        await look.rows(f"DROP TABLE archibald.{name}")
    async with working(app):
        await look.until(f"SELECT count(*) = 8 FROM ({PARTITIONS}) AS p")
        day = await today(look)
        assert await partitions(look) >= {name_of(day + timedelta(days=n)) for n in range(7)}


async def test_what_could_not_be_dropped_is_tried_again_with_the_next_hour(
    app: Archibald, look: Look, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "HOURLY", 0.05)
    (day,) = await days(look, 60)
    async with looking(database) as reader:
        await reader.rows("BEGIN")
        await reader.rows("SELECT FROM archibald.all_jobs")
        async with working(app):
            for _ in range(2):  # it has been tried, and is tried again
                await look.until(f"SELECT EXISTS ({WAITS})")
                await look.until(f"SELECT NOT EXISTS ({WAITS})")
            assert day in await partitions(look)
            await reader.rows("COMMIT")
            await look.until("SELECT to_regclass(%s) IS NULL", *_qualified(day))


async def test_an_error_in_making_partitions_does_not_stop_dropping_and_the_other_way_round(
    app: Archibald, look: Look, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(history, "HOURLY", 0.05)
    (day,) = await days(look, 60)
    for name in await partitions(look) - {day}:
        await look.rows(f"DROP TABLE archibald.{name}")
    make = await look.value("SELECT pg_get_functiondef('archibald.make_history_partitions(integer)'::regprocedure)")
    await _replace(look, "make_history_partitions", "RAISE EXCEPTION 'no room';")
    async with working(app):
        await look.until("SELECT to_regclass(%s) IS NULL", *_qualified(day))
        await _until_logged(caplog, "upkeep of the history met an error, the next attempt is in an hour: no room")
        await _replace(look, "drop_history_partitions", "RAISE EXCEPTION 'no way';")
        await _until_logged(caplog, "no way")
        await look.rows(make)
        await look.until(f"SELECT count(*) = 8 FROM ({PARTITIONS}) AS p")


async def test_the_rest_of_the_upkeep_does_not_wait_for_the_history(
    app: Archibald, look: Look, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maintenance, "SWEEP", 0.0)
    await _replace(look, "drop_history_partitions", "PERFORM pg_sleep(3600);")
    async with working(app):
        await look.until("SELECT EXISTS (SELECT FROM pg_stat_activity WHERE wait_event = 'PgSleep')")
        await look.rows("INSERT INTO archibald.idempotency_keys VALUES ('alice', 'old', -1, now(), now())")
        await look.until("SELECT count(*) = 0 FROM archibald.idempotency_keys")


async def test_after_a_lost_connection_it_is_tried_again_and_not_only_in_an_hour(
    app: Archibald, look: Look, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(history, "AGAIN", 0.05)
    (day,) = await days(look, 60)
    original = await look.value("SELECT pg_get_functiondef('archibald.drop_history_partitions(integer)'::regprocedure)")
    sleeps = "FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database()"
    await _replace(look, "drop_history_partitions", "PERFORM pg_sleep(3600);")
    async with working(app):
        await look.until(f"SELECT EXISTS (SELECT {sleeps})")
        await look.rows(original)
        await look.rows(f"SELECT pg_terminate_backend(pid) {sleeps}")
        await look.until("SELECT to_regclass(%s) IS NULL", *_qualified(day))
    assert any("upkeep of the history lost its connection" in record.getMessage() for record in caplog.records)


# -- with the database's clock moved


@pytest.mark.slow
@pytest.mark.skipif(LIBRARY is None, reason="libfaketime is not installed (on Debian: apt install libfaketime)")
async def test_a_worker_lives_through_a_midnight_and_a_month_of_history() -> None:
    midnight = datetime.combine(datetime.now(UTC).date() + timedelta(days=2), datetime.min.time(), UTC)
    first, second = (midnight - timedelta(days=1)).date(), midnight.date()

    def day(number: int) -> str:
        return name_of(first + timedelta(days=number))

    with clocked_server() as server:
        with server.running(midnight - timedelta(minutes=10)) as dsn:
            await asyncio.to_thread(migrations.upgrade, dsn)
            async with _worker_at(dsn):
                async with looking(dsn) as look:
                    jobs = [await look.value("SELECT archibald.enqueue('alice', 'submit-order')")]
                    await look.until_state(jobs[0], "completed")
                server.restart(midnight - timedelta(seconds=3))
                async with _looking_again(dsn) as look:
                    while await look.value("SELECT clock_timestamp() < %s", midnight + timedelta(seconds=1)):
                        jobs.append(await look.value("SELECT archibald.enqueue('bob', 'submit-order')"))
                        await look.until_state(jobs[-1], "completed")
                    late = await look.value(
                        "SELECT archibald.enqueue('zoe', 'submit-order', run_after => now() + interval '20 days')"
                    )
                    # the one worker that was there before midnight
                    assert await look.rows("SELECT started_at < %s, fenced_at FROM archibald.workers", midnight) == [
                        (True, None)
                    ]
                    found = await look.rows(
                        "SELECT tableoid::regclass::text, (created_at AT TIME ZONE 'UTC')::date, array_agg(id) "
                        "FROM archibald.job_history GROUP BY 1, 2 ORDER BY 1"
                    )
                    assert [row[:2] for row in found] == [
                        (f"archibald.{name_of(date)}", date) for date in (first, second)
                    ]
                    assert sorted(found[0][2] + found[1][2]) == jobs
        expected = {day(n) for n in range(8)}

        # The delayed job runs on its day, and its row goes to the day of its enqueue.
        async with _started_at(server, midnight + timedelta(days=20, hours=1)) as look:
            await look.until_state(late, "completed")
            assert await look.value(
                "SELECT tableoid::regclass::text FROM archibald.job_history WHERE id = %s", late
            ) == (f"archibald.{day(1)}")
            expected |= {day(n) for n in range(21, 29)}
            assert await partitions(look) == expected

        async with _started_at(server, midnight + timedelta(days=30, hours=1)) as look:
            expected = expected - {day(0)} | {day(n) for n in range(31, 39)}
            assert await partitions(look) == expected
            assert await look.value("SELECT min(id) FROM archibald.job_history") == min(found[1][2])

        # All days that were over 30 days ago, but not that of the delayed job.
        async with _started_at(server, midnight + timedelta(days=50)) as look:
            expected = expected - {day(n) for n in range(2, 8)} | {day(n) for n in range(51, 59)}
            assert await partitions(look) == expected

        async with _started_at(server, midnight + timedelta(days=51, hours=2)) as look:
            expected = expected - {day(1), day(21)} | {day(59)}
            assert await partitions(look) == expected
            assert await look.value("SELECT count(*) FROM archibald.all_jobs") == 0


@contextlib.asynccontextmanager
async def _worker_at(dsn: str) -> AsyncIterator[None]:
    stage = Stage(hold=False)
    async with Archibald(dsn) as app:
        stage.register(app, "submit-order")
        async with working(app):
            yield


@contextlib.asynccontextmanager
async def _looking_again(dsn: str) -> AsyncIterator[Look]:
    """Look at a server that is just starting."""
    async with contextlib.AsyncExitStack() as stack:
        async with asyncio.timeout(20):
            while True:
                with contextlib.suppress(psycopg.OperationalError):
                    look = await stack.enter_async_context(looking(dsn))
                    break
                await asyncio.sleep(0.01)
        yield look


@contextlib.asynccontextmanager
async def _started_at(server: ClockedServer, when: datetime) -> AsyncIterator[Look]:
    """Start the server at this time, and a worker that has looked after the history once."""
    ahead = name_of((when + timedelta(days=history.PARTITION_DAYS)).date())
    with server.running(when) as dsn:
        async with _worker_at(dsn), looking(dsn) as look:
            # its connection shows its last statement until it is closed
            await look.until(
                "SELECT to_regclass(%s) IS NOT NULL AND NOT EXISTS ("
                "SELECT FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND query ~ 'history_partitions')",
                *_qualified(ahead),
            )
            yield look
