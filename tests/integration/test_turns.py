"""Turns of several jobs: many short jobs of an agent share a round trip, and every other promise holds."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest

from archibald_pgq import Archibald, JobContext, NewJob
from archibald_pgq.domain.job import ClaimedJob
from archibald_pgq.domain.outcome import Outcome
from archibald_pgq.domain.pace import Pace
from archibald_pgq.runtime.breakers import Breakers
from archibald_pgq.runtime.dispatcher import Dispatcher
from archibald_pgq.runtime.executor import Run
from archibald_pgq.runtime.lane_run import HOGS, LaneRun
from archibald_pgq.runtime.session import Session
from archibald_pgq.store import workers
from archibald_pgq.store.turn import Answer, Mark, Owner, Report, Settlement, Turn, Want
from tests.hand import Hand, hand
from tests.support import PATIENCE, Look, looking, working

ENQUEUE = "SELECT archibald.enqueue(%s, %s)"
READ, WRITE, SYNC = "download-ddt-pdf", "submit-order", "sync-orders"
SHORT = {READ: 5, SYNC: 5}


def owner(job: ClaimedJob) -> Owner:
    return Owner(job.lane, job.epoch)


def ended(job: ClaimedJob, outcome: Outcome | None = None) -> Settlement:
    return Settlement(job.job_id, outcome or Outcome.completed("1"), time.monotonic(), time.monotonic())


def back(job: ClaimedJob) -> Settlement:
    return Settlement(job.job_id, Outcome.gone_back())


async def enqueued(look: Look, user: str, *kinds: str) -> list[int]:
    return [await look.value(ENQUEUE, user, kind) for kind in kinds]


async def claim(worker: Hand, jobs: int = 10, ahead: int = 0) -> list[ClaimedJob]:
    return (await worker.report(want=Want(jobs, jobs, ahead=ahead, short=SHORT), look=True)).claimed


def run_of(job: ClaimedJob, handle: Callable[[JobContext, dict[str, Any]], Awaitable[Any]]) -> Run:
    async def nothing(*_: object) -> None:
        raise AssertionError

    return Run(
        job,
        handle,
        1,
        ask=nothing,
        breakers=Breakers(1, nothing),
        browsers=None,
        brief=True,
        grace=1.0,
        ask_again=lambda: None,
    )


def dispatching(database: str, worker: Hand, handle: Callable[[JobContext, dict[str, Any]], Awaitable[Any]]) -> Any:
    """Return a dispatcher of two consumers on this worker's connection."""
    return Dispatcher(
        database,
        worker.connection,
        worker.worker_id,
        60.0,
        lambda job: run_of(job, handle),
        in_contact=lambda: True,
        consumers=2,
        max_syncs=1,
        looked=lambda: None,
    )


async def states(look: Look) -> list[tuple[Any, ...]]:
    return await look.rows("SELECT id, state FROM archibald.all_jobs ORDER BY id")


# -- what a turn brings


async def test_short_jobs_of_an_agent_come_together_in_their_order(look: Look, database: str) -> None:
    async with hand(database) as worker:
        ids = await enqueued(look, "alice", *[READ] * 7)
        jobs = await claim(worker)
        assert [(job.job_id, job.marked) for job in jobs] == [(job_id, False) for job_id in ids[:5]]
        assert await look.rows("SELECT turn_job_ids, state FROM archibald.agents") == [(ids[:5], "running")]
        assert await claim(worker) == []
        turn = await worker.report(Report(owner(jobs[0]), [ended(job) for job in jobs]), want=Want(1, 1, short=SHORT))
        assert [job.job_id for job in turn.claimed] == ids[5:]


@pytest.mark.parametrize("kind", [WRITE, SYNC])
async def test_a_write_and_a_sync_come_alone_and_marked(look: Look, database: str, kind: str) -> None:
    """A write is committed as running before its handler starts; requests for a sync merge only with one that has not begun."""
    async with hand(database) as worker:
        first, *_ = await enqueued(look, "alice", kind, READ if kind == WRITE else WRITE, kind)
        await look.rows("UPDATE archibald.jobs SET priority = 0 WHERE id = %s", first)
        if kind == SYNC:
            await look.rows("DELETE FROM archibald.jobs WHERE class = 'write'")
        (job,) = await claim(worker)
        assert (job.job_id, job.marked) == (first, True)
        assert await look.job(first, "state") == ("running",)


