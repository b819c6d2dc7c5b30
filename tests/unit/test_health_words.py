"""What a probe is told of workers, and whether that is well."""

from __future__ import annotations

from datetime import timedelta

import pytest

from archibald_pgq.domain.health import Pulse, judge
from archibald_pgq.domain.views import Health


def pulse(number: int, health: Health, seconds: float = 0.4) -> Pulse:
    return Pulse(number, health, timedelta(seconds=seconds), 6, 7, 10)


@pytest.mark.parametrize(
    ("health", "well", "words"),
    [
        (Health.ALIVE, True, "worker 3 is well: beat 0.4 s ago, 7 of 10 consumers busy"),
        (Health.SILENT, False, "worker 3 is silent: beat 0.4 s ago, its lease is 6 s"),
        (Health.LOST, False, "worker 3 is lost: beat 0.4 s ago, its agents were given to others"),
        (Health.STOPPED, False, "worker 3 has stopped: beat 0.4 s ago"),
    ],
)
def test_of_one_worker_its_state_is_told(health: Health, well: bool, words: str) -> None:
    verdict = judge([pulse(3, health)], "on this host")
    assert (verdict.well, verdict.sentence) == (well, words)


def test_without_a_worker_nothing_is_well() -> None:
    assert judge([], "on this host").sentence == "no worker is registered on this host"


def test_of_several_workers_the_one_that_is_not_well_is_told() -> None:
    verdict = judge([pulse(1, Health.ALIVE), pulse(2, Health.SILENT, 9)], "anywhere")
    assert (verdict.well, verdict.sentence) == (False, "worker 2 is silent: beat 9.0 s ago, its lease is 6 s")


def test_of_several_workers_that_are_well_the_oldest_beat_and_all_consumers_are_told() -> None:
    verdict = judge([pulse(1, Health.ALIVE), pulse(2, Health.ALIVE, 0.9), pulse(3, Health.LOST)], "anywhere")
    assert verdict.sentence == "2 workers are well: beats at most 0.9 s ago, 14 of 20 consumers busy"
    assert [shown.id for shown in verdict.workers] == [1, 2]
