"""How much a worker takes at once: many short jobs, one long one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from archibald_pgq.domain.operations import JobClass, Policy
from archibald_pgq.domain.pace import AHEAD, AT_HAND, LARGEST, LONGEST_TURN, TELLING, TURN, Pace, jobs_for

READ = Policy(JobClass.READ)
DURATIONS = st.floats(0.0, 600.0)


@given(DURATIONS)
def test_a_turn_has_as_many_jobs_as_run_in_50_ms_and_at_least_one(seconds: float) -> None:
    jobs = jobs_for(seconds)
    assert 1 <= jobs <= LARGEST
    assert jobs == 1 or jobs * seconds <= TURN


def test_of_an_unknown_kind_and_of_a_long_one_jobs_come_alone() -> None:
    pace = Pace()
    assert pace.short() == {}
    pace.job_ended("slow", READ, 5.0)
    assert pace.short() == {}
    pace.job_ended("fast", READ, 0.01)
    assert pace.short() == {"fast": 5}


@pytest.mark.parametrize(
    ("policy", "shared"),
    [
        (Policy(JobClass.WRITE), False),
        (Policy(JobClass.WRITE, idempotent=True), True),
        (Policy(JobClass.READ), True),
        (Policy(JobClass.SYNC), False),
    ],
)
def test_only_what_may_run_twice_and_is_no_sync_shares_a_turn(policy: Policy, shared: bool) -> None:
    pace = Pace()
    pace.job_ended("kind", policy, 0.001)
    assert bool(pace.short()) == shared


@given(st.lists(DURATIONS, min_size=30, max_size=60), st.floats(1.0, 600.0))
def test_a_kind_that_has_become_slow_comes_alone_again(before: list[float], seconds: float) -> None:
    pace = Pace()
    for duration in before:
        pace.job_ended("kind", READ, duration)
    pace.job_ended("kind", READ, seconds)
    assert pace.short() == {}


@given(st.lists(st.tuples(st.integers(1, LARGEST), DURATIONS), min_size=1, max_size=50), st.integers(1, 100))
def test_what_waits_for_consumers_is_bounded(lanes: list[tuple[int, float]], consumers: int) -> None:
    pace = Pace()
    for jobs, seconds in lanes:
        pace.lane_ended(jobs, seconds, min(seconds, 1.0))
    assert 0 <= pace.ahead(consumers) <= AHEAD


def short_lanes() -> Pace:
    pace = Pace()
    for _ in range(300):
        pace.lane_ended(1, 0.0001, 0.0001)
    return pace


def test_after_lanes_of_one_job_each_the_next_ones_bring_few_and_more_each_time_that_they_were_full() -> None:
    pace = short_lanes()
    pace.job_ended("fast", READ, 0.0001)
    asked = []
    for _ in range(5):
        asked.append(pace.short()["fast"])
        pace.lane_ended(asked[-1], asked[-1] * 0.0001, asked[-1] * 0.0001)
    assert asked == [4, 10, 22, 46, LARGEST]


def test_the_first_lanes_of_a_worker_tell_more_than_later_ones() -> None:
    pace = Pace()
    pace.lane_ended(1, 0.0001, 0.0001)
    assert pace.ahead(10) == pytest.approx(AHEAD, abs=1)


def test_one_long_lane_among_short_ones_counts_at_once_and_is_forgotten_slowly() -> None:
    pace = short_lanes()
    before = pace.ahead(10)
    pace.lane_ended(1, TURN, TURN)
    assert pace.ahead(10) < 5
    pace.lane_ended(1, 0.0001, 0.0001)
    assert pace.ahead(10) < 5 < before


def test_a_short_stall_does_not_decide_how_many_jobs_the_next_turns_have() -> None:
    pace = Pace()
    for _ in range(100):
        pace.job_ended("fast", READ, 0.001)
    pace.job_ended("fast", READ, 0.02)
    assert pace.short()["fast"] >= LARGEST // 2


def test_of_lanes_that_last_a_turn_no_more_wait_than_begin_before_they_would_go_back() -> None:
    assert Pace().ahead(10) == 2


@pytest.mark.parametrize(("ran", "lanes"), [(TURN, 2), (TURN / 10, 4)])
def test_of_lanes_that_take_turns_more_wait_because_all_of_them_end_together(ran: float, lanes: int) -> None:
    pace = Pace()
    for _ in range(300):
        pace.lane_ended(15, TURN, ran)
    assert pace.ahead(10) == lanes


@given(st.floats(0.00001, 0.01))
def test_as_many_lanes_are_taken_ahead_as_a_turn_brings_in_50_ms(each: float) -> None:
    pace = short_lanes()
    for _ in range(100):
        pace.turn_ended(TELLING, TELLING * each)
    assert pace.ahead(10) <= AT_HAND
    assert pace.ahead(10) == pytest.approx(min(AT_HAND, max(LONGEST_TURN / each, TELLING)), abs=1)


def test_after_a_turn_that_met_a_stall_it_learns_again_what_turns_take() -> None:
    pace = short_lanes()
    pace.turn_ended(300, 5.0)
    for _ in range(100):
        lanes = pace.ahead(10)
        pace.turn_ended(lanes, lanes * 0.0001)
    assert pace.ahead(10) == pytest.approx(LONGEST_TURN / 0.0001, abs=1)


def test_a_small_turn_tells_nothing_of_a_large_one() -> None:
    pace = short_lanes()
    pace.turn_ended(TELLING - 1, 10.0)
    assert pace.ahead(10) == pytest.approx(AHEAD, abs=1)


@given(st.floats(0.0002, 0.01), st.floats(0.0, 2.0))
def test_after_a_turn_of_up_to_twice_the_usual_time_the_next_one_brings_lanes_too(each: float, times: float) -> None:
    """What it brought is at hand when the next one is sent; the estimate of what fits into a turn has fallen meanwhile."""
    pace = short_lanes()
    for _ in range(100):
        pace.turn_ended(TELLING, TELLING * each)
    brought = pace.ahead(10)
    pace.turn_ended(brought, brought * each * times)
    assert pace.ahead(10, brought) > 0


def test_nothing_more_is_taken_ahead_while_much_more_than_a_turn_brings_is_at_hand() -> None:
    pace = short_lanes()
    assert pace.ahead(10, 2 * pace.ahead(10)) == 0
