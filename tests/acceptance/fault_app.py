"""The app that the workers of the fault tests run: handlers that do what a job's data says, and write down when.

`FAULT_FOLDER` names the folder with the history and the gates; a gate is a file that a test makes to let handlers go on.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import logging
import os
import time
from pathlib import Path
from typing import Any

from archibald_pgq import Archibald, JobContext
from archibald_pgq.errors import ArchibaldError
from tests.acceptance.history import Event, append, now

FOLDER = Path(os.environ.get("FAULT_FOLDER", "."))
WORKER = os.environ.get("FAULT_WORKER", "")
HISTORY = "history.jsonl"
LOOK_EVERY = 0.01
PAGE = 0.2
"""Seconds that a page of a sync takes."""

app = Archibald()


owners: dict[int, tuple[int, int]] = {}
"""Of each job the (worker, epoch) of its last claim in this process."""


class Claims(logging.Handler):
    """Learns from the worker's own log line which owner a job runs for."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.msg == "job %d of %s was claimed by worker %d in epoch %d" and isinstance(record.args, tuple):
            job_id, _, worker_id, epoch = record.args
            assert isinstance(job_id, int)
            assert isinstance(worker_id, int)
            assert isinstance(epoch, int)
            owners[job_id] = (worker_id, epoch)


def learn_of_claims() -> None:
    """Listen to the worker's log in this process."""
    log = logging.getLogger("archibald_pgq.runtime.registration")
    log.setLevel(logging.DEBUG)
    logging.getLogger("archibald_pgq.runtime.reconnect").setLevel(
        logging.DEBUG
    )  # each attempt, for tests that wait for some
    log.addHandler(Claims(logging.DEBUG))


def note(what: str, ctx: JobContext, how: str = "", owner: tuple[int, int] | None = None) -> None:
    """Write down what a handler does."""
    worker_id, epoch = owner or owners.get(ctx.job_id, (0, 0))
    append(FOLDER / HISTORY, Event(now(), what, os.getpid(), WORKER, ctx.job_id, ctx.user_id, how, worker_id, epoch))


async def gate(name: str) -> None:
    """Wait until a test opens this gate."""
    while not (FOLDER / name).exists():  # noqa: ASYNC110  # another process makes it
        await asyncio.sleep(LOOK_EVERY)


async def act(ctx: JobContext, data: dict[str, Any]) -> dict[str, Any]:
    """Do what the data says, between a `start` and an `end` in the history."""
    owner = owners.get(ctx.job_id)
    note("start", ctx, owner=owner)
    try:
        await _act(ctx, data)
    except BaseException as error:
        note("end", ctx, type(error).__name__, owner)
        raise
    note("end", ctx, "returned", owner)
    return {"worker": WORKER, "text": "\x00" if data["do"] == "poison" else ""}


async def _act(ctx: JobContext, data: dict[str, Any]) -> None:
    match data:
        case {"do": "report", "gate": str(name)}:
            await _reporting(ctx, name)
        case {"do": "wait" | "poison", "gate": str(name)}:
            await gate(name)
        case {"do": "check in", "gate": str(name)}:
            await _checking_in(ctx, name)
        case {"do": "short", "seconds": float(seconds)}:
            await asyncio.sleep(seconds)
        case {"do": "block", "seconds": float(seconds)}:
            time.sleep(seconds)  # noqa: ASYNC251  # the fault under test
        case {"do": "ignore", "gate": str(name)}:
            await _ignoring_cancellation(name)
        case {"do": "stubborn", "seconds": float(seconds)}:
            await _stubborn(seconds)
        case {"do": "pages", "seconds": float(seconds)}:
            await _pages(ctx, seconds)
        case {"do": "fail", "attempts": int(attempts)} if ctx.attempt >= attempts:
            return
        case {"do": "fail"}:
            raise ValueError("as it was told to")
        case {"do": "die"}:
            os._exit(9)
        case other:
            raise ValueError(f"there is nothing to do in {other}")


async def _reporting(ctx: JobContext, name: str) -> None:
    waiting = asyncio.create_task(gate(name))
    try:
        while not waiting.done():
            await ctx.progress(50, "half way")
            await asyncio.wait({waiting}, timeout=LOOK_EVERY)
    finally:
        waiting.cancel()


async def _checking_in(ctx: JobContext, name: str) -> None:
    """As a sync that stops when asked, and goes on where it was."""
    if ctx.state is not None:
        note("found", ctx, ctx.state["page"])
    await ctx.save({"page": "seven"})
    note("saved", ctx)
    while not (FOLDER / name).exists():
        ctx.raise_if_cancelled()
        await asyncio.sleep(LOOK_EVERY)


async def _pages(ctx: JobContext, seconds: float) -> None:
    """As a sync of many pages: saves each where that can be done, goes on after the last one, and looks whether it must make room."""
    done = ctx.state["pages"] if ctx.state is not None else 0
    for page in range(done, max(1, round(seconds / PAGE))):
        ctx.raise_if_cancelled()
        await asyncio.sleep(PAGE)
        with contextlib.suppress(ArchibaldError):  # a database that is down
            await ctx.save({"pages": page + 1})


async def _ignoring_cancellation(name: str) -> None:
    waiting = asyncio.create_task(gate(name))
    while not waiting.done():
        try:
            await asyncio.shield(waiting)
        except asyncio.CancelledError:
            continue


async def _stubborn(seconds: float) -> None:
    """Runs for so long, whatever it is told."""
    over = asyncio.get_running_loop().time() + seconds
    while (left := over - asyncio.get_running_loop().time()) > 0:
        try:
            await asyncio.sleep(left)
        except asyncio.CancelledError:
            continue


def register(to: Archibald) -> None:
    """Make `act` the handler of the kinds of these tests."""
    to.operation("fault-write", job_class="write", priority=10)(act)
    to.operation("fault-idempotent", job_class="write", priority=20, idempotent=True)(act)
    to.operation("fault-read", job_class="read", priority=30)(act)
    to.operation("fault-brief", job_class="read", priority=35)(act)
    to.operation("fault-again", job_class="read", priority=30, max_attempts=3)(act)
    to.operation("fault-timed", job_class="read", priority=30, timeout=0.3)(act)
    to.operation("fault-sync", job_class="sync", priority=40)(act)
    to.operation("fault-other-sync", job_class="sync", priority=50)(act)


register(app)
if WORKER:
    learn_of_claims()
if MUTANT := os.environ.get("FAULT_MUTANT"):  # the product, spoilt on purpose: see tests/chaos/mutants.py
    importlib.import_module("tests.chaos.mutants").MUTANTS[MUTANT].spoil_worker()

bystander = Archibald()
"""For a worker that has no handler of those kinds: it takes over, but runs nothing itself."""
bystander.operation("fault-none", job_class="read")(act)
