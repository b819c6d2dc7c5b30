"""Makes histories as a queue that keeps every promise would leave them: of a few agents, workers that die, are stopped and taken over.

Guarantees: what it makes is valid, whatever numbers it is fed with; `passed_over` names jobs whose turn it was not.
Must not: use the checker.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import count

from tests.acceptance.events import Event, Interval, JobRow

USERS = ("alice", "bob", "carol")
KINDS = ((10, False, True), (20, False, False), (30, False, False), (40, True, False))
"""Priority, whether it is a sync, whether it is a write that must not be repeated."""

WORKERS = 3
MOST_ATTEMPTS = 3


@dataclass
class History:
    """Feed it, finish it, and read it off."""

    events: list[Event] = field(default_factory=list)
    rows: dict[int, JobRow] = field(default_factory=dict)
    lost: set[int] = field(default_factory=set)
    """Workers that were fenced."""
    passed_over: list[tuple[float, int]] = field(default_factory=list)
    """(when a job was started, another one that certainly waited and goes behind it)."""

    def __post_init__(self) -> None:
        self._now = 0.0
        self._numbers, self._pids = count(1), count(101)
        self._waiting: dict[str, dict[int, float]] = {user: {} for user in USERS}
        self._free = dict.fromkeys(USERS, 0.0)
        self._epochs = dict.fromkeys(USERS, 0)
        self._locked: dict[str, str] = {}
        self._attempts: dict[int, int] = {}
        self._running: dict[str, Interval] = {}
        self._thaws: list[tuple[int, list[Interval]]] = []
        self._workers: list[int] = []
        for _ in range(WORKERS):
            self._spawn()

    def feed(self, numbers: Sequence[tuple[int, int]]) -> None:
        """Do something for each pair, then end everything."""
        acts = (
            self._enqueue, self._enqueue, self._start, self._start, self._return, self._return, self._fail, self._kill, self._stop,
            self._lock, self._retry, self._cancel, self._thaw, self._die_with_a_claim,
        )  # fmt: skip
        for act, number in numbers:
            acts[act % len(acts)](number)
        for user in list(self._locked):
            self._unlock(user)
        while self._thaws:
            self._thaw(0)
        while self._running or any(self._waiting.values()):
            self._return(0)
            for number in range(len(USERS)):
                self._start(number)

    def _note(self, what: str, **fields: object) -> float:
        self._now += 0.01
        self.events.append(Event(self._now, what, **fields))  # type: ignore[arg-type]
        return self._now

    def _spawn(self) -> None:
        self._workers.append(next(self._pids))
        self._note("spawned", pid=self._workers[-1])

    def _enqueue(self, number: int) -> None:
        user, (priority, sync, doubtful) = USERS[number % 3], KINDS[number // 3 % 4]
        job = next(self._numbers)
        self.rows[job] = JobRow(job, user, priority, "queued", sync, doubtful=doubtful)
        self._waiting[user][job] = self._note("enqueued", job_id=job, user_id=user)

    def _place(self, job: int) -> tuple[bool, int, int]:
        return self.rows[job].is_sync, self.rows[job].priority, job

    def _start(self, number: int) -> None:
        user = USERS[number % 3]
        waiting = self._waiting[user]
        if user in self._running or user in self._locked or not waiting:
            return
        job = min(waiting, key=self._place)
        del waiting[job]
        self._epochs[user] += 1
        pid = self._workers[number // 3 % WORKERS]
        at = self._note("start", pid=pid, job_id=job, user_id=user, worker_id=pid - 100, epoch=self._epochs[user])
        self.passed_over += [(at, other) for other, since in waiting.items() if since < self._free[user]]
        self._running[user] = Interval(user, job, pid, at, at, "", pid - 100, self._epochs[user])

    def _end(self, run: Interval, how: str) -> None:
        self._free[run.user_id] = self._note(
            "end",
            pid=run.pid,
            job_id=run.job_id,
            user_id=run.user_id,
            how=how,
            worker_id=run.worker_id,
            epoch=run.epoch,
        )
        del self._running[run.user_id]

    def _settle(self, run: Interval, state: str) -> None:
        self.rows[run.job_id] = replace(self.rows[run.job_id], state=state, worker_id=run.worker_id, epoch=run.epoch)

    def _some_run(self, number: int) -> Interval | None:
        runs = list(self._running.values())
        return runs[number % len(runs)] if runs else None

    def _return(self, number: int) -> None:
        if (run := self._some_run(number)) is not None:
            self._end(run, "returned")
            self._settle(run, "completed")

    def _fail(self, number: int) -> None:
        if (run := self._some_run(number)) is not None:
            self._end(run, "ValueError")
            self._attempts[run.job_id] = self._attempts.get(run.job_id, 0) + 1
            if self._attempts[run.job_id] >= MOST_ATTEMPTS:
                self._settle(run, "failed")
            else:
                self._waiting[run.user_id][run.job_id] = self._free[run.user_id] - 0.001

    def _release(self, pid: int) -> list[Interval]:
        """Others take over."""
        lost = [run for run in self._running.values() if run.pid == pid]
        for run in lost:
            del self._running[run.user_id]
            self._epochs[run.user_id] += 1
            if self.rows[run.job_id].doubtful:
                self.rows[run.job_id] = replace(self.rows[run.job_id], state="needs_review")
            else:
                self._waiting[run.user_id][run.job_id] = self._now
        self.lost.add(pid - 100)
        self._workers.remove(pid)
        self._spawn()
        return lost

    def _kill(self, number: int) -> None:
        pid = self._workers[number % WORKERS]
        at = self._note("killed", pid=pid)
        for run in self._release(pid):
            self._free[run.user_id] = at

    def _die_with_a_claim(self, number: int) -> None:
        """A worker dies between the claim and the handler's start."""
        user = USERS[number % 3]
        if user not in self._running and user not in self._locked and self._waiting[user]:
            job = min(self._waiting[user], key=self._place)
            self._epochs[user] += 2
            if self.rows[job].doubtful:
                del self._waiting[user][job]
                self.rows[job] = replace(self.rows[job], state="needs_review")
            self._kill(number)

    def _stop(self, number: int) -> None:
        pid = self._workers[number % WORKERS]
        at = self._note("stopped", pid=pid)
        self._now += 3.0
        lost = self._release(pid)
        for run in lost:
            self._free[run.user_id] = at
        self._thaws.append((pid, lost))

    def _thaw(self, number: int) -> None:
        if not self._thaws:
            return
        pid, lost = self._thaws.pop()
        self._note("continued", pid=pid)
        for run in lost[: number % 2]:  # what was in flight
            self._note(
                "end",
                pid=pid,
                job_id=run.job_id,
                user_id=run.user_id,
                how="returned",
                worker_id=run.worker_id,
                epoch=run.epoch,
            )
        self._note("killed", pid=pid)

    def _lock(self, number: int) -> None:
        user = USERS[number % 3]
        if user in self._locked:
            self._unlock(user)
        elif user not in self._running:
            self._locked[user] = str(self._note("locked", user_id=user, how=str(self._now + 0.01)))

    def _unlock(self, user: str) -> None:
        self._note("unlocked", user_id=user, how=self._locked.pop(user))

    def _retry(self, number: int) -> None:
        aside = [row.job_id for row in self.rows.values() if row.state == "needs_review"]
        if aside:
            job = aside[number % len(aside)]
            self._note("retried", job_id=job)
            self.rows[job] = replace(self.rows[job], state="queued")
            self._waiting[self.rows[job].user_id][job] = self._note("put back", job_id=job)

    def _cancel(self, number: int) -> None:
        user = USERS[number % 3]
        if (run := self._running.get(user)) is not None:
            self._end(run, "CancelledError")
            self._settle(run, "cancelled")
        elif self._waiting[user]:
            job = max(self._waiting[user], key=self._place)
            del self._waiting[user][job]
            self.rows[job] = replace(self.rows[job], state="cancelled")
