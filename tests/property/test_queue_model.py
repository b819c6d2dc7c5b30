"""The SQL functions against a small model of the queue: whatever callers, workers, outside lock holders and losses do, in whatever order.

The model keeps jobs, keys and who holds which agent in dictionaries and moves jobs only along `domain.states.TRANSITIONS`. After every
step the tables must say the same, no agent may run twice, and a worker's session must hold the locks of its lanes and no others.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from archibald_pgq.domain.states import TERMINAL, Event, State, after
from archibald_pgq.store.connect import worker_options
from tests.hand import COMPLETE

USERS = ("alice", "bob")
KINDS = {  # class, priority, attempts
    "submit-order": ("write", 1, 1),
    "edit-order": ("write", 5, 1),
    "download-ddt-pdf": ("read", 7, 2),
    "sync-customers": ("sync", 10, 3),
    "sync-orders": ("sync", 11, 3),
}
MAX_LOSSES = 3
MAX_PREEMPTIONS = 2
EXAMPLES, STEPS = 30, 30
TURN = """
SELECT what, lane, user_id, epoch, job, requeue_count
  FROM archibald.turn(%s, %s::bigint[], %s::bigint[], %s::bigint[], %s::text[], %s::text[], %s::text[], %s::float8[], %s, %s, 0, true)
