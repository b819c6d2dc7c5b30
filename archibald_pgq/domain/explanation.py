"""Why a job is not running, and what it waits for next, in one sentence.

Owns: the reasons, which of them comes first, and the words. Guarantees: every job has an explanation; the same facts give the same one.
Must not: look at anything but the facts.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta, tzinfo
from enum import StrEnum

from archibald_pgq.domain.facts import Facts
from archibald_pgq.domain.operations import JobClass
from archibald_pgq.domain.states import TERMINAL, State

STUBBORN = timedelta(seconds=30)
"""The time after which a sync that was asked to make room does not stop: from then on the write that waits is requeued."""

COUNTED = 1000
"""What stands before a job is counted up to here."""


class Reason(StrEnum):
    """What keeps a job from running; the first that is true."""

    FINISHED = "finished"
    RUNNING = "running"
    """It does run."""
    NEEDS_REVIEW = "needs_review"
    """It is a write that may or may not have happened: a person decides."""
    DELAYED = "delayed"
    """It was enqueued with a delay that is not over."""
    RETRY = "retry"
    """It failed, and the wait before its next attempt is not over."""
    LEFT_ALONE = "left_alone"
    """It is a sync that has failed again and again, and is not tried for a while."""
    PAUSED = "paused"
    """Somebody paused its agent."""
    AGENT_BUSY = "agent_busy"
    """Its agent runs another job."""
    MAKING_ROOM = "making_room"
    """Its agent runs a sync that was asked to make room for a write."""
    NOT_MAKING_ROOM = "not_making_room"
    """Its agent runs a sync that does not stop though it was asked to make room."""
    NO_WORKER = "no_worker"
    """No worker is alive."""
    NO_HANDLER = "no_handler"
    """No live worker handles its kind."""
    LOCKED = "locked"
    """Another session holds its agent's lock."""
    REQUEUED = "requeued"
    """Its agent's lock was held by somebody else, and the pause before the next try is not over."""
    NEW_AGENT = "new_agent"
    """Its agent is not known yet: no worker has looked since the enqueue."""
    NOT_SEEN = "not_seen"
    """It has just become due, and no worker has looked yet."""
    BEHIND = "behind"
    """Other jobs of its agent go first."""
    SET_ASIDE = "set_aside"
    """Its agent rests, because a row that the claim needs is held, or was held or contradictory a moment ago."""
    RUNS_ALONE = "runs_alone"
    """One more loss would fail it, so it runs alone: a worker must be free of other jobs."""
    CONSUMERS_BUSY = "consumers_busy"
    """All consumers that may run it are busy."""
    RESERVED = "reserved"
    """It is a sync, and the free consumers are reserved for what people ask for."""
    NEXT = "next"
    """Nothing: a worker is about to take it."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a job is not running, and what it waits for next.

    Attributes:
        id: the job; reason: see `Reason`.
        sentence: the same for a person, with times of this machine's time zone.
        since: since when the job, or what it waits for, is as it is; None where that is not known.
        until: when the wait ends or is looked at again; None where no time is known.
        job_id: the other job that it waits for, or that was run in its place.
    """

    id: int
    reason: Reason
    sentence: str
    since: datetime | None
    until: datetime | None
    job_id: int | None


def explain(facts: Facts, zone: tzinfo | None = None) -> Explanation:
    """Say why a job is not running; times in `zone`, None for this machine's."""
    found = _judge(facts, _Clock(facts.now, zone))
    sentence = f"{_job(facts.id, facts.kind)} of {facts.user_id} {found.words}"
    return Explanation(facts.id, found.reason, sentence, found.since, found.until, found.job_id)


@dataclass(frozen=True, slots=True)
class _Found:
    reason: Reason
    words: str
    since: datetime | None = None
    until: datetime | None = None
    job_id: int | None = None


@dataclass(frozen=True, slots=True)
class _Clock:
    now: datetime
    zone: tzinfo | None

    def at(self, moment: datetime) -> str:
        """Return a time of day with its distance, such as 2026-03-02 14:00:05 (in 5 s)."""
        try:
            moment_there = moment.astimezone(self.zone)
        except (OverflowError, ValueError):  # the first or the last date that there is
            moment_there = moment
        distance = _span(abs(moment - self.now))
        return f"{moment_there:%Y-%m-%d %H:%M:%S} ({f'in {distance}' if moment > self.now else f'{distance} ago'})"

    def ago(self, moment: datetime) -> str:
        """Return how long ago something was."""
        return f"{_span(self.now - moment)} ago"


def _span(length: timedelta) -> str:
    seconds = round(length.total_seconds())
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"


