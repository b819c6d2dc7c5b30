"""Whether workers are well, in one line, for supervisors and probes.

Owns: what counts as well, and the words. Must not: look at anything itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import assert_never

from archibald_pgq.domain.views import Health


@dataclass(frozen=True, slots=True)
class Pulse:
    """A worker as the database knows it; `busy`: its consumers that run a job now."""

    id: int
    health: Health
    beat_ago: timedelta
    lease_s: float
    busy: int
    concurrency: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a probe gets to know; `sentence` is the same for a person."""

    well: bool
    sentence: str
    workers: list[Pulse]


def judge(pulses: list[Pulse], where: str) -> Verdict:
    """Judge the workers found `where`: all that are to be running must be well; one that was fenced counts where it is all there is."""
    running = [pulse for pulse in pulses if pulse.health in (Health.ALIVE, Health.SILENT)]
    if not pulses:
        return Verdict(False, f"no worker is registered {where}", [])
    shown = running or pulses[-1:]
    ill = [pulse for pulse in shown if pulse.health is not Health.ALIVE]
    if ill or len(shown) == 1:
        return Verdict(not ill, _told((ill or shown)[0]), shown)
    oldest = max(pulse.beat_ago for pulse in shown)
    busy, consumers = sum(pulse.busy for pulse in shown), sum(pulse.concurrency for pulse in shown)
    sentence = (
        f"{len(shown)} workers are well: beats at most {_seconds(oldest)} ago, {busy} of {consumers} consumers busy"
    )
    return Verdict(True, sentence, shown)


def _told(pulse: Pulse) -> str:
    beat = f"beat {_seconds(pulse.beat_ago)} ago"
    match pulse.health:
        case Health.ALIVE:
            return f"worker {pulse.id} is well: {beat}, {pulse.busy} of {pulse.concurrency} consumers busy"
        case Health.SILENT:
            return f"worker {pulse.id} is silent: {beat}, its lease is {pulse.lease_s:g} s"
        case Health.LOST:
            return f"worker {pulse.id} is lost: {beat}, its agents were given to others"
        case Health.STOPPED:
            return f"worker {pulse.id} has stopped: {beat}"
    assert_never(pulse.health)


def _seconds(length: timedelta) -> str:
    return f"{max(0.0, length.total_seconds()):.1f} s"