"""

Connection = psycopg.Connection[tuple[Any, ...]]


@dataclass
class Job:
    id: int
    user: str
    kind: str
    due: bool
    key: str | None = None
    retried_from: int | None = None
    state: State = State.QUEUED
    attempt: int = 0
    losses: int = 0
    requeue_count: int = 0
    preemptions: int = 0
    cancel_requested: bool = False

    @property
    def sync(self) -> bool:
        return KINDS[self.kind][0] == "sync"

    @property
    def attempts(self) -> int:
        return KINDS[self.kind][2]

    @property
    def place(self) -> tuple[bool, int, int]:
        return (self.sync, KINDS[self.kind][1], self.id)

    def move(self, event: Event) -> None:
        self.state = after(self.state, event)


@dataclass
class Claim:
    lane: int
    epoch: int
    job: Job
    asked: bool = False
    """To make room for a write of its agent."""


@dataclass
class Worker:
    id: int
    connection: Connection
    claims: dict[str, Claim] = field(default_factory=dict)


class QueueModel(RuleBasedStateMachine):
    """One run of the model; `database` is set by the test."""

    database: str

    def __init__(self) -> None:
        super().__init__()
        self.jobs: dict[int, Job] = {}
        self.keys: dict[tuple[str, str], int] = {}
        self.backing_off: set[str] = set()
        self.paused: set[str] = set()
        self.old: list[tuple[int, Claim]] = []
        self.look = psycopg.connect(self.database, autocommit=True)
        self.outside = psycopg.connect(self.database, autocommit=True)
        self.locked: set[str] = set()
        self.look.execute(
            "TRUNCATE archibald.jobs, archibald.agents, archibald.workers, archibald.job_history, archibald.idempotency_keys, "
            "archibald.sync_keys RESTART IDENTITY"
        )
        self.workers = [self.new_worker(), self.new_worker()]

    def new_worker(self) -> Worker:
        connection = psycopg.connect(worker_options(self.database, "worker", 6), autocommit=True)
        row = connection.execute(
            "INSERT INTO archibald.workers "
            "(host, pid, version, concurrency, max_syncs, kinds, lease_s, max_wait_s, max_preemptions, backend_pid, backend_start) "
            "SELECT 'here', 1, 'test', 10, 10, %s, 6, 900, %s, pid, backend_start FROM pg_stat_activity "
            "WHERE pid = pg_backend_pid() RETURNING id",
            (list(KINDS), MAX_PREEMPTIONS),
        ).fetchone()
        assert row
        return Worker(row[0], connection)

    def value(self, sql: str, *params: Any) -> Any:
        row = self.look.execute(sql, params).fetchone()
        assert row
        return row[0]

    # -- what the model says

    def queued(self, user: str) -> list[Job]:
        return [job for job in self.jobs.values() if job.user == user and job.state is State.QUEUED]

    def head(self, user: str) -> Job | None:
        return min((job for job in self.queued(user) if job.due), key=lambda job: job.place, default=None)

    def running(self, user: str) -> bool:
        return any(user in worker.claims for worker in self.workers)

    def expected_twin(self, user: str, kind: str, key: str | None) -> Job | None:
        taken = self.jobs.get(self.keys.get((user, key), 0)) if key else None
        if taken and taken.state not in {State.FAILED, State.CANCELLED}:
            return taken
        return self.waiting_sync(user, kind)

    def waiting_sync(self, user: str, kind: str) -> Job | None:
        same = [job for job in self.queued(user) if job.sync and job.kind == kind]
        return min(same, key=lambda job: job.id, default=None)

    def absorb_followups(self, job: Job) -> None:
        if job.sync and job.state is State.QUEUED:
            for other in self.queued(job.user):
                if other.kind == job.kind and other is not job:
                    other.move(Event.CANCEL)

    # -- callers

    @initialize(
        some=st.lists(st.tuples(st.sampled_from(USERS), st.sampled_from(sorted(KINDS))), min_size=2, max_size=6)
    )
    def start_with_some(self, some: list[tuple[str, str]]) -> None:
        for user, kind in some:
            self.enqueue(user, kind, None, delayed=False, plain=False, rolled_back=False)

    @rule(user=st.sampled_from(USERS), kind=st.sampled_from(sorted(KINDS)))
    def enqueue_simply(self, user: str, kind: str) -> None:
        self.enqueue(user, kind, None, delayed=False, plain=False, rolled_back=False)

    @rule(
        user=st.sampled_from(USERS),
        kind=st.sampled_from(sorted(KINDS)),
        key=st.sampled_from([None, "k", "l"]),
        delayed=st.booleans(),
        plain=st.booleans(),
        rolled_back=st.sampled_from([False, False, False, True]),
    )
    def enqueue_somehow(  # noqa: PLR0917  # hypothesis names them
        self, user: str, kind: str, key: str | None, delayed: bool, plain: bool, rolled_back: bool
    ) -> None:
        self.enqueue(user, kind, key, delayed=delayed, plain=plain, rolled_back=rolled_back)

    def enqueue(self, user: str, kind: str, key: str | None, *, delayed: bool, plain: bool, rolled_back: bool) -> None:
        twin = self.expected_twin(user, kind, key)
        when = "clock_timestamp() + interval '1 h'" if delayed else "NULL"
        with self.look.transaction(force_rollback=rolled_back):
            if plain:
                sql = f"INSERT INTO archibald.jobs (user_id, kind, idempotency_key, run_after) VALUES (%s, %s, %s, {when}) RETURNING id"
                row = self.look.execute(sql, (user, kind, key)).fetchone()
                assert (row is None) == (twin is not None)
                found = row[0] if row else twin.id if twin else 0
            else:
                found = self.value(f"SELECT archibald.enqueue(%s, %s, '{{}}', %s, {when})", user, kind, key)
        if twin:
            assert found == twin.id
        else:
            assert found not in self.jobs
        if rolled_back:
            return
        if not twin:
            self.jobs[found] = Job(found, user, kind, due=not delayed, key=key)
        if key:
            self.keys[user, key] = found

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        job = self.jobs[data.draw(st.sampled_from(sorted(self.jobs)))]
        answer = self.value("SELECT archibald.cancel_job(%s)", job.id)
        if job.state in TERMINAL:
            assert answer == f"already {job.state}"
        elif job.state is State.RUNNING:
            assert answer == "requested"
            job.cancel_requested = True
        else:
            assert answer == "cancelled"
            job.move(Event.CANCEL)
            if self.head(job.user) is None:  # nobody is left to hold back
                self.backing_off.discard(job.user)

    @rule(
        wanted=st.lists(
            st.tuples(
                st.sampled_from(USERS),
                st.sampled_from(sorted(KINDS)),
                st.sampled_from([None, None, "k", "l"]),
                st.booleans(),
            ),
            max_size=5,
        )
    )
    def enqueue_many(self, wanted: list[tuple[str, str, str | None, bool]]) -> None:
        users, kinds, keys, delays = (list(column) for column in zip(*wanted, strict=True)) if wanted else ([],) * 4
        ids = self.value(
            "SELECT archibald.enqueue_many(%s::text[], %s::text[], array_fill('{}'::jsonb, ARRAY[%s]), %s::text[], "
            "ARRAY (SELECT CASE WHEN d THEN clock_timestamp() + interval '1 h' END "
            "         FROM unnest(%s::bool[]) WITH ORDINALITY AS i(d, n) ORDER BY n))",
            users, kinds, len(wanted), keys, delays,
        )  # fmt: skip
        assert len(ids) == len(wanted)
        new = []
        # they are taken up in this order, which tells which of two equal ones is the duplicate
        for place in sorted(range(len(wanted)), key=lambda n: (users[n], keys[n] is None, keys[n] or "", n)):
            user, kind, key, delayed = wanted[place]
            twin = self.expected_twin(user, kind, key)
            if twin:
                assert ids[place] == twin.id
            else:
                assert ids[place] not in self.jobs
                self.jobs[ids[place]] = Job(ids[place], user, kind, due=not delayed, key=key)
                new.append(place)
            if key:
                self.keys[user, key] = ids[place]
        assert [ids[place] for place in sorted(new)] == sorted(ids[place] for place in new)  # the order given is kept

    # -- people

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def retry(self, data: st.DataObject) -> None:
        job = self.jobs[data.draw(st.sampled_from(sorted(self.jobs)))]
        live = [
            other.id for other in self.jobs.values() if other.retried_from == job.id and other.state not in TERMINAL
        ]
        twin = self.expected_twin(job.user, job.kind, job.key)
        row = self.look.execute("SELECT answer, job FROM archibald.retry_job(%s)", (job.id,)).fetchone()
        assert row
        if job.state is State.NEEDS_REVIEW and (waiting := self.waiting_sync(job.user, job.kind)):
            assert row == ("already retried", waiting.id)
            job.move(Event.DISCARD)
        elif job.state is State.NEEDS_REVIEW:
            assert row == ("queued", job.id)
            job.move(Event.RETRY)
            job.due = True
        elif job.state not in {State.FAILED, State.CANCELLED}:
            assert row == (f"already {job.state}", job.id)
        elif live:
            assert row == ("already retried", min(live))
        elif twin:
            assert row == ("already retried", twin.id)
            if job.key:
                self.keys[job.user, job.key] = twin.id
        else:
            answer, again = row
            assert answer == "enqueued"
            assert again not in self.jobs
            self.jobs[again] = Job(again, job.user, job.kind, due=True, key=job.key, retried_from=job.id)
            if job.key:
                self.keys[job.user, job.key] = again

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def discard(self, data: st.DataObject) -> None:
        job = self.jobs[data.draw(st.sampled_from(sorted(self.jobs)))]
        answer = self.value("SELECT archibald.discard_job(%s)", job.id)
        if job.state is State.NEEDS_REVIEW:
            assert answer == "discarded"
            job.move(Event.DISCARD)
        else:
            assert answer == f"already {job.state}"

    @rule(user=st.sampled_from(USERS))
    def pause(self, user: str) -> None:
        known = self.known(user)
        assert self.value("SELECT archibald.pause_agent(%s, 'why')", user) == known
        if known:
            self.paused.add(user)

    @rule(user=st.sampled_from(USERS))
    def resume(self, user: str) -> None:
        assert self.value("SELECT archibald.resume_agent(%s)", user) == (
            user in self.paused if self.known(user) else None
        )
        self.paused.discard(user)

    def known(self, user: str) -> bool:
        return any(job.user == user for job in self.jobs.values())

    # -- other programs

    @rule(user=st.sampled_from(USERS))
    def lock(self, user: str) -> None:
        if user in self.locked:  # a session can take the same lock twice; once is enough here
            return
        row = self.outside.execute("SELECT archibald.try_lock_agent(%s)", (user,)).fetchone()
        assert row == (not self.running(user),)
        if not self.running(user):
            self.locked.add(user)

    @rule(user=st.sampled_from(USERS), raw=st.booleans())
    def unlock(self, user: str, raw: bool) -> None:
        if raw and user not in self.locked:
            return
        sql = "SELECT pg_advisory_unlock(archibald.lock_key(%s))" if raw else "SELECT archibald.unlock_agent(%s)"
        assert self.outside.execute(sql, (user,)).fetchone() == (user in self.locked,)
        self.locked.discard(user)

    # -- time

    @rule(delays=st.booleans(), backoffs=st.booleans())
    def time_passes(self, delays: bool, backoffs: bool) -> None:
        if delays:
            self.delays_end()
        if backoffs:
            self.backoffs_end()

    def delays_end(self) -> None:
        self.look.execute("UPDATE archibald.jobs SET run_after = now() WHERE NOT due")
        for job in self.jobs.values():
            job.due = True

    def backoffs_end(self) -> None:
        self.look.execute("UPDATE archibald.agents SET retry_at = now(), ready_at = now() WHERE retry_at IS NOT NULL")
        self.backing_off.clear()

    # -- workers

    def turn(self, worker: Worker, settlements: list[tuple[Claim, Event, float]], want: int) -> list[tuple[Any, ...]]:
        self.look.execute("UPDATE archibald.agents SET doubt_at = now() WHERE doubt_at IS NOT NULL")  # time passes
        # but only as a rule says: a slow machine ends no backoff and no key's window
        self.look.execute(
            "UPDATE archibald.agents SET retry_at = retry_at + interval '1 h', ready_at = ready_at + interval '1 h' "
            "WHERE retry_at BETWEEN now() AND now() + interval '30 min'"
        )
        self.look.execute("UPDATE archibald.idempotency_keys SET expires_at = now() + interval '1 h'")
        self.backing_off &= self.locked  # a turn ends the backoff of every agent whose lock is free
        rows = worker.connection.execute(
            TURN,
            (
                worker.id,
                [claim.lane for claim, _, _ in settlements],
                [claim.epoch for claim, _, _ in settlements],
                [claim.job.id for claim, _, _ in settlements],
                [event.value for _, event, _ in settlements],
                [None for _ in settlements],
                [None for _ in settlements],
                [delay for _, _, delay in settlements],
                want,
                want,
            ),
        ).fetchall()
        settled = {claim.job.id for claim, _, _ in settlements}
        for _, claim in self.claims():
            if claim.job.id not in settled and claim.job.sync and claim.job.preemptions < MAX_PREEMPTIONS:
                claim.asked = claim.asked or self.write_is_next(claim.job.user)
        return rows

    def claims(self) -> list[tuple[Worker, Claim]]:
        return [(worker, claim) for worker in self.workers for claim in worker.claims.values()]

    def write_is_next(self, user: str) -> bool:
        head = self.head(user)
        return user not in self.paused and head is not None and KINDS[head.kind][0] == "write"

    @rule(n=st.integers(0, 1), want=st.integers(1, 2))
    def claim(self, n: int, want: int) -> None:
        self.do_claim(self.workers[n], want)

    def do_claim(self, worker: Worker, want: int) -> int:
        able = {
            user: head
            for user in USERS
            if (head := self.head(user))
            and not self.running(user)
            and user not in self.paused
            and (user not in self.backing_off or user not in self.locked)
        }
        rows = self.turn(worker, [], want)
        claimed = 0
        for what, lane, user, epoch, job_id, requeue_count in rows:
            if what == "next":
                continue
            head = able.pop(user)
            assert head.id == job_id
            if what == "requeued":
                assert user in self.locked
                head.requeue_count += 1
                head.move(Event.REQUEUE)
                self.backing_off.add(user)
                assert requeue_count == head.requeue_count
                continue
            assert what == "run"
            assert user not in self.locked
            if head.sync:
                self.absorb_at_start(head)
            head.move(Event.CLAIM)
            worker.claims[user] = Claim(lane, epoch, head)
            self.backing_off.discard(user)
            claimed += 1
        # the best come first, and nobody is left out while something more is wanted
        assert claimed <= want
        if claimed < want:
            assert able == {}
        return claimed

    def absorb_at_start(self, job: Job) -> None:
        """Nothing to absorb is left by then: without concurrency a sync that goes back absorbs at once."""
        assert [other for other in self.queued(job.user) if other.kind == job.kind] == [job]

    @rule(user=st.sampled_from(USERS), kind=st.sampled_from(["sync-customers", "sync-orders"]), n=st.integers(0, 1))
    def a_write_comes_while_a_sync_runs(self, user: str, kind: str, n: int) -> None:
        if not self.queued(user) and not self.running(user):
            self.enqueue(user, kind, None, delayed=False, plain=False, rolled_back=False)
            self.do_claim(self.workers[n], 2)
        self.enqueue(user, "submit-order", None, delayed=False, plain=True, rolled_back=False)
        self.do_claim(self.workers[1 - n], 1)

    @rule(n=st.integers(0, 1))
    def look_for_requests(self, n: int) -> None:
        worker = self.workers[n]
        found = worker.connection.execute(
            "SELECT lane, epoch, job, by_job FROM archibald.preempt_requests(%s) ORDER BY lane", (worker.id,)
        ).fetchall()
        expected = []
        for claim in worker.claims.values():
            claim.asked = claim.asked and self.write_is_next(claim.job.user)
            if claim.asked:
                head = self.head(claim.job.user)
                assert head
                expected.append((claim.lane, claim.epoch, claim.job.id, head.id))
        assert found == sorted(expected)

    @rule(n=st.integers(0, 1))
    def a_sync_does_not_stop(self, n: int) -> None:
        """30 s pass: the writes that wait are requeued, and requests whose reason is gone are taken back."""
        self.look.execute("UPDATE archibald.agents SET preempt_at = now() WHERE preempt_at IS NOT NULL")
        asked = [claim for _, claim in self.claims() if claim.asked]  # who is asked only in this turn has 30 s yet
        rows = self.turn(self.workers[n], [], 0)
        expected = []
        for claim in asked:
            claim.asked = self.write_is_next(claim.job.user)
            if claim.asked:
                head = self.head(claim.job.user)
                assert head
                head.move(Event.REQUEUE)
                head.requeue_count += 1
                expected.append((head.id, head.requeue_count))
        assert sorted((row[4], row[5]) for row in rows if row[0] == "requeued") == sorted(expected)

    @invariant()
    def those_are_asked_to_make_room_that_the_model_says(self) -> None:
        rows = self.look.execute(
            "SELECT id FROM archibald.jobs WHERE preempt_requested_at IS NOT NULL ORDER BY id"
        ).fetchall()
        assert rows == [(job_id,) for job_id in sorted(claim.job.id for _, claim in self.claims() if claim.asked)]

    @rule(
        n=st.integers(0, 1),
        event=st.sampled_from(
            [Event.RETRY, Event.GO_BACK, Event.PREEMPT, Event.COMPLETE, Event.FAIL, Event.CANCEL, Event.REVIEW]
        ),
        delay=st.sampled_from([0.0, 60.0]),
        every=st.booleans(),
        asked_to_stop=st.sampled_from([False, False, True]),
    )
    def work(self, n: int, event: Event, delay: float, every: bool, asked_to_stop: bool) -> None:
        """Settle one or all of what a worker runs; it claims first if it runs nothing."""
        worker = self.workers[n]
        if not worker.claims:
            self.do_claim(worker, 2)
        claims = sorted(worker.claims.values(), key=lambda claim: claim.job.id)[: None if every else 1]
        items = []
        for claim in claims:
            if asked_to_stop:
                assert self.value("SELECT archibald.cancel_job(%s)", claim.job.id) == "requested"
                claim.job.cancel_requested = True
            event = Event.GO_BACK if event is Event.PREEMPT and not claim.job.sync else event
            last = event is Event.RETRY and claim.job.attempt + 1 >= claim.job.attempts
            items.append((claim, Event.FAIL if last else event, delay))
        rows = self.turn(worker, items, 0) if items else []
        assert sorted(row[4] for row in rows if row[0] == "settled") == sorted(claim.job.id for claim in claims)
        for claim, done, wait in items:
            self.apply(claim.job, done, wait)
            del worker.claims[claim.job.user]
            self.old.append((worker.id, claim))

    def apply(self, job: Job, event: Event, delay: float) -> None:
        if job.cancel_requested and event in {Event.RETRY, Event.GO_BACK, Event.PREEMPT}:
            event = Event.CANCEL
        job.move(event)
        job.cancel_requested = False
        if event is Event.RETRY:
            job.due = delay == 0
            job.preemptions = 0
        if event is Event.PREEMPT:
            job.preemptions += 1
        if event in {Event.RETRY, Event.COMPLETE, Event.FAIL}:
            job.attempt += 1
        self.absorb_followups(job)

    @rule(
        n=st.integers(0, 1),
        kind=st.sampled_from(["sync-customers", "sync-orders"]),
        event=st.sampled_from([Event.RETRY, Event.GO_BACK]),
    )
    def a_sync_goes_back_while_its_follow_up_waits(self, n: int, kind: str, event: Event) -> None:
        for user in USERS:
            self.enqueue(user, kind, None, delayed=False, plain=False, rolled_back=False)
        self.work(n, event, 0.0, every=False, asked_to_stop=False)
        for user in USERS:
            self.enqueue(user, kind, None, delayed=False, plain=False, rolled_back=False)
        self.work(n, event, 60.0, every=True, asked_to_stop=False)

    @invariant()
    def what_was_settled_or_lost_cannot_be_settled_again(self) -> None:
        for owner, claim in self.old[-4:]:
            row = self.look.execute(COMPLETE, (owner, claim.lane, claim.epoch, claim.lane, claim.job.id)).fetchone()
            assert row == ("lost",)

    @rule(n=st.integers(0, 1), limit=st.integers(1, 3))
    def lose_a_worker(self, n: int, limit: int) -> None:
        lost, other = self.workers[n], self.workers[1 - n]
        self.look.execute("UPDATE archibald.workers SET beat = now() - interval '7 s' WHERE id = %s", (lost.id,))
        assert other.connection.execute(
            "SELECT worker FROM archibald.fence_stale_workers(%s)", (other.id,)
        ).fetchall() == [(lost.id,)]
        assert [
            row[0]
            for row in lost.connection.execute(
                "SELECT what FROM archibald.turn(%s, '{}', '{}', '{}', '{}', '{}', '{}', '{}', 1, 1, 0, true)",
                (lost.id,),
            ).fetchall()
        ] == ["fenced"]
        lost.connection.close()
        self.until(
            "SELECT NOT EXISTS (SELECT FROM pg_stat_activity s JOIN archibald.workers w ON w.backend_pid = s.pid "
            "AND w.backend_start = s.backend_start WHERE w.id = %s)",
            lost.id,
        )
        fates: dict[int, str] = {}
        while rows := other.connection.execute(
            "SELECT job, fate FROM archibald.release_fenced_lanes(%s, %s)", (limit, MAX_LOSSES)
        ).fetchall():
            assert len(rows) <= limit
            fates.update(rows)
        assert set(fates) == {claim.job.id for claim in lost.claims.values()}
        for claim in lost.claims.values():
            job = claim.job
            job.losses += 1
            if KINDS[job.kind][0] == "write":
                job.move(Event.REVIEW)
            elif job.losses >= MAX_LOSSES:
                job.move(Event.FAIL)
            else:
                job.move(Event.CANCEL if job.cancel_requested else Event.GO_BACK)
            assert fates[job.id] == job.state
            job.cancel_requested = False
            self.absorb_followups(job)
            self.old.append((lost.id, claim))
        self.workers[n] = self.new_worker()

    def until(self, sql: str, *params: Any) -> None:
        for _ in range(10_000):
            if self.value(sql, *params):
                return
        raise AssertionError(sql)

    # -- what always holds

    @invariant()
    def the_tables_say_what_the_model_says(self) -> None:
        rows = self.look.execute(
            "SELECT id, state, attempt, losses, requeue_count, retried_from, preemptions FROM archibald.all_jobs ORDER BY id"
        ).fetchall()
        assert rows == [
            (job.id, job.state, job.attempt, job.losses, job.requeue_count, job.retried_from, job.preemptions)
            for _, job in sorted(self.jobs.items())
        ]
        assert self.value("SELECT count(*) FROM archibald.all_jobs WHERE attempt > max_attempts") == 0

    @invariant()
    def lanes_run_where_their_lock_is_held(self) -> None:
        claims = sorted(
            (claim.lane, worker.id, claim.epoch, [claim.job.id])
            for worker in self.workers
            for claim in worker.claims.values()
        )
        lanes = "SELECT id, worker_id, epoch, turn_job_ids FROM archibald.agents WHERE state = 'running' ORDER BY id"
        assert self.look.execute(lanes).fetchall() == claims
        pids = {worker.connection.info.backend_pid: worker for worker in self.workers}
        held = self.look.execute(
            "SELECT pid, a.user_id FROM pg_locks l LEFT JOIN archibald.agents a "
            "ON a.lock_key = (l.classid::bigint << 32) | l.objid::bigint "
            "WHERE l.locktype = 'advisory' AND l.pid = ANY (%s)",
            (list(pids),),
        ).fetchall()
        assert sorted(held) == sorted((pid, user) for pid, worker in pids.items() for user in worker.claims)

    def teardown(self) -> None:
        try:
            if self.jobs:
                self.drain()
        finally:
            for connection in (self.look, self.outside, *(worker.connection for worker in self.workers)):
                connection.close()

    def drain(self) -> None:
        """Everything ends: nothing is lost, and the lanes are left empty."""
        for user in sorted(self.locked):
            self.unlock(user, raw=False)
        for user in sorted(self.paused):
            self.resume(user)
        for _ in range(len(self.jobs) + 2):
            self.delays_end()
            self.backoffs_end()
            for worker in self.workers:
                self.do_claim(worker, 10)
                items = [(claim, Event.COMPLETE, 0.0) for claim in worker.claims.values()]
                self.turn(worker, items, 0)
                for claim, event, delay in items:
                    self.apply(claim.job, event, delay)
                worker.claims.clear()
        self.the_tables_say_what_the_model_says()
        self.lanes_run_where_their_lock_is_held()
        assert {job.state for job in self.jobs.values()} <= {*TERMINAL, State.NEEDS_REVIEW}
        assert (
            self.value(
                "SELECT count(*) FROM archibald.agents WHERE state <> 'idle' "
                "OR doubt_at IS NOT NULL OR retry_at IS NOT NULL"
            )
            == 0
        )
        assert self.value("SELECT count(*) FROM archibald.jobs WHERE wake") == 0


@pytest.mark.timeout(600)  # it is a slow machine that needs more than a minute
def test_the_queue_does_what_its_model_does(database: str) -> None:
    QueueModel.database = database
    run_state_machine_as_test(
        QueueModel,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            # In CI the same examples each time: a change is judged by itself. Every other run looks for new ones.
            derandomize="CI" in os.environ,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.explicit, Phase.reuse, Phase.generate],  # shrinking takes longer than a test may
        ),
    )
