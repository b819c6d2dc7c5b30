"""Nobody waits for a caller: what callers leave open in their transactions stops no worker and no other agent.

Each row of the table in `callers.py` is left open in a transaction, beside real workers: a settle, a wake and a takeover go on, other
agents' jobs end as if nothing were open, the agent that it is about goes on as far as it can, no worker turns in circles meanwhile, and
when the transaction ends, everything does.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import psycopg
import pytest

from archibald_pgq import NewJob
from archibald_pgq.store import migrations
from tests.acceptance.callers import ACTS, ISOLATIONS, Act, Concerned, callers, concerned
from tests.acceptance.conftest import Measured
from tests.acceptance.faults import Scene, Wire, own_server, scene
from tests.acceptance.history import Event, append, now
from tests.reporting import say
from tests.support import Look, looking

pytestmark = pytest.mark.long  # run by `make faults`

LEASE = 2.0
SHORT: dict[str, Any] = {"ARCHIBALD_LEASE": LEASE}

OTHERS = [NewJob("fault-read", user_id=f"other-{n % 5}", data={"do": "short", "seconds": 0.0}) for n in range(50)]

SPINNING = 20
"""Turns a second. An idle worker takes one, one that meets a caller's lock five; one that spins takes a hundred and more."""

takes_long = pytest.mark.slow
takes_very_long = pytest.mark.long

Figure = Callable[[str], None]


@pytest.fixture
def figure(pytestconfig: pytest.Config) -> Figure:
    """Takes note of a figure that is not in seconds."""
    return lambda text: say(pytestconfig, f"measured: {text}")


async def turns_per_second(look: Look, seconds: float) -> float:
    """How often workers take a turn: counted between two times at which the server got their counts."""
    calls = "SELECT coalesce((SELECT sum(calls) FROM pg_stat_user_functions WHERE funcname = 'turn'), 0)::bigint"
    started = None
    before = await look.value(calls)
    while True:
        await look.until(f"SELECT ({calls}) > %s", before)
        at, count = time.monotonic(), await look.value(calls)
        if started is None:
            started = at, count
        elif at - started[0] >= seconds:
            return float(count - started[1]) / (at - started[0])
        before = count


async def others_go_on(faults: Scene) -> float:
    """Run jobs of agents that nobody holds; return how long it took."""
    began = now()
    ids = [job.id for job in await faults.app.enqueue_many(OTHERS)]
    await faults.look.until("SELECT NOT EXISTS (SELECT FROM archibald.jobs WHERE id = ANY (%s))", ids)
    return now() - began


async def check_beside(
    faults: Scene, acts: Sequence[Act], agents: Sequence[Concerned], *, aborted: bool = False
) -> tuple[float, float]:
    """What must go on goes on while the callers are open; return the seconds of the others' jobs, and turns a second."""
    took = await others_go_on(faults)
    for agent in agents:
        faults.open(agent.user)
    going = [
        job
        for act, agent in zip(acts, agents, strict=True)
        for job, stopped in ((agent.running, act.stops_running), (agent.waiting, act.stops_waiting))
        if aborted or not stopped
    ]
    await faults.look.until("SELECT NOT EXISTS (SELECT FROM archibald.jobs WHERE id = ANY (%s))", going)
    turns = await turns_per_second(faults.look, 2)
    assert turns < SPINNING
    if not aborted:  # else the row of the table says too much, and the test would not notice a stop that is new
        stopped = [agent.user for act, agent in zip(acts, agents, strict=True) if act.stops_waiting]
        left = await faults.look.rows(
            "SELECT DISTINCT user_id FROM archibald.jobs WHERE user_id = ANY (%s) AND state <> 'needs_review'", stopped
        )
        assert sorted(user for (user,) in left) == sorted(stopped)
    return took, turns


async def ends(faults: Scene, agents: Sequence[Concerned]) -> None:
    """Everything ends now that nothing is open."""
    faults.open()
    await faults.until_ended()
    rows = await faults.look.rows(
        "SELECT user_id, state FROM archibald.all_jobs WHERE state NOT IN ('completed', 'cancelled', 'needs_review')"
    )
    assert rows == []
    for agent in agents:
        assert len(faults.events("start", agent.running)) == 1
    await check_history(faults)


async def check_history(faults: Scene) -> None:
    """Never two handlers at once, each job ended once.

    Jobs of callers are written down only now: when they came into the queue is their commit, and their order is not for the checker.
    """
    await faults.stop_all()
    for job, user in await faults.look.rows("SELECT id, user_id FROM archibald.all_jobs"):
        append(faults.history, Event(now(), "enqueued", job_id=job, user_id=user))
    await faults.check(order=False)


