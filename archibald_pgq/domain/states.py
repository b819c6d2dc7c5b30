"""The state machine of a job, in one table.

Owns: the states, the events and `TRANSITIONS`, the only list of allowed moves. The database functions and the diagram in the
docs are checked against it. Must not: know how a move is written down.
"""

from __future__ import annotations

from enum import StrEnum
from types import MappingProxyType


class State(StrEnum):
    """Where a job is; the text is what the column `state` holds."""

    QUEUED = "queued"
    """Waits: for its agent, for its time (`run_after`), or for the agent's lock (`wait_reason`)."""
    RUNNING = "running"
    """Its handler runs, in one worker, while that worker holds the agent's lock. A short job, which may share a turn with others, is
    written down as running only if it still runs after 100 ms."""
    NEEDS_REVIEW = "needs_review"
    """A write that may or may not have happened; live, keeps its key, does not hold the lane. A person decides."""
    COMPLETED = "completed"
    """Terminal: the handler returned."""
    FAILED = "failed"
    """Terminal: no attempt is left, a timeout, or its workers died too often."""
    CANCELLED = "cancelled"
    """Terminal: somebody asked for it, or another job of the same sync absorbed it."""


TERMINAL = frozenset({State.COMPLETED, State.FAILED, State.CANCELLED})
LIVE = frozenset(State) - TERMINAL


class Event(StrEnum):
    """What can happen to a job."""

    CLAIM = "claim"
    """A worker took the lane and the agent's lock, and marked the job before its handler started."""
    REQUEUE = "requeue"
    """The agent's lock was taken by somebody else: back with a backoff, counted, no attempt spent."""
    COMPLETE = "complete"
    RETRY = "retry"
    """The handler failed with attempts left: back with the policy's backoff, attempt spent; or a person, after a review, wants it again."""
    FAIL = "fail"
    GO_BACK = "go_back"
    """Interrupted without fault of its own (shutdown, worker lost): back to its place, no attempt spent."""
    PREEMPT = "preempt"
    """A sync that made room for a write of its agent: back behind it, no attempt spent."""
    REVIEW = "review"
    """Interrupted after a write had started: its effect is unknown."""
    CANCEL = "cancel"
    DISCARD = "discard"
    """A person, after a review, puts it away."""


TRANSITIONS: MappingProxyType[tuple[State, Event], State] = MappingProxyType(
    {
        (State.QUEUED, Event.CLAIM): State.RUNNING,
        (State.QUEUED, Event.REQUEUE): State.QUEUED,
        (State.QUEUED, Event.CANCEL): State.CANCELLED,
        (State.RUNNING, Event.COMPLETE): State.COMPLETED,
        (State.RUNNING, Event.RETRY): State.QUEUED,
        (State.RUNNING, Event.FAIL): State.FAILED,
        (State.RUNNING, Event.GO_BACK): State.QUEUED,
        (State.RUNNING, Event.PREEMPT): State.QUEUED,
        (State.RUNNING, Event.REVIEW): State.NEEDS_REVIEW,
        (State.RUNNING, Event.CANCEL): State.CANCELLED,
        (State.NEEDS_REVIEW, Event.CANCEL): State.CANCELLED,
        (State.NEEDS_REVIEW, Event.RETRY): State.QUEUED,
        (State.NEEDS_REVIEW, Event.DISCARD): State.CANCELLED,
    }
)


def after(state: State, event: Event) -> State:
    """Return the state that follows `event` in `state`.

    Raises:
        ValueError: the event cannot happen in this state.
    """
    try:
        return TRANSITIONS[state, event]
    except KeyError:
        raise ValueError(f"a job that is {state} cannot {event}") from None
