"""The scenarios of the bench of preemption: what is done to real workers, and what is promised of it.

Times are from the moment before the enqueue to the first line of the handler.
"""

from __future__ import annotations

import asyncio
import json
import statistics
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from archibald_pgq import NewJob
from archibald_pgq.store import migrations
from tests import servers
from tests.acceptance.faults import Scene, scene, until
from tests.acceptance.history import Event, append, now, read
from tests.bench.preemption_app import FINISH, PAGE

APP = "tests.bench.preemption_app:app"
GRACE = 5.0
HEARTBEAT = 1.0
LONG = 60.0
"""Seconds that a sync takes."""

HOT_JOBS = 200_000
LIGHT_AGENTS, LIGHT_JOBS = 59, 5
TEMPLATE = "migrated"


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: what was promised, and what came of it."""

    scenario: str
    bound: str
    measured: str
    kept: bool


def within(scenario: str, bound: float, values: list[float]) -> Row:
    """Compare seconds with a bound."""
    measured = f"{statistics.median(values):.2f} / {max(values):.2f} s ({len(values)} rounds)"
    return Row(scenario, f"{bound:g} s", measured, max(values) <= bound)


class Bench:
    """A server, and a fresh database with its workers for each scenario."""

    def __init__(self, server: servers.Server) -> None:
        self._server, self._count = server, 0
        migrations.upgrade(server.create_database(TEMPLATE))

    @asynccontextmanager
    async def stage(self, **workers: dict[str, Any]) -> AsyncIterator[Scene]:
        """Start these workers, by name, with these settings."""
        self._count += 1
        async with scene(self._server.create_database(f"bench_{self._count}", TEMPLATE)) as made:
            await asyncio.gather(*(made.start(name, of=APP, **settings) for name, settings in workers.items()))
            yield made


async def enqueue(stage: Scene, kind: str, user_id: str, **data: Any) -> int:
    """Enqueue a job; the history also gets the time before."""
    before = now()
    job = (await stage.app.enqueue(kind, user_id=user_id, data=data)).id
    append(stage.history, Event(now(), "enqueued", job_id=job, user_id=user_id))
    append(stage.history, Event(before, "asked", job_id=job, user_id=user_id))
    return job


def first(stage: Scene, what: str, job: int) -> float:
    """When this happened to a job for the first time."""
    return stage.events(what, job)[0].at


async def delay(stage: Scene, user_id: str) -> float:
    """Enqueue a write and return the seconds until it starts; it has ended when this returns."""
    job = await enqueue(stage, "bench-write", user_id)
    await until(lambda: stage.events("end", job))
    return first(stage, "start", job) - first(stage, "asked", job)


async def run_syncs(stage: Scene, count: int, do: str, seconds: float = LONG) -> dict[str, int]:
    """Let that many agents' syncs run."""
    syncs = {
        f"agent-{n}": await enqueue(stage, "bench-sync", f"agent-{n}", do=do, seconds=seconds) for n in range(count)
    }
    await until(lambda: sum(event.what == "saved" for event in read(stage.history)) == count)
    return syncs


async def check(stage: Scene) -> Row:
    """Let all syncs end, stop the workers, and look at what the handlers wrote down."""
    stage.open(FINISH)
    await stage.until_ended()
    await stage.stop_all()
    scenario, bound = "… two handlers of an agent at once, or a job not ended exactly once", "never"
    try:
        await stage.check()
    except AssertionError as error:
        return Row(scenario, bound, str(error), kept=False)
    return Row(scenario, bound, "never", kept=True)


# -- a write and the sync of its agent

NO_RESERVE = {"ARCHIBALD_RESERVED_CONSUMERS": 0, "ARCHIBALD_PREEMPT_GRACE": GRACE}
WORKERS = 2
CONSUMERS = 10


