"""A seed that was printed plays the same faults again."""

from __future__ import annotations

from itertools import pairwise

from tests.chaos.schedule import KINDS, LEASE, Aim, schedule


def test_the_schedule_is_a_function_of_the_seed_and_has_every_kind() -> None:
    faults = schedule(5, 120)
    assert faults == schedule(5, 120) != schedule(6, 120)
    assert {fault.kind for fault in faults} == {kind.name for kind in KINDS}
    assert [fault.at for fault in faults] == sorted(fault.at for fault in faults)
    assert all(fault.at + fault.seconds < 120 for fault in faults)
    assert schedule(5, 60) == [fault for fault in faults if fault.at + fault.seconds < 60]


def test_in_each_minute_workers_with_running_handlers_are_cut_off_and_stopped_for_longer_than_the_lease() -> None:
    for seed in range(20):
        hit = [fault for fault in schedule(seed, 60) if fault.aim is not Aim.ANY and fault.seconds > LEASE]
        assert sum(fault.kind.startswith("black hole") for fault in hit) >= 5
        assert sum(fault.kind.startswith("stop") for fault in hit) >= 3


def test_faults_overlap() -> None:
    faults = schedule(1, 60)
    assert sum(fault.at + fault.seconds > after.at for fault, after in pairwise(faults)) > 10