def _judge(facts: Facts, clock: _Clock) -> _Found:
    if facts.state in TERMINAL:
        return _finished(facts, clock)
    if facts.state is State.NEEDS_REVIEW:
        why = f": {facts.error}" if facts.error else ""
        words = "needs review, because it may or may not have happened"
        return _Found(Reason.NEEDS_REVIEW, f"{words}{why}; if it has, discard it, if it has not, retry it")
    if facts.state is State.RUNNING:
        stop = f"; it was asked to stop {clock.ago(facts.cancel_requested_at)}" if facts.cancel_requested_at else ""
        words = f"runs {_running(facts, clock)}{stop}{_request(facts, clock)}{_silence(facts, clock)}"
        return _Found(Reason.RUNNING, words, since=facts.running_since)
    if not facts.due and facts.run_after > facts.now:
        return _not_due(facts, clock)
    return _agent(facts, clock) or _workers(facts) or _lock(facts, clock) or _turn(facts, clock)


def _finished(facts: Facts, clock: _Clock) -> _Found:
    when = f" at {clock.at(facts.finished_at)}" if facts.finished_at else ""
    error = f": {facts.error}" if facts.error else ""
    again = f"; it was retried as job {facts.retried_as}" if facts.retried_as else ""
    return _Found(
        Reason.FINISHED,
        f"finished{when} as {facts.state}{error}{again}",
        since=facts.finished_at,
        job_id=facts.retried_as,
    )


def _not_due(facts: Facts, clock: _Clock) -> _Found:
    when = clock.at(facts.run_after)
    if facts.wait_reason == "retry":
        attempt = f"attempt {facts.attempt} of {facts.max_attempts}"
        words = f"is not due until {when}, after {attempt} failed: {facts.error}"
        return _Found(Reason.RETRY, words, until=facts.run_after)
    if facts.breaker_until is not None and facts.run_after <= facts.breaker_until:
        words = (
            f"is left alone until {when}, because {facts.kind} failed {facts.breaker_failures} times for {facts.user_id}, "
            f"the last time with: {facts.breaker_reason}; to let it go on now, resume the agent"
        )
        return _Found(Reason.LEFT_ALONE, words, until=facts.run_after)
    return _Found(
        Reason.DELAYED, f"is not due until {when}, because it was enqueued with a delay", until=facts.run_after
    )


def _agent(facts: Facts, clock: _Clock) -> _Found | None:
    """What only the agent itself keeps back."""
    if facts.paused:
        until = f"until {clock.at(facts.paused_until)}" if facts.paused_until else "until somebody resumes it"
        why = f" because of: {facts.paused_reason}" if facts.paused_reason else ""
        ends = f"; {_job(facts.running_id, facts.running_kind)} still runs" if facts.running_id else ""
        words = f"waits: its agent is paused {until}{why}{ends}{_before(facts)}"
        return _Found(Reason.PAUSED, words, until=facts.paused_until)
    if facts.running_id is None:
        return None
    reason = Reason.AGENT_BUSY
    if asked := facts.preempt_requested_at:
        reason = Reason.NOT_MAKING_ROOM if facts.now - asked >= STUBBORN else Reason.MAKING_ROOM
    words = (
        f"waits: its agent runs {_job(facts.running_id, facts.running_kind)} {_running(facts, clock)}"
        f"{_request(facts, clock)}{_silence(facts, clock)}{_pause(facts, clock)}{_before(facts)}"
    )
    return _Found(reason, words, since=facts.running_since, job_id=facts.running_id)


def _workers(facts: Facts) -> _Found | None:
    """What no worker can take."""
    if not facts.live_workers:
        return _Found(Reason.NO_WORKER, "waits: no worker is alive; start one with `archibald-pgq run`")
    if not facts.able_workers:
        alive = f"({facts.live_workers} alive)"
        words = f"waits: no live worker {alive} handles its kind; the next one that is free fails it for that"
        return _Found(Reason.NO_HANDLER, words)
    return None


def _lock(facts: Facts, clock: _Clock) -> _Found | None:
    """What somebody else keeps back."""
    if facts.holder_pid is not None:
        holder = f"backend pid {facts.holder_pid} of application {facts.holder_application or 'without a name'}"
        where = facts.holder_address or ("local" if facts.holder_since else "")
        since = f"connected since {clock.at(facts.holder_since)}" if facts.holder_since else ""
        details = f" ({', '.join(filter(None, (where, since)))})" if where else ""
        words = f"waits: its agent's lock is held by {holder}{details}{_pause(facts, clock)}"
        ending = "; it goes on when the lock is given back"
        return _Found(Reason.LOCKED, words + ending + _before(facts), since=facts.holder_since, until=facts.retry_at)
    if facts.retry_at is not None:
        words = "waits: its agent's lock was held by somebody else"
        ending = "; nobody holds it now, so that a worker takes it within seconds"
        words += _pause(facts, clock) + ending + _before(facts)
        return _Found(Reason.REQUEUED, words, until=facts.retry_at, job_id=facts.refused_id)
    return None


