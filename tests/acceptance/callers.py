"""What callers do in their transactions, as one table: each row leaves something open that a worker could meet.

Owns: the rows, the set-up of the agent that each is about, and the callers' connections. Every row has an agent of its own, which runs one
job at a gate and has a second one waiting behind it; so each can be checked in the same way, alone or beside all others.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass

from tests.acceptance.faults import Scene
from tests.support import Look, looking

ISOLATIONS = ("READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE")


@dataclass(frozen=True, slots=True)
class Concerned:
    """The agent that a caller's transaction is about, and its jobs."""

    user: str
    running: int
    """Runs until the gate named like the agent opens."""
    waiting: int
    """Waits behind it, with the key `taken`."""
    doubtful: int
    """Needs review."""


@dataclass(frozen=True, slots=True)
class Act:
    """What a caller does, and what of its agent cannot go on until it ends."""

    name: str
    do: Callable[[Look, Concerned], Awaitable[object]]
    stops_running: bool = False
    """The running job's outcome cannot be written."""
    stops_waiting: bool = False
    """The job behind it cannot start."""
    notifies: bool = False
    """Even with `archibald.notify` off; Postgres prepares no such transaction."""


async def _enqueue(caller: Look, user: str, kind: str, key: str | None = None) -> None:
    data = '{"do": "short", "seconds": 0.0}'
    await caller.rows("SELECT archibald.enqueue(%s, %s, %s, %s)", user, kind, data, key)


ACTS = (
    Act("enqueue of a known agent", lambda caller, it: _enqueue(caller, it.user, "fault-read")),
    Act("enqueue of an unknown agent", lambda caller, it: _enqueue(caller, f"new {it.user}", "fault-read")),
    Act("enqueue with a key", lambda caller, it: _enqueue(caller, it.user, "fault-read", "fresh")),
    Act("enqueue with a key that is taken", lambda caller, it: _enqueue(caller, it.user, "fault-read", "taken")),
    Act("enqueue of a sync", lambda caller, it: _enqueue(caller, it.user, "fault-sync")),
    Act(
        "cancel of a job that waits",
        lambda caller, it: caller.rows("SELECT archibald.cancel_job(%s)", it.waiting),
        stops_running=True,
        stops_waiting=True,
    ),
    Act(
        "cancel of a job that runs",
        lambda caller, it: caller.rows("SELECT archibald.cancel_job(%s)", it.running),
        stops_running=True,
        stops_waiting=True,
        notifies=True,
    ),
    Act(
        "pause",
        lambda caller, it: caller.rows("SELECT archibald.pause_agent(%s, until => now())", it.user),
        stops_running=True,
        stops_waiting=True,
    ),
    Act("retry", lambda caller, it: caller.rows("SELECT archibald.retry_job(%s)", it.doubtful), notifies=True),
    Act("discard", lambda caller, it: caller.rows("SELECT archibald.discard_job(%s)", it.doubtful)),
    Act(
        "lock of a job that waits",
        lambda caller, it: caller.rows("SELECT FROM archibald.jobs WHERE id = %s FOR UPDATE", it.waiting),
        stops_waiting=True,
    ),
    Act(
        "lock of a job that runs",
        lambda caller, it: caller.rows("SELECT FROM archibald.jobs WHERE id = %s FOR UPDATE", it.running),
        stops_running=True,
        stops_waiting=True,
    ),
    Act(
        "lock of the lane",
        lambda caller, it: caller.rows("SELECT FROM archibald.agents WHERE user_id = %s FOR UPDATE", it.user),
        stops_running=True,
        stops_waiting=True,
    ),
    Act(
        "lock of a key",
        lambda caller, it: caller.rows("SELECT FROM archibald.idempotency_keys WHERE user_id = %s FOR UPDATE", it.user),
    ),
    *(
        Act(
            f"LOCK TABLE {mode}",
            lambda caller, it, mode=mode: caller.rows(  # type: ignore[misc]
                f"LOCK TABLE archibald.agents, archibald.jobs, archibald.workers, archibald.idempotency_keys, "
                f"archibald.job_history, archibald.operations IN {mode} MODE"
            ),
        )
        for mode in ("ACCESS SHARE", "ROW EXCLUSIVE")
    ),
)


async def concerned(faults: Scene, names: Sequence[str]) -> list[Concerned]:
    """Make an agent of each name, with its three jobs; return when the first of each runs."""
    made = []
    for user in names:
        # not due, so that it cannot run before it is put aside
        data = {"do": "short", "seconds": 0.0}
        doubtful = (await faults.app.enqueue("fault-read", user_id=user, data=data, delay=3600)).id
        await faults.look.rows(
            "UPDATE archibald.jobs SET state = 'needs_review', started_at = now(), due = true, run_after = now(), wait_reason = NULL "
            "WHERE id = %s",
            doubtful,
        )
        running = await faults.enqueue("fault-read", user, gate=user)
        waiting = await faults.app.enqueue("fault-read", user_id=user, data=data, idempotency_key="taken")
        made.append(Concerned(user, running, waiting.id, doubtful))
    return made


@contextlib.asynccontextmanager
async def callers(
    faults: Scene, acts: Sequence[Act], agents: Sequence[Concerned], isolation: str
) -> AsyncIterator[list[Look]]:
    """Have each caller do its act in a transaction that is left open; what is still open at the end is rolled back."""
    async with contextlib.AsyncExitStack() as stack:
        opened = []
        for act, agent in zip(acts, agents, strict=True):
            caller = await stack.enter_async_context(looking(faults.database))
            await caller.rows("SET archibald.notify = off")
            await caller.rows(f"BEGIN ISOLATION LEVEL {isolation}")
            await act.do(caller, agent)
            opened.append(caller)
        yield opened
