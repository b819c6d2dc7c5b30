"""The checker accepts every history that a queue leaves which keeps its promises, and refuses each of them once it is spoilt anywhere."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.acceptance.events import Event, JobRow
from tests.acceptance.history import violations
from tests.unit.histories import History

NUMBERS = st.lists(st.tuples(st.integers(0, 13), st.integers(0, 11)), max_size=60)
EXAMPLES = settings(max_examples=150, deadline=None)

Spoilt = tuple[list[Event], list[JobRow], str]


def made(numbers: list[tuple[int, int]]) -> History:
    history = History()
    history.feed(numbers)
    return history


@EXAMPLES
@given(NUMBERS)
def test_no_history_that_keeps_the_promises_is_refused(numbers: list[tuple[int, int]]) -> None:
    history = made(numbers)
    assert violations(history.events, list(history.rows.values()), history.lost) == []


def without(events: list[Event], event: Event) -> list[Event]:
    return [other for other in events if other is not event]


def spoilt_rows(history: History) -> Iterator[Spoilt]:
    """Of each row: lost, doubled, not ended; of an owner's end: written by the owner before."""
    rows = list(history.rows.values())
    for place, row in enumerate(rows):
        rest = rows[:place] + rows[place + 1 :]
        yield history.events, rest, "in 0 rows"
        yield history.events, [*rows, row], "in 2 rows"
        yield history.events, [*rest, replace(row, state="running")], "still running"
        if row.state == "completed":
            assert row.epoch is not None
            yield history.events, [*rest, replace(row, epoch=row.epoch - 1)], "wrote the end"
            yield history.events, [*rest, replace(row, worker_id=99)], "wrote the end"
            yield history.events, [*rest, replace(row, user_id="dave")], "'s"
            if row.worker_id not in history.lost:
                yield history.events, [*rest, replace(row, state="failed")], "ran it to its end"
    last = {event.job_id: event.at for event in history.events if event.what == "start"}
    for at, other in history.passed_over:
        aside = any(event.what == "retried" and event.job_id == other and event.at > at for event in history.events)
        if last.get(other, 0.0) > at and not aside:  # else it was cancelled or put aside, and nobody wrote down when
            better = [replace(row, priority=-1, is_sync=False) if row.job_id == other else row for row in rows]
            yield history.events, better, "which goes first"


def spoilt_events(history: History) -> Iterator[Spoilt]:
    """Of each run: without its start, without its end, begun within another one or beside an operator; a retry that nobody asked for."""
    rows, events = list(history.rows.values()), history.events
    ends = {(event.pid, event.job_id, event.epoch): event for event in events if event.what == "end"}
    for user in {row.user_id for row in rows}:
        starts = [event for event in events if event.what == "start" and event.user_id == user]
        for start in starts:
            end = ends.get((start.pid, start.job_id, start.epoch))
            if end is not None:
                yield without(events, start), rows, "without a start"
                row = history.rows[start.job_id]
                if row.state == "completed" and row.epoch == start.epoch:
                    yield without(events, end), rows, ""
                    yield (
                        [replace(event, how="CancelledError") if event is end else event for event in events],
                        rows,
                        "its last run",
                    )
            lock = [
                Event(start.at - 0.002, "locked", user_id=user, how="x"),
                Event(start.at + 0.002, "unlocked", user_id=user, how="x"),
            ]
            yield [*events, *lock], rows, "to themselves"
        for before, after in pairwise(starts):
            if before.job_id != after.job_id:
                sooner = replace(after, at=before.at + 0.001)
                yield [sooner if event is after else event for event in events], rows, "ran at once"
    retried = [event for event in events if event.what == "retried"]
    for job in {event.job_id for event in retried}:
        for before, after in pairwise(event for event in events if event.what == "start" and event.job_id == job):
            between = [event for event in retried if event.job_id == job and before.at < event.at < after.at]
            end = ends.get((before.pid, job, before.epoch))
            failed = end is not None and end.how == "ValueError"  # that may be run again
            if (
                len(between) == 1 and not failed
            ):  # else one that was put aside before its handler began is still excused
                yield without(events, between[0]), rows, "nobody retried it"


@EXAMPLES
@given(NUMBERS)
def test_each_row_that_is_lost_doubled_or_wrong_is_noticed(numbers: list[tuple[int, int]]) -> None:
    history = made(numbers)
    for events, rows, words in spoilt_rows(history):
        found = violations(events, rows, history.lost)
        assert any(words in sentence for sentence in found), (words, found)


@EXAMPLES
@given(NUMBERS)
def test_each_line_that_is_missing_or_out_of_time_is_noticed(numbers: list[tuple[int, int]]) -> None:
    history = made(numbers)
    for events, rows, words in spoilt_events(history):
        found = violations(events, rows, history.lost)
        assert any(words in sentence for sentence in found), (words, found)
