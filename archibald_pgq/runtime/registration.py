"""One registration: this process as a worker, from its row in the database to its goodbye, or to the loss of its lease.

Owns: the parts that live exactly so long (dispatcher, consumers, heartbeat, maintenance, listener, history) and what they tell each other.
Guarantees: once nothing more is claimed, handlers get the grace, then are cancelled, and what they come to is settled before the worker
says goodbye; when the lease is lost, `serve` returns only when no handler code runs any more. Must not: register again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import psycopg

from archibald_pgq.config import Settings
from archibald_pgq.domain.job import ClaimedJob
from archibald_pgq.runtime.breakers import Breakers
from archibald_pgq.runtime.browsing import Browsers
from archibald_pgq.runtime.dispatcher import Dispatcher
from archibald_pgq.runtime.executor import Run, Stop
from archibald_pgq.runtime.heartbeat import EXIT_FENCED, Heartbeat, exit_fenced
from archibald_pgq.runtime.history import keep_history
from archibald_pgq.runtime.lane_run import HOGS
from archibald_pgq.runtime.listener import listen
from archibald_pgq.runtime.maintenance import Maintenance
from archibald_pgq.runtime.registry import Registry
from archibald_pgq.store.client import Client
from archibald_pgq.store.workers import Neighbour, PreemptRequest

logger = logging.getLogger(__name__)

BEGIN = 1.0
"""Seconds that the parts which no job waits for leave to the first turn, at most."""

GOODBYE = 2.0
"""Seconds that the worker's own parts get to end, and the last statement to arrive."""

LAST_WORD = 5.0
"""Seconds that handlers which ignore their cancellation get at shutdown, and that the last outcomes get to be written."""


