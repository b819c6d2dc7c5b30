"""How much a worker takes at once, from how long its jobs took: many short ones share a round trip, long ones move one at a time.

Owns: the averages. Must not: know the database or the event loop.
"""

from __future__ import annotations

from archibald_pgq.domain.operations import JobClass, Policy

TURN = 0.05
"""Seconds of work that one turn of a lane may bring, and that each consumer may have waiting."""

LARGEST = 50
"""Jobs that one turn of a lane may have."""

AHEAD = 300
"""Lanes that may be taken ahead of free consumers at once, as long as it is not known how long the turns of this worker take."""

LONGEST_TURN = 0.05
"""Seconds that a turn may take which brings lanes taken ahead: fewer lanes and its own cost shows, more and it is long."""

TELLING = 100
"""Lanes that a turn must have brought to tell how many fit: of a smaller one most is its own cost.

No fewer are asked for on that account: after a turn that met a stall none would tell again.
"""

AT_HAND = 500
"""Jobs, and lanes, that may wait for consumers: more would make turns long, for which other jobs wait."""

SLACK = 1.25
"""Of what is taken ahead at once, so much may be at hand when more is taken: a turn brings a little more than the next estimate allows, and
without this the turn after it would bring nothing, and consumers wait for a third one. It was a third of the jobs a second.
"""

_OF_TURNS = 0.2
"""Weight of the newest turn in an average."""

_OF_JOBS = 0.05
"""Of the newest job or lane: with more of it an average follows each stall of the process, and turns are too long after each of them."""


class Pace:
    """What one worker has learned about its jobs."""

    def __init__(self) -> None:
        """Begin with nothing known: every job comes alone."""
        self._seconds: dict[str, float] = {}
        self._lanes = 0
        self._lane_seconds = TURN
        self._lane_jobs = float(LARGEST)
        """Until lanes have shown how many jobs they have, each is taken for a full one."""
        self._alone = 1.0
        """Of a lane's time the share that its own jobs ran: of ten lanes whose handlers wait for nothing a tenth."""
        self._turn_seconds = LONGEST_TURN / AHEAD
        """Of a turn, for each lane that it brings."""

    def job_ended(self, kind: str, policy: Policy, seconds: float) -> None:
        """Learn from a job's run.

        Only of kinds of which several may share a turn: not a write that must not run twice, because after a crash the whole turn counts
        as possibly run, and not a sync, because requests for it merge with what is queued, and a turn's later jobs are.
        """
        if policy.repeatable and policy.job_class is not JobClass.SYNC:
            known = self._seconds.get(kind, seconds)
            self._seconds[kind] = known + _OF_JOBS * (seconds - known)

    def lane_ended(self, jobs: int, seconds: float, ran: float) -> None:
        """Learn from the turn of a lane that might have brought several jobs: how many it had, how long it took, and how long these ran."""
        self._lanes += 1
        weight = max(_OF_JOBS, 1 / self._lanes)  # the first ones count for more: there are no others
        self._lane_seconds = _above(self._lane_seconds, seconds, weight)
        if seconds > 0:
            self._alone += weight * (ran / seconds - self._alone)
        self._lane_jobs = _above(self._lane_jobs, jobs, weight)

    def turn_ended(self, lanes: int, seconds: float) -> None:
        """Learn from a turn: how many lanes it may have brought, and how long it took."""
        if lanes >= TELLING:
            self._turn_seconds += _OF_TURNS * (seconds / lanes - self._turn_seconds)

    def short(self) -> dict[str, int]:
        """Return the kinds of which a turn may have several jobs, and how many: as many as run in 50 ms, 50 at most.

        And not many more than lanes have had: else the first turn after many agents with one job each, which come hundreds at a time, would
        bring as many times 50, of which most go back.
        """
        most = int(2 + 2 * self._lane_jobs)
        several = {kind: min(jobs_for(seconds), most) for kind, seconds in self._seconds.items()}
        return {kind: jobs for kind, jobs in several.items() if jobs > 1}

    def ahead(self, consumers: int, at_hand: int = 0) -> int:
        """Return how many lanes to take ahead for `consumers` that are busy: what keeps them so for 25 ms, and a turn can bring in 50.

        Fewer of long ones that wait: they begin after what runs has ended, which takes as long, and after 100 ms they would go back.
        None while more than that many are `at_hand`: what there is runs while the next ones are fetched.
        """
        busy = consumers * max(TURN / 2 / max(self._lane_seconds, 1e-6) - 0.25 * self._alone, 0.1)
        brought = max(LONGEST_TURN / max(self._turn_seconds, 1e-6), TELLING)
        batch = int(min(busy, AT_HAND / self._lane_jobs, brought))
        return batch if at_hand <= SLACK * batch else 0


def jobs_for(seconds: float) -> int:
    """Return how many jobs of an average of `seconds` fit into a turn: 1 to 50."""
    return max(1, int(min(LARGEST, TURN / seconds))) if seconds > 0 else LARGEST


def _above(known: float, new: float, weight: float) -> float:
    """Return an estimate that grows at once and falls slowly: too much taken is work done twice, too little is one more turn."""
    return new if new > known else known + weight * (new - known)