async def test_a_write_between_short_jobs_ends_the_turn_before_it(look: Look, database: str) -> None:
    async with hand(database) as worker:
        ids = await enqueued(look, "alice", READ, READ, WRITE, READ)
        await look.rows("UPDATE archibald.jobs SET priority = 5")
        assert [job.job_id for job in await claim(worker)] == ids[:2]


async def test_a_job_that_a_caller_holds_ends_the_turn_before_it(look: Look, database: str) -> None:
    async with hand(database) as worker, looking(database) as caller:
        ids = await enqueued(look, "alice", *[READ] * 3)
        await worker.report(look=True)  # the agent is known before the caller holds one of its jobs
        async with caller.connection.transaction():
            await caller.rows("SELECT FROM archibald.jobs WHERE id = %s FOR UPDATE", ids[1])
            assert [job.job_id for job in await claim(worker)] == ids[:1]


async def test_lanes_are_taken_ahead_for_short_jobs_only(look: Look, database: str) -> None:
    async with hand(database) as worker:
        for user in ("alice", "bob", "carol"):
            await enqueued(look, user, READ, READ)
        await enqueued(look, "dora", WRITE)
        await enqueued(look, "emil", WRITE)
        await look.rows("UPDATE archibald.jobs SET priority = 0 WHERE class = 'write'")
        first = await claim(worker, jobs=1, ahead=2)
        assert [job.kind for job in first] in ([WRITE], [WRITE, READ, READ])
        second = await claim(worker, jobs=1, ahead=2)
        assert [job.kind for job in second][:1] == [WRITE]
        while more := await claim(worker, jobs=0, ahead=2):
            assert all(job.kind == READ for job in more)
        assert await look.value("SELECT count(*) FROM archibald.agents WHERE state = 'running'") == 5


# -- what comes while a turn runs


async def part_of(
    worker: Hand, jobs: list[ClaimedJob], done: int, want: int = 1, *, look: bool = False
) -> list[ClaimedJob]:
    """Report the first jobs of a turn that goes on, as one that asks for more; return what came."""
    report = Report(owner(jobs[0]), [ended(job) for job in jobs[:done]])
    return (await worker.report(report, want=Want(want, want, short=SHORT), look=look)).claimed


async def test_a_turn_that_is_nearly_over_gets_the_agents_next_jobs(look: Look, database: str) -> None:
    async with hand(database) as worker:
        ids = await enqueued(look, "alice", *[READ] * 7)
        jobs = await claim(worker)
        more = await part_of(worker, jobs, 4)
        assert [(job.job_id, job.epoch, job.marked) for job in more] == [
            (job_id, jobs[0].epoch, False) for job_id in ids[5:]
        ]
        assert await look.rows("SELECT turn_job_ids, state FROM archibald.agents") == [(ids[4:], "running")]
        assert await part_of(worker, [jobs[4], *more], 1) == []
        await worker.report(Report(owner(jobs[0]), [ended(job) for job in more]))
        assert [state for _, state in await states(look)] == ["completed"] * 7
        assert await look.value("SELECT count(DISTINCT epoch) FROM archibald.job_history") == 1


@pytest.mark.parametrize("other", ["another agent", "no consumer", "better", "unseen", "paused", "write", "held"])
async def test_a_turn_gets_no_more_jobs_where_something_goes_before_them(look: Look, database: str, other: str) -> None:
    async with hand(database) as worker, looking(database) as caller:
        ids = await enqueued(
            look, "alice", *[READ] * (2 if other == "write" else 7), *([WRITE] if other == "write" else [])
        )
        jobs = await claim(worker)
        want = 0 if other == "no consumer" else 1
        match other:
            case "another agent":
                await enqueued(look, "bob", READ)
            case "better":
                await look.rows("INSERT INTO archibald.jobs (user_id, kind, priority) VALUES ('alice', %s, 0)", READ)
            case "unseen":
                await look.rows("UPDATE archibald.jobs SET agent_id = NULL, wake = true WHERE id = %s", ids[5])
                await worker.connection.execute(
                    "SELECT set_config('archibald.wake_rest', (clock_timestamp() + interval '1 h')::text, false)"
                )
            case "paused":
                await look.rows("SELECT archibald.pause_agent('alice')")
        async with caller.connection.transaction():
            if other == "held":
                await caller.rows("SELECT FROM archibald.jobs WHERE id = %s FOR UPDATE", ids[5])
            # asked to look, because after a slow look on a busy machine the next turn does without
            more = await part_of(worker, jobs, len(jobs) - 1, want, look=other == "another agent")
        assert [job.user_id for job in more] == (["bob"] if other == "another agent" else [])
        assert await look.value("SELECT turn_job_ids FROM archibald.agents WHERE user_id = 'alice'") == [
            jobs[-1].job_id
        ]