class Registration:
    """A registered worker; made with the connection on which it was registered, used once."""

    def __init__(
        self,
        conninfo: str,
        connection: psycopg.AsyncConnection[tuple[Any, ...]],
        worker_id: int,
        *,
        registry: Registry,
        client: Client,
        settings: Settings,
        browsers: Browsers | None,
        not_served: Callable[[], None],
    ) -> None:
        """Put the parts together.

        `client` is for what handlers write, `browsers` for kinds that need one; `not_served` is told when the schema was migrated away
        from this code.
        """
        self.worker_id = worker_id
        self.heartbeat = Heartbeat(conninfo, worker_id, settings.lease, self, failover=settings.failover)
        self._conninfo, self._registry, self._client, self._settings = conninfo, registry, client, settings
        self._loop = asyncio.get_running_loop()
        self._loop_ran = time.monotonic()
        """When a consumer last came back from the event loop."""
        self._browsers = browsers
        self._breakers = Breakers(worker_id, client.ask)
        self._maintenance = Maintenance(
            conninfo,
            worker_id,
            self.heartbeat,
            settings.max_losses,
            cancel=self._cancel,
            preempt=self._preempt,
            failing=self._breakers.are_failing,
            not_served=not_served,
        )
        self._dispatcher = Dispatcher(
            conninfo,
            connection,
            worker_id,
            settings.lease,
            self._make_run,
            in_contact=self.heartbeat.in_contact,
            consumers=settings.worker_concurrency,
            max_syncs=settings.max_syncs,
            looked=self._maintenance.look_for_requests,
            room=None if browsers is None else lambda: browsers.capacity,
        )

    async def serve(self, stop: asyncio.Event, hurry: asyncio.Event) -> int:
        """Run jobs until `stop`, drain (`hurry` ends the grace) and return the process's exit code: 0, or 70 if handlers did not end.

        Raises:
            FencedError: the lease was lost; no handler code runs any more.
        """
        self.heartbeat.start()
        consumers = [
            asyncio.create_task(self._consume(name := f"consumer-{n}"), name=name)
            for n in range(self._settings.worker_concurrency)
        ]
        turns = asyncio.create_task(self._dispatcher.run(), name="dispatcher")
        helpers = [
            asyncio.create_task(self._once_begun(self._maintenance.run), name="maintenance"),
            asyncio.create_task(
                self._once_begun(lambda: keep_history(self._conninfo, self._settings.retention_days)), name="history"
            ),
        ]
        if self._settings.listen:
            helpers.append(
                asyncio.create_task(self._once_begun(lambda: listen(self._conninfo, self._heard)), name="listener")
            )
        try:
            await _first_end(stop, [turns, *consumers, *helpers])
            return await self._drain(turns, consumers, hurry)
        except BaseException:
            await self._let_go()  # whatever it was, no handler may go on without a heartbeat
            raise
        finally:
            await _cancel_all([turns, *consumers, *helpers])
            await _cancel_all([asyncio.create_task(self._dispatcher.close(), name="goodbye")], patience=GOODBYE)
            if not self.handler_code_runs():  # else it watches over them until the process has ended
                await asyncio.to_thread(self.heartbeat.stop)

    async def _once_begun(self, part: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run a part that the first jobs need not wait for: beside three that connect, the first turn takes a half longer."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._dispatcher.begun.wait(), BEGIN)
        await part()

    async def _let_go(self) -> None:
        """No handler of ours may go on. The heartbeat's watch ends the process if one does for longer than the lease allows."""
        dispatcher = self._dispatcher
        dispatcher.stop_claiming()
        self._stop_runs(Stop.FENCE)
        ends = [asyncio.create_task(_wait_for(run.ended)) for run in dispatcher.runs.values() if run.active]
        if ends:
            await asyncio.wait(ends, timeout=LAST_WORD)
            await _cancel_all(ends)
        if self.handler_code_runs():
            exit_fenced("handler code still runs though it was told to stop: exiting, so that no second copy can")

    async def _drain(self, turns: asyncio.Task[None], consumers: list[asyncio.Task[None]], hurry: asyncio.Event) -> int:
        dispatcher = self._dispatcher
        dispatcher.stop_claiming()
        hurried = asyncio.create_task(_wait_for(hurry))
        everyone = asyncio.create_task(_all_done(consumers))
        await asyncio.wait(
            {hurried, everyone}, timeout=self._settings.shutdown_grace, return_when=asyncio.FIRST_COMPLETED
        )
        hurried.cancel()
        if not everyone.done():
            logger.info(
                "the grace is over: %d handlers are cancelled", sum(run.active for run in dispatcher.runs.values())
            )
            self._stop_runs(Stop.SHUTDOWN)
            await asyncio.wait({everyone}, timeout=LAST_WORD)
        if self.handler_code_runs():
            logger.critical(
                "handlers ignore their cancellation: the process ends with them; their agents are taken over"
            )
            return EXIT_FENCED
        settled = asyncio.create_task(_wait_for(dispatcher.settled))
        await asyncio.wait({settled, turns}, timeout=LAST_WORD, return_when=asyncio.FIRST_COMPLETED)
        settled.cancel()
        if turns.done():
            turns.result()  # fenced, or a defect of ours
        logger.info(
            "stopped%s", "" if dispatcher.idle else "; some outcomes could not be written, others will take over"
        )
        return 0

    async def _consume(self, name: str) -> None:
        """One consumer: a lane at a time, and of it a job at a time, until nothing more is claimed."""
        while True:
            try:
                lane = await self._dispatcher.next_lane()
            except asyncio.CancelledError:
                return
            await lane.execute(name)
            self._dispatcher.ended(lane)
            del lane  # with its payloads: the next one may be long in coming
            if time.monotonic() - self._loop_ran > HOGS:  # lanes that never wait must not keep it from all else
                await asyncio.sleep(0)
                self._loop_ran = time.monotonic()

    def _make_run(self, job: ClaimedJob) -> Run:
        # Which owner a handler runs for: the fence's number, of which no handler gets to know.
        logger.debug(
            "job %d of %s was claimed by worker %d in epoch %d", job.job_id, job.user_id, self.worker_id, job.epoch
        )
        operation = self._registry.operation(job.kind)
        return Run(
            job,
            None if operation is None else operation.handler,
            self.worker_id,
            ask=self._client.ask,
            breakers=self._breakers,
            browsers=self._browsers if operation is not None and operation.needs_browser else None,
            brief=not job.marked,
            grace=self._settings.preempt_grace,
            ask_again=self._maintenance.look_for_requests,
        )

    def _stop_runs(self, reason: Stop) -> None:
        for run in self._dispatcher.runs.values():
            run.stop(reason)

    def _cancel(self, job_ids: list[int]) -> None:
        wanted = set(job_ids)
        for run in self._dispatcher.runs.values():
            if run.job.job_id in wanted and run.reason in {None, Stop.PREEMPT}:
                run.stop(Stop.CANCEL)

    def _preempt(self, requests: list[PreemptRequest]) -> None:
        asked = {request.owner: request for request in requests}
        for owner, run in self._dispatcher.runs.items():
            if owner in asked:
                run.make_room(f"{asked[owner].by_kind} (job {asked[owner].by_job})")
            else:
                run.need_not_make_room()

    def _heard(self, text: str) -> None:
        lane = text.removeprefix("turn ")
        if lane != text and lane.isdecimal():  # anybody may notify, and any text
            self._dispatcher.cut(int(lane))
        elif text not in {"cancel", "pause", "preempt"}:
            self._dispatcher.nudge(look=text != "wake")
        if text in {"cancel", "pause"}:
            self._dispatcher.cut()
        if text in {"cancel", "preempt", "connected"}:
            self._maintenance.look_for_requests()

    # -- what the heartbeat's threads call

    def fenced(self) -> None:
        """Others have this worker's agents: the next turn sees it too, and nothing may go on until then."""
        self._soon(self._stop_runs, Stop.FENCE)
        self._soon(self._dispatcher.fenced)

    def out_of_contact(self) -> None:
        """Half the lease is over: handlers must end before others may start."""
        self._soon(self._stop_runs, Stop.FENCE)

    def cancel_requested(self, job_ids: list[int]) -> None:
        """Somebody asked to cancel running jobs."""
        self._soon(self._cancel, job_ids)

    def preempt_requested(self) -> None:
        """Running syncs are asked to make room."""
        self._soon(self._maintenance.look_for_requests)

    def neighbours_seen(self, found: list[Neighbour]) -> None:
        """Whose death may be seen on this machine."""
        self._soon(self._maintenance.watch_over, found)

    def running(self) -> list[str]:
        """The handlers that run: the name of each one's task, and what to call it."""
        runs = [run for run in list(self._dispatcher.runs.values()) if run.active]
        return [f"{run.task_name} {run.job.kind} (job {run.job.job_id})" for run in runs]

    def handler_code_runs(self) -> bool:
        """True while any handler of this process may run."""
        return any(run.active for run in list(self._dispatcher.runs.values()))

    def browsers(self) -> str | None:
        """What this worker's browsers did at the last beat, as JSON; None if it has none."""
        if self._browsers is None:
            return None
        self._soon(self._browsers.look)
        return self._browsers.seen

    def _soon(self, call: Callable[..., None], *args: object) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(call, *args)


async def _first_end(stop: asyncio.Event, tasks: Sequence[asyncio.Task[None]]) -> None:
    """Wait until `stop`; a task that ends before it has a defect (or met the fence), which is raised."""
    stopped = asyncio.create_task(_wait_for(stop))
    try:
        await asyncio.wait({stopped, *tasks}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopped.cancel()
    for task in tasks:
        if task.done():
            task.result()


async def _wait_for(event: asyncio.Event) -> None:
    await event.wait()


async def _all_done(tasks: Sequence[asyncio.Task[Any]]) -> None:
    await asyncio.gather(*tasks, return_exceptions=True)


async def _cancel_all(tasks: Sequence[asyncio.Task[Any]], patience: float = 0.0) -> None:
    """Cancel tasks, after `patience` seconds to end by themselves, and wait until they have ended.

    Not for ever: one that waits for a server that does not answer is left behind.
    """
    if patience:
        await asyncio.wait(tasks, timeout=patience)
    for task in tasks:
        task.cancel()
    ended, left = await asyncio.wait(tasks, timeout=GOODBYE)
    for task in ended:
        if not task.cancelled() and (error := task.exception()) is not None:
            # the server's details quote rows, and rows hold payloads
            cause = None if isinstance(error, psycopg.Error) else error
            logger.debug("%s had ended with %s", task.get_name(), type(error).__name__, exc_info=cause)
    if left:
        logger.warning("the database does not answer; left behind: %s", ", ".join(task.get_name() for task in left))