def _turn(facts: Facts, clock: _Clock) -> _Found:
    """What could run, and is not first."""
    if facts.row_holder_pid is not None and not facts.jobs_before:
        return _row_held(facts, clock)
    if not facts.agent_known:
        words = "waits: its agent is not known yet, because no worker has looked since it was enqueued"
        return _Found(Reason.NEW_AGENT, f"{words}; one looks within a second")
    if not facts.due or not facts.looked_at:
        return _Found(Reason.NOT_SEEN, "waits: no worker has looked at it yet; one looks within a second")
    if facts.jobs_before:
        words = f"waits behind {_count(facts.jobs_before, 'other job')} of its agent"
        first = f"{_job(facts.first_id, facts.first_kind)} goes first; explain that one"
        return _Found(Reason.BEHIND, f"{words}; {first}", job_id=facts.first_id)
    if facts.ready_at is not None and facts.ready_at > facts.now:
        words = f"waits: its agent is set aside until {clock.at(facts.ready_at)}"
        why = "its job was held by another session, or the tables contradict each other"
        return _Found(Reason.SET_ASIDE, f"{words}, because {why}", until=facts.ready_at)
    place = f"; {_count(facts.agents_before, 'other agent')} {'goes' if facts.agents_before == 1 else 'go'} first"
    place = place if facts.agents_before else "; its agent goes next"
    if facts.runs_alone:
        died = "once" if facts.losses == 1 else f"{facts.losses} times"
        words = (
            f"waits until a worker is free of other jobs: its workers died {died} while it ran, so that it runs alone"
        )
        return _Found(Reason.RUNS_ALONE, words)
    if not facts.free_workers:
        workers = "the live worker that handles" if facts.able_workers == 1 else "the live workers that handle"
        words = f"waits: all consumers ({facts.consumers}) of {workers} its kind are busy"
        return _Found(Reason.CONSUMERS_BUSY, words + place)
    if facts.job_class is JobClass.SYNC and not facts.free_for_syncs:
        words = f"waits: all consumers that syncs may use ({facts.sync_consumers}) are busy"
        return _Found(Reason.RESERVED, f"{words}, and the others are reserved for what people ask for{place}")
    return _Found(Reason.NEXT, f"waits: a worker takes it within a second{place if facts.agents_before else ''}")


def _row_held(facts: Facts, clock: _Clock) -> _Found:
    holder = f"backend pid {facts.row_holder_pid} of application {facts.row_holder_application or 'without a name'}"
    since = f" (its transaction is open since {clock.at(facts.row_holder_since)})" if facts.row_holder_since else ""
    words = f"waits: {holder} holds the job's row or its agent's{since}; it goes on when that transaction ends"
    return _Found(Reason.SET_ASIDE, words, since=facts.row_holder_since, until=facts.ready_at)


def _job(job_id: int | None, kind: str | None) -> str:
    return f"job {job_id} ({kind})"


def _count(number: int, what: str) -> str:
    if number > COUNTED:
        return f"over {COUNTED} {what}s"
    return f"{number} {what}{'s' if number > 1 else ''}"


def _running(facts: Facts, clock: _Clock) -> str:
    since = f"since {clock.at(facts.running_since)} " if facts.running_since else ""
    return f"{since}on worker {facts.worker_id} ({facts.host}, process {facts.pid})"


def _request(facts: Facts, clock: _Clock) -> str:
    asked = facts.preempt_requested_at
    if asked is None:
        return ""
    if facts.now - asked >= STUBBORN:
        return f", which does not stop although it was asked to make room {clock.ago(asked)}"
    return f", which was asked to make room {clock.ago(asked)}"


def _silence(facts: Facts, clock: _Clock) -> str:
    if facts.silent_since is None:
        return ""
    taken = "another one takes its agents over" if facts.live_workers else "no worker is alive that could take over"
    return f"; this worker was last heard of {clock.ago(facts.silent_since)}, and {taken}"


def _pause(facts: Facts, clock: _Clock) -> str:
    """Say that a job of the agent was requeued; the pause of a write behind a sync that does not stop is not its agent's."""
    if facts.refused_id is None or facts.refused_until is None:
        return ""
    who = "it" if facts.refused_id == facts.id else _job(facts.refused_id, facts.refused_kind)
    return (
        f"; {who} was requeued until {clock.at(facts.refused_until)}, for the {_ordinal(facts.requeue_count or 0)} time"
    )


def _before(facts: Facts) -> str:
    if not facts.jobs_before:
        return ""
    verb = "goes" if facts.jobs_before == 1 else "go"
    return f"; then {_count(facts.jobs_before, 'other job')} of its agent {verb} first, next {_job(facts.first_id, facts.first_kind)}"


def _ordinal(number: int) -> str:
    ending = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"