async def test_jobs_that_come_after_the_end_of_their_turn_go_back_to_their_place(look: Look, database: str) -> None:
    """Its last job was shorter than the round trip that was to bring more; or the reply was lost, and the database says it."""
    said: list[LaneRun] = []

    def never(job: ClaimedJob) -> Any:
        raise AssertionError(f"{job.job_id} was run")

    async with hand(database) as worker:
        ids = await enqueued(look, "alice", *[READ] * 8)
        jobs = await claim(worker)
        lane = LaneRun(jobs, never, said.append, lambda: True, lambda: True)
        lane.give_back()
        more = await part_of(worker, jobs, 4)
        lane.owns(job.job_id for job in jobs)
        assert said == []  # nothing new, so no turn is asked for
        lane.go_on(more[:1])
        lane.owns(job.job_id for job in [jobs[4], *more])
        assert said == [lane, lane]
        report = lane.report()
        assert report is not None
        assert sorted(item.job_id for item in report.settlements) == ids
        await worker.report(Report(report.owner, report.settlements[4:]))
        assert await look.rows("SELECT turn_job_ids, state FROM archibald.agents") == [([], "ready")]
        assert [job.job_id for job in await claim(worker)] == ids[4:]


@pytest.mark.parametrize("lost", ["contact", "time"])
async def test_a_process_that_was_stopped_between_two_jobs_of_a_turn_does_not_begin_the_second(
    look: Look, database: str, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    """Others may have its agents by then. It is active before it looks, so that one stopped after the look ends when it is continued."""
    ran, active, stopped = [], [], False

    async def handle(ctx: JobContext, data: dict[str, Any]) -> None:
        nonlocal stopped
        ran.append(ctx.job_id)
        stopped = True

    def in_contact() -> bool:
        active.append(lane.active)
        return lost != "contact" or not stopped

    async with hand(database) as worker:
        ids = await enqueued(look, "alice", READ, READ, READ)
        lane = LaneRun(await claim(worker), lambda job: run_of(job, handle), lambda _: None, in_contact, lambda: True)
        clock = time.monotonic
        if lost == "time":
            monkeypatch.setattr(time, "monotonic", lambda: clock() + (10.0 if stopped else 0.0))
        await lane.execute("consumer-0")
    report = lane.report()
    assert ran == ids[:1]
    assert active == [True, True]
    assert not lane.active
    assert report is not None
    assert [item.outcome.event for item in report.settlements] == ["complete", "go_back", "go_back"]


@pytest.mark.parametrize("consumer_waits", [True, False])
async def test_a_lane_asks_for_more_jobs_only_where_a_consumer_has_nothing_to_run(
    look: Look, database: str, monkeypatch: pytest.MonkeyPatch, consumer_waits: bool
) -> None:
    """Else nothing comes of it, and each lane is reported twice."""
    monkeypatch.setattr("archibald_pgq.runtime.lane_run.LONGEST", PATIENCE)  # a busy machine may take its time
    clock, passed = time.monotonic, 0.0
    monkeypatch.setattr(time, "monotonic", lambda: clock() + passed)

    async def handle(ctx: JobContext, data: dict[str, Any]) -> None:
        nonlocal passed
        passed += 0.02

    said: list[LaneRun] = []
    async with hand(database) as worker:
        await enqueued(look, "alice", READ, READ, READ)
        lane = LaneRun(
            await claim(worker), lambda job: run_of(job, handle), said.append, lambda: True, lambda: consumer_waits
        )
        await lane.execute("consumer-0")
    assert len(lane.took) == 3
    assert said == ([lane] if consumer_waits else [])


async def test_lanes_that_end_together_are_settled_by_one_turn_which_asks_for_as_many(
    look: Look, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also while another lane waits at hand: a turn that asked for none would keep the consumers waiting for the one after it."""

    class SentError(Exception):
        """The turn that settles."""

    settled: list[int] = []
    wanted: list[int] = []
    take = Session.take_turn

    async def send(self: Session, reports: Sequence[Report], want: Want, **options: Any) -> Answer:
        if not reports:
            return await take(self, reports, want, **options)
        settled.extend(report.owner.lane for report in reports)
        wanted.append(want.jobs)
        raise SentError

    monkeypatch.setattr(Session, "take_turn", send)
    for module in ("lane_run", "dispatcher"):  # a busy machine may take its time
        monkeypatch.setattr(f"archibald_pgq.runtime.{module}.LONGEST", PATIENCE)
    end, later, begun = asyncio.Event(), asyncio.Event(), asyncio.Semaphore(0)

    async def handle(ctx: JobContext, data: dict[str, Any]) -> None:
        begun.release()
        await (later if ctx.user_id == "carol" else end).wait()

    async def consume() -> None:
        while True:
            lane = await dispatcher.next_lane()
            await lane.execute("consumer")
            dispatcher.ended(lane)
            await asyncio.sleep(0)  # as every consumer whose lane took longer than a moment

    async with hand(database) as worker:
        for user in ("alice", "bob", "carol"):
            await enqueued(look, user, READ)
        jobs = await claim(worker)
        dispatcher = dispatching(database, worker, handle)
        tasks = [asyncio.create_task(consume()) for _ in range(2)]
        await asyncio.sleep(0)
        for job in jobs:
            dispatcher._hand_out([job])
        turns = asyncio.create_task(dispatcher.run())
        for _ in range(2):
            await begun.acquire()
        await asyncio.wait_for(dispatcher.begun.wait(), PATIENCE)  # the turn that the wishes were for
        end.set()
        with pytest.raises(SentError):
            await turns
        dispatcher.stop_claiming()
        later.set()
        await asyncio.wait(tasks)
    assert (settled, wanted) == ([job.lane for job in jobs[:2]], [1])


async def test_jobs_that_wait_for_nothing_count_for_as_long_as_their_lane_lasts_beside_others(
    look: Look, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lanes of them take turns: counted alone, ten lanes would bring ten times what runs in a turn, and most of it would go back."""
    told: list[float] = []
    monkeypatch.setattr(Pace, "job_ended", lambda self, kind, policy, seconds: told.append(seconds))
    monkeypatch.setattr("archibald_pgq.runtime.lane_run.LONGEST", PATIENCE)  # a busy machine may take its time

    async def handle(ctx: JobContext, data: dict[str, Any]) -> None:
        time.sleep(2 * HOGS)  # noqa: ASYNC251  # it waits for nothing

    async with hand(database) as worker:
        for user in ("alice", "bob"):
            await enqueued(look, user, *[READ] * 5)
        jobs = await claim(worker)
        first, second = (
            LaneRun(turn, lambda job: run_of(job, handle), lambda _: None, lambda: True, lambda: True)
            for turn in (jobs[:5], jobs[5:])
        )
        await asyncio.gather(first.execute("consumer-0"), second.execute("consumer-1"))
        dispatcher = dispatching(database, worker, handle)
        dispatcher.ended(first)
    assert len(told) == len(first.took) == len(second.took) == 5
    assert first.lasted > sum(first.took) + sum(second.took[:-1])
    assert sum(told) == pytest.approx(first.lasted)


async def test_an_agent_with_nobody_beside_it_goes_on_without_a_new_claim(app: Archibald, look: Look) -> None:
    """Of such jobs a turn has at most five, so who ran more in one epoch has got more in time; on a busy machine it has fewer."""
    ran = []

    @app.operation("fetch", job_class="read")
    async def fetch(ctx: JobContext, data: dict[str, Any]) -> None:
        ran.append(data["n"])
        await asyncio.sleep(0.01)

    await app.enqueue_many([NewJob("fetch", user_id="alice", data={"n": n}) for n in range(60)])
    async with working(app):
        await look.until("SELECT count(*) = 60 FROM archibald.job_history")
    assert ran == list(range(60))
    longest = "SELECT max(jobs) FROM (SELECT count(*) AS jobs FROM archibald.job_history GROUP BY epoch) AS e"
    assert await look.value(longest) > 5


async def test_while_an_answer_waits_to_be_read_no_outcome_is_reported_twice(
    app: Archibald, look: Look, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next turn is sent meanwhile, and must know what the one before has told already."""
    unread = False
    told: list[tuple[Owner, int]] = []

    async def send(self: Session, reports: Sequence[Report], want: Want, **options: Any) -> Answer:
        nonlocal unread
        told.extend((report.owner, item.job_id) for report in reports for item in report.settlements)
        answer = await sent(self, reports, want, **options)
        read = answer.read

        def reading() -> Turn:
            nonlocal unread
            unread = unread or sent_since != len(told)
            return read()

        sent_since = len(told)
        answer.read = reading  # type: ignore[method-assign]
        return answer

    sent = Session.take_turn
    monkeypatch.setattr(Session, "take_turn", send)
    ran: list[str] = []

    @app.operation("quick", job_class="read")
    async def quick(ctx: JobContext, data: object) -> None:
        ran.append(ctx.user_id)

    await app.enqueue_many([NewJob("quick", user_id=f"user-{n}") for n in range(2000)])
    async with working(app):
        await look.until("SELECT count(*) = 0 FROM archibald.jobs")
    assert len(ran) == len(set(ran)) == 2000
    assert unread, "no turn was sent before the answer of the one before was read"
    assert len(told) == len(set(told))
    assert not [record for record in caplog.records if "refused" in record.getMessage()]


# -- what a settle makes of it


async def test_a_job_that_still_runs_is_marked_and_the_rest_goes_back(look: Look, database: str) -> None:
    async with hand(database) as worker:
        ids = await enqueued(look, "alice", *[READ] * 4)
        jobs = await claim(worker)
        report = Report(owner(jobs[0]), [ended(jobs[0]), *map(back, jobs[2:])], Mark(ids[1], time.monotonic()))
        for _ in range(2):  # the reply may be lost, and the same be sent again
            assert await worker.report(report) == Turn()
            assert await states(look) == [
                (ids[0], "completed"),
                (ids[1], "running"),
                (ids[2], "queued"),
                (ids[3], "queued"),
            ]
            assert await look.rows("SELECT turn_job_ids, state FROM archibald.agents") == [([ids[1]], "running")]
        assert await claim(worker) == []
        await worker.report(Report(owner(jobs[0]), [ended(jobs[1])]))
        assert [job.job_id for job in await claim(worker)] == ids[2:]


async def test_a_repeated_report_spends_no_second_attempt(look: Look, database: str) -> None:
    async with hand(database) as worker:
        ids = await enqueued(look, "alice", READ, READ)
        await look.rows("UPDATE archibald.jobs SET max_attempts = 9")
        jobs = await claim(worker)
        part = Report(owner(jobs[0]), [ended(jobs[0], Outcome.retry("again", 60.0))])
        for _ in range(3):
            await worker.report(part)
            assert await look.job(ids[0], "attempt", "state") == (1, "queued")
            assert await look.value("SELECT turn_job_ids FROM archibald.agents") == [ids[1]]
        await worker.report(Report(owner(jobs[0]), [back(jobs[1])]))
        assert await look.rows("SELECT turn_job_ids, state FROM archibald.agents") == [([], "ready")]


async def test_a_cancelled_job_of_a_turn_does_not_begin_later(look: Look, database: str) -> None:
    async with hand(database) as worker:
        ids = await enqueued(look, "alice", READ, READ, READ)
        jobs = await claim(worker)
        assert await look.value("SELECT archibald.cancel_job(%s)", ids[1]) == "requested"
        await worker.report(Report(owner(jobs[0]), [ended(jobs[0]), back(jobs[1]), back(jobs[2])]))
        assert await states(look) == [(ids[0], "completed"), (ids[1], "cancelled"), (ids[2], "queued")]


async def test_the_worker_is_told_that_the_job_it_marks_is_cancelled(look: Look, database: str) -> None:
    async with hand(database) as worker:
        ids = await enqueued(look, "alice", READ)
        (job,) = await claim(worker)
        assert await look.value("SELECT archibald.cancel_job(%s)", ids[0]) == "requested"
        turn = await worker.report(Report(owner(job), [], Mark(job.job_id, time.monotonic())))
        assert turn.unwanted == [owner(job)]


async def test_a_row_that_a_caller_holds_keeps_its_lane_only(look: Look, database: str) -> None:
    async with hand(database) as worker, looking(database) as caller:
        for user in ("alice", "bob"):
            await enqueued(look, user, READ, READ)
        jobs = await claim(worker)
        reports = [Report(owner(pair[0]), [ended(job) for job in pair]) for pair in (jobs[:2], jobs[2:])]
        async with caller.connection.transaction():
            await caller.rows("SELECT FROM archibald.jobs WHERE id = %s FOR UPDATE", jobs[1].job_id)
            turn = await worker.report(*reports)
            assert (turn.locked, turn.lost) == ([owner(jobs[0])], [])
            assert [state for _, state in await states(look)].count("completed") == 2
        assert await worker.report(reports[0]) == Turn()
        assert await look.value("SELECT count(*) FROM archibald.job_history") == 4


async def test_a_later_job_of_a_turn_that_a_caller_holds_does_not_keep_what_ran_before_it(
    look: Look, database: str
) -> None:
    """It never began: it goes back without being written."""
    async with hand(database) as worker, looking(database) as caller:
        ids = await enqueued(look, "alice", READ, READ)
        jobs = await claim(worker)
        async with caller.connection.transaction():
            await caller.rows("SELECT FROM archibald.jobs WHERE id = %s FOR UPDATE", ids[1])
            assert await worker.report(Report(owner(jobs[0]), [ended(jobs[0]), back(jobs[1])])) == Turn()
            assert await states(look) == [(ids[0], "completed"), (ids[1], "queued")]
            assert await claim(worker) == []
        await look.until("SELECT ready_at <= clock_timestamp() FROM archibald.agents")
        assert [job.job_id for job in await claim(worker)] == [ids[1]]


async def test_the_history_tells_when_each_job_of_a_turn_ran(look: Look, database: str) -> None:
    async with hand(database) as worker:
        await enqueued(look, "alice", READ, READ)
        jobs = await claim(worker)
        now = time.monotonic()
        items = [Settlement(job.job_id, Outcome.completed("1"), now - 3 + n, now - 2 + n) for n, job in enumerate(jobs)]
        await worker.report(Report(owner(jobs[0]), items))
        rows = await look.rows(
            "SELECT extract(epoch FROM finished_at - started_at)::float8, "
            "extract(epoch FROM started_at - lag(finished_at) OVER (ORDER BY id))::float8 FROM archibald.job_history ORDER BY id"
        )
        assert rows[0] == (pytest.approx(1.0, abs=1e-4), None)
        assert rows[1] == (pytest.approx(1.0, abs=1e-4), pytest.approx(0.0, abs=1e-4))


# -- what a death makes of it


async def test_after_a_death_nobody_is_charged_unmarked_and_the_agent_goes_one_by_one_until_a_job_completes(
    look: Look, database: str
) -> None:
    async with hand(database) as silent, hand(database) as other:
        ids = await enqueued(look, "alice", *[READ] * 4)
        await look.rows("UPDATE archibald.jobs SET max_attempts = 9")
        assert len(await claim(silent)) == 4
        assert await look.value("SELECT archibald.cancel_job(%s)", ids[3]) == "requested"
        await look.rows("UPDATE archibald.workers SET beat = now() - interval '7 s' WHERE id = %s", silent.worker_id)
        await workers.fence_stale(other.connection, other.worker_id)
        await workers.end_lost_backends(other.connection)
        released = await workers.release_fenced(other.connection, 100, 3)
        assert released == [workers.Released("alice", ids[3], "cancelled")]
        assert await look.value("SELECT sum(losses) FROM archibald.jobs") == 0
        assert await look.job(ids[3], "state", "worker_id") == ("cancelled", silent.worker_id)  # it may have run there
        (job,) = await claim(other)
        assert (job.job_id, job.marked) == (ids[0], True)
        await other.report(Report(owner(job), [ended(job, Outcome.retry("it failed", 0.0))]))
        (job,) = await claim(other)
        assert (job.job_id, job.marked) == (ids[0], True)
        await other.report(Report(owner(job), [ended(job)]))
        assert [(job.job_id, job.marked) for job in await claim(other)] == [(ids[1], False), (ids[2], False)]


# -- the daemon


@pytest.fixture
def slow_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that returns at once is short, however long this machine takes to run it."""
    monkeypatch.setattr("archibald_pgq.domain.pace.TURN", 5.0)


@pytest.fixture
def cut(monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Is set when a turn was told to end at the job that runs."""
    told = asyncio.Event()
    cut_lane = LaneRun.cut

    def cut_and_say(lane: LaneRun) -> None:
        cut_lane(lane)
        told.set()

    monkeypatch.setattr(LaneRun, "cut", cut_and_say)
    return told


@pytest.mark.usefixtures("slow_machine")
async def test_a_daemon_learns_which_jobs_are_short_and_marks_one_that_is_not(app: Archibald, look: Look) -> None:
    """Twenty short ones, then one that takes long, and one behind it: that runs after it, and not in its turn."""
    go_on, order = asyncio.Event(), []

    @app.operation(READ, job_class="read")
    async def read(ctx: JobContext, data: dict[str, Any]) -> None:
        order.append(data["n"])
        if data["n"] == 20:
            await go_on.wait()

    async with working(app):
        for n in range(22):
            await app.enqueue(READ, user_id="alice", data={"n": n})
        await look.until("SELECT count(*) = 1 FROM archibald.jobs WHERE state = 'running' AND payload ->> 'n' = '20'")
        await look.until("SELECT count(*) = 20 FROM archibald.job_history")
        assert order == list(range(21))
        go_on.set()
        await look.until("SELECT count(*) = 22 FROM archibald.job_history")
    assert order == list(range(22))
    overlaps = await look.value(
        "SELECT count(*) FROM (SELECT started_at < lag(finished_at) OVER (ORDER BY id) AS early "
        "                        FROM archibald.job_history) AS h WHERE early"
    )
    assert overlaps == 0


@pytest.mark.usefixtures("slow_machine")
async def test_a_cancel_reaches_a_turn_before_its_next_job(app: Archibald, look: Look, cut: asyncio.Event) -> None:
    in_hand, go_on, ran = asyncio.Event(), asyncio.Event(), []

    @app.operation(READ, job_class="read")
    async def read(ctx: JobContext, data: dict[str, Any]) -> None:
        ran.append(data["n"])
        if data["n"] == "held":
            in_hand.set()
            await go_on.wait()

    async with working(app):
        await asyncio.gather(
            *(job.wait(PATIENCE) for job in [await app.enqueue(READ, user_id="bob", data={"n": n}) for n in range(9)])
        )
        await app.pause_agent("bob")
        held = await app.enqueue(READ, user_id="bob", data={"n": "held"})
        late = await app.enqueue(READ, user_id="bob", data={"n": "late"})
        await app.resume_agent("bob")
        async with asyncio.timeout(PATIENCE):
            await in_hand.wait()
        cut.clear()
        await app.cancel(late.id)
        async with asyncio.timeout(PATIENCE):
            await cut.wait()
        go_on.set()
        await look.until_state(held.id, "completed")
        await look.until_state(late.id, "cancelled")
    assert "late" not in ran


@pytest.mark.usefixtures("slow_machine")
@pytest.mark.parametrize("many", [False, True])
async def test_a_write_goes_before_the_jobs_of_a_turn_that_have_not_begun(
    app: Archibald, look: Look, many: bool, cut: asyncio.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("archibald_pgq.runtime.lane_run.LONGEST", 60.0)  # the notification alone does it
    in_hand, go_on = asyncio.Event(), asyncio.Event()
    ran: list[Any] = []

    @app.operation(READ, job_class="read")
    async def read(ctx: JobContext, data: dict[str, Any]) -> None:
        ran.append(data["n"])
        if data["n"] == "held":
            in_hand.set()
            await asyncio.wait_for(go_on.wait(), PATIENCE)

    @app.operation(WRITE, job_class="write", priority=1)
    async def write(ctx: JobContext, data: dict[str, Any]) -> None:
        ran.append("write")

    async with working(app):
        for n in range(9):
            await app.enqueue(READ, user_id="bob", data={"n": n})
        await look.until("SELECT count(*) = 9 FROM archibald.job_history")
        await app.pause_agent("bob")
        for name in ("held", "later", "last"):
            await app.enqueue(READ, user_id="bob", data={"n": name})
        await app.resume_agent("bob")
        async with asyncio.timeout(PATIENCE):
            await in_hand.wait()
        assert await look.value("SELECT max(cardinality(turn_job_ids)) FROM archibald.agents") == 3
        cut.clear()
        if many:
            await app.enqueue_many([NewJob(WRITE, user_id="bob")])
        else:
            await app.enqueue(WRITE, user_id="bob")
        async with asyncio.timeout(PATIENCE):
            await cut.wait()
        go_on.set()
        await look.until("SELECT count(*) = 13 FROM archibald.job_history")
    assert ran[9:] == ["held", "write", "later", "last"]
