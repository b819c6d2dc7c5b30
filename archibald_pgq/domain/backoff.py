"""How long a job waits before it is tried again.

Two different waits, never mixed up: the *requeue* delay, when the agent's lock was taken (nobody's fault, no attempt spent), and the
*retry* backoff of an operation's policy, when its handler failed. All in seconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

REQUEUE_FIRST = 2.0
REQUEUE_LONGEST = 30.0
RETRY_LONGEST = 3600.0


def requeue_delay(requeue_count: int) -> float:
    """Return the seconds until a job whose agent was locked is tried again: 2, 4, 8, 16, 30, 30 …

    `requeue_count` is the count before this requeue. The exponent is capped, not the product, so that no count overflows.
    The database computes the same (`archibald.requeue_delay`); a test holds the two together.
    """
    return min(REQUEUE_FIRST * 2.0 ** min(requeue_count, 4), REQUEUE_LONGEST)


@dataclass(frozen=True, slots=True)
class Backoff:
    """A retry backoff; build it with `Backoff.fixed(5)` or `Backoff.exponential(30)`."""

    shape: Literal["fixed", "exponential"]
    seconds: float

    def __post_init__(self) -> None:
        """Refuse what the table `archibald.operations` would refuse.

        Raises:
            ValueError: the shape is unknown, or `seconds` is not between 0 and 3600.
        """
        if self.shape not in ("fixed", "exponential"):
            raise ValueError(f"a retry backoff is fixed or exponential, not {self.shape}")
        if not 0 <= self.seconds <= RETRY_LONGEST:
            raise ValueError(f"a retry backoff is 0 to {RETRY_LONGEST:.0f} seconds, not {self.seconds}")

    @classmethod
    def fixed(cls, seconds: float) -> Backoff:
        """Return a backoff that waits the same number of seconds each time."""
        return cls("fixed", float(seconds))

    @classmethod
    def exponential(cls, seconds: float) -> Backoff:
        """Return a backoff that doubles from `seconds`, to an hour at most."""
        return cls("exponential", float(seconds))

    def delay(self, attempt: int) -> float:
        """Return the seconds to wait after the failed `attempt` (1 is the first)."""
        if self.shape == "fixed":
            return self.seconds
        return min(self.seconds * 2.0 ** min(attempt - 1, 12), RETRY_LONGEST)
