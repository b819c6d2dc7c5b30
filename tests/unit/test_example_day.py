"""The day of the example as data: what the demo relies on."""

from __future__ import annotations

import importlib
from collections import Counter

from archibald_pgq.examples.erp import day

from archibald_pgq.domain.operations import CATALOGUE
from archibald_pgq.domain.payload import check_delay, check_key, check_kind, check_payload, check_user_id


def test_every_entry_is_a_job_that_the_queue_accepts() -> None:
    for entry in day.ENTRIES:
        check_user_id(entry.user_id)
        check_kind(entry.kind)
        check_payload(entry.data)
        check_delay(entry.delay)
        if entry.idempotency_key is not None:
            check_key(entry.idempotency_key)


def test_the_day_is_the_same_at_every_start() -> None:
    before = day.ENTRIES

    assert before == importlib.reload(day).ENTRIES


def test_entries_are_in_the_order_of_their_times() -> None:
    times = [entry.at for entry in day.ENTRIES]

    assert times == sorted(times)
    assert times[0] >= 0


def test_all_60_agents_work_and_all_15_kinds_occur() -> None:
    assert len(set(day.AGENTS)) == 60
    assert {entry.user_id for entry in day.ENTRIES} == set(day.AGENTS)
    assert {entry.kind for entry in day.ENTRIES} == set(CATALOGUE)


def test_the_hot_agent_has_more_than_40_jobs() -> None:
    own = [entry for entry in day.ENTRIES if entry.user_id == day.HOT_AGENT]

    assert len({entry.idempotency_key or place for place, entry in enumerate(own)}) > 40


def test_writes_come_in_bursts() -> None:
    seconds = Counter(int(entry.at) for entry in day.ENTRIES if entry.kind == "submit-order")

    assert max(seconds.values()) >= 15


def test_some_keys_and_some_syncs_are_asked_for_twice_and_some_jobs_are_delayed() -> None:
    keys = Counter((entry.user_id, entry.idempotency_key) for entry in day.ENTRIES if entry.idempotency_key)
    syncs = Counter((entry.user_id, entry.kind) for entry in day.ENTRIES if entry.kind in day.SYNCS)

    assert sum(count > 1 for count in keys.values()) >= 10
    assert sum(count > 1 for count in syncs.values()) >= 10
    assert sum(entry.delay > 0 for entry in day.ENTRIES) >= 10


def test_entries_with_one_key_are_equal_but_for_their_time() -> None:
    meant: dict[tuple[str, str], day.Entry] = {}
    for entry in day.ENTRIES:
        if entry.idempotency_key is not None:
            first = meant.setdefault((entry.user_id, entry.idempotency_key), entry)
            assert entry._replace(at=first.at) == first


def test_the_locked_agent_has_nothing_to_do_before_another_program_takes_its_lock() -> None:
    assert min(entry.at for entry in day.ENTRIES if entry.user_id == day.LOCKED_AGENT) > day.LOCKED_AT


def test_an_order_number_is_submitted_by_one_agent_and_before_it_is_edited_or_sent() -> None:
    submitted: dict[int, str] = {}
    for entry in day.ENTRIES:
        number = entry.data.get("order")
        if entry.kind == "submit-order":
            assert submitted.setdefault(number, entry.user_id) == entry.user_id
        elif entry.kind in {"edit-order", "send-to-verona"}:
            assert submitted[number] == entry.user_id