async def count_turns(look: Look) -> None:
    """Have the server count the turns of workers that start from now on."""
    name = await look.value("SELECT current_database()")
    await look.rows(f"ALTER DATABASE {name} SET track_functions = 'pl'")


def _users(acts: Sequence[Act]) -> list[str]:
    return [f"agent {n}" for n in range(len(acts))]


# -- the table


@takes_long
@pytest.mark.parametrize(
    ("isolation", "end"), list(zip(ISOLATIONS, ("COMMIT", "ROLLBACK", "COMMIT"), strict=True)), ids=ISOLATIONS
)
async def test_beside_all_that_callers_leave_open_at_once_workers_go_on_and_at_its_end_everything_does(
    faults: Scene, measured: Measured, figure: Figure, isolation: str, end: str
) -> None:
    await count_turns(faults.look)
    await faults.start("a", WORKER_CONCURRENCY=30)
    agents = await concerned(faults, _users(ACTS))
    await faults.until_started(*(agent.running for agent in agents))
    async with callers(faults, ACTS, agents, isolation) as opened:
        took, turns = await check_beside(faults, ACTS, agents)
        for caller in opened:
            await caller.rows(end)
    measured(f"50 jobs of other agents beside {len(ACTS)} open callers, {isolation}", took)
    figure(f"turns beside {len(ACTS)} open callers, {isolation}: {turns:.1f} a second")
    await ends(faults, agents)


@takes_very_long
@pytest.mark.parametrize("isolation", ISOLATIONS)
@pytest.mark.parametrize("act", ACTS, ids=lambda act: act.name)
async def test_beside_what_a_caller_leaves_open_workers_go_on_and_at_its_end_everything_does(
    faults: Scene, measured: Measured, figure: Figure, act: Act, isolation: str
) -> None:
    await count_turns(faults.look)
    await faults.start("a")
    agents = await concerned(faults, ["agent"])
    await faults.until_started(agents[0].running)
    async with callers(faults, [act], agents, isolation) as opened:
        took, turns = await check_beside(faults, [act], agents)
        await opened[0].rows("COMMIT")
    measured(f"50 jobs of other agents beside {act.name}, {isolation}", took)
    figure(f"turns beside {act.name}, {isolation}: {turns:.1f} a second")
    await ends(faults, agents)


async def test_a_transaction_that_has_failed_and_is_left_open_stops_nothing(faults: Scene, figure: Figure) -> None:
    await count_turns(faults.look)
    await faults.start("a", WORKER_CONCURRENCY=30)
    agents = await concerned(faults, _users(ACTS))
    await faults.until_started(*(agent.running for agent in agents))
    async with callers(faults, ACTS, agents, "READ COMMITTED") as opened:
        for caller in opened:
            with pytest.raises(psycopg.errors.DivisionByZero):
                await caller.rows("SELECT 1 / 0")
        _, turns = await check_beside(faults, ACTS, agents, aborted=True)
        assert {caller.connection.info.transaction_status for caller in opened} == {
            psycopg.pq.TransactionStatus.INERROR
        }
    figure(f"turns beside {len(ACTS)} failed transactions: {turns:.1f} a second")
    await ends(faults, agents)


@takes_long
@pytest.mark.parametrize("end", ["COMMIT", "ROLLBACK"])
async def test_beside_prepared_transactions_workers_go_on_and_at_their_end_everything_does(
    figure: Figure, end: str
) -> None:
    """Prepared for a two-phase commit, they belong to no session any more."""
    acts = [act for act in ACTS if not act.notifies]
    with own_server(max_prepared_transactions=str(len(acts))) as server:
        await server.start()
        migrations.upgrade(server.dsn)
        async with scene(server.dsn) as faults:
            await count_turns(faults.look)
            await faults.start("a", WORKER_CONCURRENCY=30)
            agents = await concerned(faults, _users(acts))
            await faults.until_started(*(agent.running for agent in agents))
            async with callers(faults, acts, agents, "READ COMMITTED") as opened:
                for n, caller in enumerate(opened):
                    await caller.rows(f"PREPARE TRANSACTION 'caller {n}'")
            _, turns = await check_beside(faults, acts, agents)
            for n in range(len(acts)):
                await faults.look.rows(f"{end} PREPARED 'caller {n}'")
            figure(f"turns beside {len(acts)} prepared transactions: {turns:.1f} a second")
            await ends(faults, agents)


