"""A seed that was printed plays the same faults again."""

from __future__ import annotations

from tests.chaos.schedule import KINDS, schedule


def test_the_schedule_is_a_function_of_the_seed_and_has_every_kind() -> None:
    faults = schedule(5, 120)
    assert faults == schedule(5, 120) != schedule(6, 120)
    assert {fault.kind for fault in faults} == set(KINDS)
    assert [fault.at for fault in faults] == sorted(fault.at for fault in faults)
    assert faults[-1].at < 120
    assert schedule(5, 60) == [fault for fault in faults if fault.at < 60]
