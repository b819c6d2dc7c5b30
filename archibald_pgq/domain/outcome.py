"""The outcome of one run of one job: one constructor per way it can end, so that no other mix can be built."""

from __future__ import annotations

from dataclasses import dataclass

from archibald_pgq.domain.states import Event


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run came to; the settle writes it down.

    Attributes:
        event: the move in the state machine.
        result: the handler's result as JSON text, only with `COMPLETE`.
        error: why it did not complete, or why the result of a completed job is missing.
        delay: seconds until the next attempt, only with `RETRY`.
    """

    event: Event
    result: str | None = None
    error: str | None = None
    delay: float = 0.0

    @classmethod
    def completed(cls, result: str | None, error: str | None = None) -> Outcome:
        """The handler returned; `error` says why its result could not be kept."""
        return cls(Event.COMPLETE, result=result, error=error)

    @classmethod
    def failed(cls, error: str) -> Outcome:
        """No further attempt."""
        return cls(Event.FAIL, error=error)

    @classmethod
    def retry(cls, error: str, delay: float) -> Outcome:
        """Another attempt in `delay` seconds."""
        return cls(Event.RETRY, error=error, delay=delay)

    @classmethod
    def gone_back(cls, error: str | None = None) -> Outcome:
        """Interrupted; back to its place, no attempt spent."""
        return cls(Event.GO_BACK, error=error)

    @classmethod
    def preempted(cls) -> Outcome:
        """A sync that made room for a write of its agent; back behind it, no attempt spent."""
        return cls(Event.PREEMPT)

    @classmethod
    def needs_review(cls, error: str) -> Outcome:
        """Interrupted after it may have had its effect."""
        return cls(Event.REVIEW, error=error)

    @classmethod
    def cancelled(cls, error: str) -> Outcome:
        """Stopped because somebody asked for it."""
        return cls(Event.CANCEL, error=error)