@pytest.mark.parametrize(
    "isolation", [ISOLATIONS[0], *(pytest.param(isolation, marks=takes_very_long) for isolation in ISOLATIONS[1:])]
)
async def test_a_takeover_goes_on_beside_all_that_callers_leave_open(
    faults: Scene, measured: Measured, isolation: str
) -> None:
    """What no caller holds starts elsewhere after the lease; the rest when its caller ends."""
    doomed = await faults.start("a", WORKER_CONCURRENCY=30, **SHORT)
    agents = await concerned(faults, _users(ACTS))
    free = await faults.enqueue("fault-read", "free", gate="free")
    await faults.until_started(free, *(agent.running for agent in agents))
    heir = await faults.start("b", WORKER_CONCURRENCY=30, **SHORT)
    await faults.until_trusted(heir, LEASE)
    async with callers(faults, ACTS, agents, isolation) as opened:
        await faults.kill(doomed)
        killed = now()
        going = [agent.running for act, agent in zip(ACTS, agents, strict=True) if not act.stops_running]
        await faults.until_started(free, *going, times=2)
        measured(
            f"SIGKILL, lease {LEASE:g} s, beside {len(ACTS)} open callers, {isolation}: to the start elsewhere",
            now() - killed,
        )
        for caller in opened:
            await caller.rows("COMMIT")
    for agent in agents:
        faults.open(agent.user)
    faults.open("free")
    await faults.until_ended()
    states = dict(await faults.look.rows("SELECT state, count(*) FROM archibald.all_jobs GROUP BY state"))
    assert set(states) <= {"completed", "cancelled", "needs_review"}
    await check_history(faults)


# -- for long


BULK = "INSERT INTO archibald.jobs (user_id, kind, payload) SELECT {agent}, 'fault-read', {data} FROM generate_series(1, {jobs}) n"
DATA = """'{"do": "short", "seconds": 0.0}'"""


@takes_very_long
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("what", "seconds", "agent", "jobs"),
    [
        ("an enqueue open for 60 s", 60, "'bulk'", 1),
        ("50,000 jobs of one agent open for 10 s", 10, "'bulk'", 50_000),
        ("50,000 jobs of 1,000 agents open for 10 s", 10, "'bulk ' || n % 1000", 50_000),
    ],
    ids=lambda value: value if isinstance(value, str) and " s" in value else "",
)
async def test_beside_an_enqueue_that_is_left_open_for_long_other_jobs_are_enqueued_and_run(  # noqa: PLR0917  # pytest calls it by keyword
    faults: Scene, measured: Measured, figure: Figure, what: str, seconds: float, agent: str, jobs: int
) -> None:
    await count_turns(faults.look)
    worker = await faults.start("a")
    measured(f"50 jobs of other agents before {what}", await others_go_on(faults))
    async with looking(faults.database) as caller:
        await caller.rows("BEGIN")
        await caller.rows(BULK.format(agent=agent, data=DATA, jobs=jobs))
        began = await faults.look.value("SELECT clock_timestamp()")
        figure(f"turns beside {what}: {await turns_per_second(faults.look, 4):.1f} a second")
        late = "SELECT beat > %s + make_interval(secs => %s) FROM archibald.workers WHERE id = %s"
        rounds = [await others_go_on(faults)]
        while not await faults.look.value(late, began, seconds, worker.worker_id):
            rounds.append(await others_go_on(faults))
        measured(f"50 jobs of other agents beside {what}, median of {len(rounds)} rounds", median(rounds))
        measured(f"50 jobs of other agents beside {what}, the slowest round", max(rounds))
        await caller.rows("ROLLBACK" if jobs > 1 else "COMMIT")
    await faults.until_ended()
    await check_history(faults)


# -- what workers do themselves


async def test_every_connection_of_a_worker_has_a_lock_timeout(faults: Scene) -> None:
    async with Wire(faults.database) as wire:
        await faults.start("a", database=wire.dsn)
        job = await faults.enqueue("fault-read", "alice", "report")
        await faults.until_started(job)
        await faults.look.until("SELECT progress = 50 FROM archibald.jobs WHERE id = %s", job)
        faults.open()
        await faults.until_ended()
        await faults.stop_all()
    own = [opening for opening in wire.openings if b"archibald-pgq worker" in opening]
    assert len(own) >= 5  # dispatcher, heartbeat, listener, upkeep, and upkeep of the history
    assert [opening for opening in own if b"lock_timeout=200ms" not in opening] == []
