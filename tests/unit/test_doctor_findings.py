"""What the doctor says of facts that a test's server cannot be brought to."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from archibald_pgq.domain.doctor import queue, server, sessions, tables, workers
from archibald_pgq.domain.doctor.finding import Severity, lasted

OK, NOTICE, SERIOUS = Severity.OK, Severity.NOTICE, Severity.SERIOUS


def way(pooler: bool, setting: str = "ARCHIBALD_DATABASE_URL") -> server.Way:
    return server.Way(setting, "db:6432, database shop", pooler)


def test_a_pooler_is_noticed_where_workers_have_no_other_way_and_serious_as_their_way() -> None:
    (alone,) = server.connection(way(True), None)
    assert alone.severity is NOTICE
    assert alone.found == (
        "the connection to db:6432, database shop goes through a connection pooler, where a worker refuses to start"
    )
    (beside,) = server.connection(way(True), way(False, "the direct URL"))
    assert (beside.severity, beside.remedy) == (OK, None)
    assert beside.found.endswith("goes through a connection pooler, and the direct URL is direct")
    (twice,) = server.connection(way(True), way(True, "the direct URL"))
    assert twice.severity is SERIOUS
    assert twice.remedy == "set the direct URL to the address of Postgres itself"


@pytest.mark.parametrize(("usage", "severity"), [(0.0, OK), (0.2, NOTICE), (0.6, SERIOUS)])
def test_a_queue_of_notifications_that_fills_up_is_told(usage: float, severity: Severity) -> None:
    (version,) = server.server(server.Server("18.4", 180004, usage), 14)
    (notify,) = server.notify_queue(usage, None)
    assert (version.severity, notify.severity) == (OK, severity)
    assert notify.found.startswith(f"{usage:.1%} of the server's queue of notifications is in use")


def test_who_holds_the_queue_of_notifications_back_is_named_or_said_to_be_a_guess() -> None:
    holder = server.NotifyHolder(7, "psql", "me", "shop", "idle in transaction", None, timedelta(minutes=5), named=True)
    (found,) = server.notify_queue(0.6, holder)
    assert found.found == (
        "60.0% of the server's queue of notifications is in use; the server says that it waits for backend 7 (application psql, user me) "
        "of database shop, idle in transaction, its transaction open for 5 min"
    )
    assert found.remedy == "let it end its transaction and read, or SELECT pg_terminate_backend(7)"
    (guess,) = server.notify_queue(0.2, replace(holder, named=False))
    assert "cannot be seen, most likely it is the session with the oldest transaction: backend 7" in guess.found
    assert guess.remedy is not None
    assert guess.remedy.startswith("the server's log names the session")


def test_a_server_that_is_too_old_is_serious() -> None:
    (version,) = server.server(server.Server("13.9", 130009, 0.0), 14)
    assert (version.severity, version.remedy) == (SERIOUS, "upgrade the server to PostgreSQL 14 or newer")


def test_a_replication_slot_that_is_far_behind_is_named() -> None:
    slot = sessions.Holder("slot", None, "standby", None, None, "not in use", 20_000_000)
    young = sessions.Holder("session", 7, "psql", "me", timedelta(seconds=3), "active", 30_000_000)
    (found,) = sessions.oldest_transaction([young, slot])
    assert found.severity is SERIOUS
    assert found.found == (
        "the replication slot standby (not in use) keeps dead rows of the last 20,000,000 transactions from being removed"
    )
    assert found.remedy == "start its receiver, or SELECT pg_drop_replication_slot('standby')"


@pytest.mark.parametrize("switch", ["autovacuum", "track_counts"])
def test_a_server_without_autovacuum_is_serious(switch: str) -> None:
    seen = tables.Vacuum(**{"autovacuum": True, "track_counts": True, switch: False})
    (found,) = tables.autovacuum(seen, [])
    assert found.severity is SERIOUS
    assert found.remedy == f"ALTER SYSTEM SET {switch} = on; SELECT pg_reload_conf()"


def test_a_full_lock_table_and_hidden_activity_are_told() -> None:
    capacity = workers.Capacity(97, 10, lock_places=6400, locks=5000, track_activities=False)
    locks, hidden = workers.settings([], capacity, [])
    assert (locks.severity, hidden.severity) == (SERIOUS, NOTICE)
    assert "6,400 places, 5,000 are in use" in locks.found
    assert hidden.found.startswith("track_activities is off")


@pytest.mark.parametrize(
    ("value", "seconds"), [("500", "0.5"), ("500ms", "0.5"), ("5s", "5"), ("0.1min", "6"), ("soon", "")]
)
def test_a_timeout_is_read_as_postgres_writes_it(value: str, seconds: str) -> None:
    capacity = workers.Capacity(97, 10, 6400, 1, track_activities=True)
    (found,) = workers.settings([], capacity, [workers.Timeout("statement_timeout", value, "for shop")])
    if seconds:
        assert found.found == f"statement_timeout is {seconds} s for shop, and workers meet it"
    else:
        assert found.severity is OK


def test_a_sample_says_that_it_is_one() -> None:
    (fine,) = queue.lanes([], queue.Looked(20_000, sample=True))
    assert fine.found == "20,000 lanes (a sample) agree with their jobs"


@pytest.mark.parametrize(
    ("seconds", "words"), [(-1, "0.0 s"), (0.44, "0.4 s"), (90, "90 s"), (600, "10 min"), (1e6, "11 days")]
)
def test_lengths_of_time_are_short(seconds: float, words: str) -> None:
    assert lasted(timedelta(seconds=seconds)) == words