async def preempting(bench: Bench, do: str, rounds: int, bound: float, how: str) -> AsyncIterator[Row]:
    """All consumers of two processes run syncs; writes come for some of these agents, one after the other."""
    settings = NO_RESERVE | ({"BENCH_DEAF": "1"} if how == "deaf" else {})
    async with bench.stage(one=settings, two=settings) as stage:
        syncs = await run_syncs(stage, WORKERS * CONSUMERS, do)
        victims = list(syncs)[:: WORKERS * CONSUMERS // rounds][:rounds]
        others = {user: await enqueue(stage, "bench-other-sync", user, do=do, seconds=0) for user in victims}
        found = []
        for user in victims:
            if how == "listeners end":
                await stage.end_listeners()
            found.append(await delay(stage, user))
            await until(lambda user=user: len(stage.events("start", syncs[user])) == 2)  # type: ignore[misc]
        words = {"": "", "deaf": ", no notification heard", "listeners end": ", listeners terminated before"}[how]
        yield within(f"20 of 20 consumers run syncs, {do}{words}: write of such an agent", bound, found)
        yield await check(stage)
        kept = [await resumed(stage, syncs[user], others[user]) for user in victims]
        yield Row(
            f"… its sync goes on with its state, attempt 1, the other sync last{words}",
            "all",
            f"{sum(kept)} of {len(kept)}",
            all(kept),
        )


async def resumed(stage: Scene, sync: int, other: int) -> bool:
    """The sync completed in its second run, found its state, spent no attempt; the write waited for no other sync of the agent."""
    (ended,) = await stage.look.rows(
        "SELECT s.state, s.attempt, s.preemptions, w.started_at < o.started_at AND s.preempted_by = w.id "
        "FROM archibald.all_jobs s JOIN archibald.all_jobs w ON w.user_id = s.user_id AND w.class = 'write' "
        "JOIN archibald.all_jobs o ON o.id = %s WHERE s.id = %s",
        other,
        sync,
    )
    states = [json.loads(event.how) for event in stage.events("found", sync)]
    return ended == ("completed", 1, 1, True) and states == [PAGE]


async def reserve(bench: Bench) -> AsyncIterator[Row]:
    """Eight syncs run, more wait, and two consumers are kept: writes of idle agents."""
    async with bench.stage(one={}) as stage:
        await run_syncs(stage, 8, "awaits")
        await asyncio.gather(
            *(enqueue(stage, "bench-sync", f"waits-{n}", do="awaits", seconds=LONG) for n in range(12))
        )
        found = [await delay(stage, f"idle-{n}") for n in range(10)]
        yield within("8 of 10 consumers run syncs and 12 more wait: write of an idle agent", 0.5, found)
        found = []
        for n in range(3):
            await stage.end_listeners()
            found.append(await delay(stage, f"idle-{n}"))
        yield within("… listener terminated before", 0.5 + HEARTBEAT, found)
        yield await check(stage)


async def stubborn(bench: Bench) -> AsyncIterator[Row]:
    """A sync that ignores its cancellation for a minute, and no consumer of either process is free."""
    busy = NO_RESERVE | {"WORKER_CONCURRENCY": 1}
    async with bench.stage(one=busy, two=busy) as stage:
        sync = (await run_syncs(stage, 2, "ignores", LONG - 0.5))["agent-0"]  # the fifth requeue would be at 60 s
        write = await enqueue(stage, "bench-write", "agent-0")
        asked = first(stage, "asked", write)
        counts: list[tuple[int, float]] = []
        while not stage.events("end", write):
            (count,) = await stage.look.job(write, "requeue_count")
            if count > len(counts):
                counts.append((count, now() - asked))
            await asyncio.sleep(0.02)
        measured = ", ".join(f"{count} at {at:.1f} s" for count, at in counts)
        kept = [count for count, _ in counts] == [1, 2, 3, 4] and all(
            abs(at - wanted) <= 1 for (_, at), wanted in zip(counts, (30, 32, 36, 44), strict=True)
        )
        yield Row(
            "a sync ignores its cancellation for 60 s: requeues of the write",
            "1, 2, 3, 4 at 30, 32, 36, 44 s",
            measured,
            kept,
        )
        yield within("… write after the sync's end", 0.5, [first(stage, "start", write) - first(stage, "end", sync)])
        yield await check(stage)


# -- between agents


async def second(bench: Bench) -> AsyncIterator[Row]:
    """One consumer; an agent with 1,000 writes, and then one with a single write."""
    async with bench.stage(none={"WORKER_CONCURRENCY": 1}) as stage:
        await stage.stop_all()  # it has declared the kinds
        await stage.app.enqueue_many([NewJob("bench-write", user_id="hot")] * 1000)
        light = (await stage.app.enqueue("bench-write", user_id="light")).id
        await stage.start("one", of=APP, WORKER_CONCURRENCY=1)
        await until(lambda: stage.events("start", light))
        order = [event.job_id for event in read(stage.history) if event.what == "start"]
        place = order.index(light) + 1
        yield Row("1 consumer, 1,000 writes of one agent, then 1 of another: its place", "2", str(place), place == 2)


async def drain(bench: Bench, hot_jobs: int, seconds: float) -> float:
    """Seconds in which the light agents' jobs are done, with that many jobs of a hot agent enqueued right before."""
    jobs = [
        NewJob("bench-write", user_id=f"light-{n}", data={"seconds": seconds}) for n in range(LIGHT_AGENTS)
    ] * LIGHT_JOBS
    async with bench.stage(one={}) as stage:
        if hot_jobs:
            await stage.look.rows(
                "INSERT INTO archibald.jobs (user_id, kind, payload) "
                "SELECT 'hot', 'bench-write', jsonb_build_object('seconds', %s::float) FROM generate_series(1, %s)",
                seconds,
                hot_jobs,
            )
        before = now()
        await stage.app.enqueue_many(jobs)
        while len(ends := [e.at for e in read(stage.history) if e.what == "end" and e.user_id != "hot"]) < len(jobs):  # noqa: ASYNC110
            await asyncio.sleep(0.1)  # seldom: to look costs what it shall measure
        return max(ends) - before


async def hot(bench: Bench) -> AsyncIterator[Row]:
    """The same light jobs with and without the hot agent."""
    for seconds, rounds in ((0.05, 3), (0.0, 5)):
        without, beside = [], []
        for _ in range(rounds):  # in turn: the load of the machine changes
            without.append(await drain(bench, 0, seconds))
            beside.append(await drain(bench, HOT_JOBS, seconds))
        ratio = statistics.median(beside) / statistics.median(without)
        yield Row(
            f"59 agents × 5 jobs of {seconds * 1000:g} ms, beside and without 200,000 of one agent",
            "ratio 1.2",
            f"{ratio:.2f} ({statistics.median(beside):.2f} / {statistics.median(without):.2f} s, {rounds} rounds)",
            ratio <= 1.2,
        )


SCENARIOS: dict[str, Callable[[Bench], AsyncIterator[Row]]] = {
    "checks": lambda bench: preempting(bench, "checks", 10, 1.0, ""),
    "checks, listeners": lambda bench: preempting(bench, "checks", 10, 1.0 + HEARTBEAT, "listeners end"),
    "checks, deaf": lambda bench: preempting(bench, "checks", 10, 1.0 + HEARTBEAT, "deaf"),
    "awaits": lambda bench: preempting(bench, "awaits", 3, GRACE + 1, ""),
    "awaits, listeners": lambda bench: preempting(bench, "awaits", 3, GRACE + 1 + HEARTBEAT, "listeners end"),
    "reserve": reserve,
    "second": second,
    "hot": hot,
    "stubborn": stubborn,
}


async def run(only: str) -> list[Row]:
    """Play the scenarios whose name has this in it, one after the other, on a server of their own."""
    with servers.start("embedded") as server:
        bench = Bench(server)
        return [row for name, scenario in SCENARIOS.items() if only in name async for row in scenario(bench)]
