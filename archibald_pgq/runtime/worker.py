"""The worker: one process that runs jobs. Puts the parts together, starts them, ends them.

Owns: the life of a worker (registered, running, draining, stopped; fenced and registered anew). Guarantees: after the first request to
stop nothing more is claimed, handlers get the grace, then are cancelled; what they come to is settled before the worker says goodbye.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from typing import Any

import psycopg

import archibald_pgq.runtime.maintenance as upkeep
from archibald_pgq.config import Settings
from archibald_pgq.domain.job import ClaimedJob
from archibald_pgq.errors import DatabaseError
from archibald_pgq.runtime.dispatcher import Dispatcher, FencedError
from archibald_pgq.runtime.executor import Run, Stop
from archibald_pgq.runtime.heartbeat import EXIT_FENCED, Heartbeat, exit_fenced
from archibald_pgq.runtime.listener import listen
from archibald_pgq.runtime.registry import Registry
from archibald_pgq.store import workers
from archibald_pgq.store.client import Client
from archibald_pgq.store.connect import connect, unreachable, worker_options

logger = logging.getLogger(__name__)

AGAIN = 1.0
"""Seconds between two attempts to register anew."""

GOODBYE = 2.0
"""Seconds that the worker's own parts get to end, and the last statement to arrive."""

LAST_WORD = 5.0
"""Seconds that handlers which ignore their cancellation get at shutdown, and that the last outcomes get to be written."""


class Worker:
    """Runs the jobs of a registry's kinds until told to stop."""

    def __init__(self, registry: Registry, client: Client, settings: Settings, version: str) -> None:
        """Prepare; `client` is for progress."""
        self.ready = asyncio.Event()
        """Set while the worker is registered and claims."""
        self._registry, self._client, self._settings, self._version = registry, client, settings, version
        self._stops = 0
        self._stop_requested = asyncio.Event()
        self._hurry = asyncio.Event()
        self._dispatcher: Dispatcher | None = None
        self._heartbeat: Heartbeat | None = None
        self._maintenance: upkeep.Maintenance | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def request_stop(self) -> None:
        """Drain and stop; a second call ends the grace at once."""
        self._stops += 1
        if self._stops == 1:
            logger.info("stopping: nothing more is claimed, handlers get %.0f s", self._settings.shutdown_grace)
            self._stop_requested.set()
        else:
            self._hurry.set()

    def continued(self) -> None:
        """To be called by the handler of SIGCONT, in the main thread: this process was stopped, and others may have its agents.

        The heartbeat's watch would see it too, but after the event loop has run handler code for some milliseconds.
        """
        if self._heartbeat is not None:
            self._heartbeat.exit_if_late()

    async def run(self) -> int:
        """Run until asked to stop; return the exit code of the process: 0, or 70 if handlers did not end.

        Raises:
            DatabaseError: the database cannot be used at the start.
        """
        self._loop = asyncio.get_running_loop()
        fenced = False
        while True:
            try:
                return await self._live()
            except FencedError:
                fenced = True
                self.ready.clear()
                if self._stop_requested.is_set():
                    return 0
                logger.error("this worker's lease was lost; its agents are with others. It registers anew")
            except DatabaseError as error:
                if not fenced:
                    raise
                logger.warning("it cannot register anew yet: %s", error)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(AGAIN):
                        await self._stop_requested.wait()
                        return 0

    async def _register(self, conninfo: str) -> tuple[psycopg.AsyncConnection[tuple[Any, ...]], int]:
        settings = self._settings
        connection = await connect(conninfo)
        try:
            return connection, await workers.register(
                connection, self._version, settings.worker_concurrency, self._registry.kinds(), settings.lease
            )
        except psycopg.Error:
            await connection.close()
            raise

    async def _live(self) -> int:
        """One registration, from start to goodbye; raises FencedError when it is lost and no handler code runs any more."""
        settings = self._settings
        conninfo = worker_options(self._client.dsn, "worker", settings.lease)
        try:
            connection, worker_id = await self._register(conninfo)
        except psycopg.Error as error:
            raise unreachable(self._client.dsn, error) from None
        heartbeat = self._heartbeat = Heartbeat(conninfo, worker_id, settings.lease, self)
        dispatcher = self._dispatcher = Dispatcher(
            conninfo, connection, worker_id, settings.lease, self._make_run, in_contact=lambda: heartbeat.in_contact
        )
        self._maintenance = upkeep.Maintenance(conninfo, worker_id, heartbeat, settings.max_losses, self._cancel)
        heartbeat.start()
        consumers = [
            asyncio.create_task(self._consume(dispatcher), name=f"consumer {n}")
            for n in range(settings.worker_concurrency)
        ]
        turns = asyncio.create_task(dispatcher.run(), name="dispatcher")
        helpers = [
            asyncio.create_task(self._maintenance.run(), name="maintenance"),
            asyncio.create_task(listen(conninfo, self._heard), name="listener"),
        ]
        logger.info(
            "worker %d is ready: %d consumers, %d operations",
            worker_id,
            settings.worker_concurrency,
            len(self._registry.kinds()),
        )
        self.ready.set()
        try:
            return await self._until_stopped(dispatcher, turns, consumers, helpers)
        except BaseException:
            await self._let_go(dispatcher)  # whatever it was, no handler may go on without a heartbeat
            raise
        finally:
            await _cancel_all([turns, *consumers, *helpers])
            await _cancel_all([asyncio.create_task(dispatcher.close(), name="goodbye")], patience=GOODBYE)
            if not self.handler_code_runs():  # else it watches over them until the process has ended
                await asyncio.to_thread(heartbeat.stop)

    async def _until_stopped(
        self,
        dispatcher: Dispatcher,
        turns: asyncio.Task[None],
        consumers: list[asyncio.Task[None]],
        helpers: list[asyncio.Task[None]],
    ) -> int:
        stop = asyncio.create_task(_wait_for(self._stop_requested))
        try:
            await asyncio.wait({stop, turns, *consumers, *helpers}, return_when=asyncio.FIRST_COMPLETED)
            for task in (turns, *consumers, *helpers):
                if task.done():
                    task.result()  # a defect of ours: it ends the worker with its own error, and others take over
            return await self._drain(dispatcher, turns, consumers)
        finally:
            stop.cancel()

    async def _let_go(self, dispatcher: Dispatcher) -> None:
        """No handler of ours may go on. The heartbeat's watch ends the process if one does for longer than the lease allows."""
        dispatcher.stop_claiming()
        self._stop_runs(Stop.FENCE)
        ends = [asyncio.create_task(_wait_for(run.ended)) for run in dispatcher.runs.values() if run.active]
        if ends:
            await asyncio.wait(ends, timeout=LAST_WORD)
            await _cancel_all(ends)
        if self.handler_code_runs():
            exit_fenced("handler code still runs though it was told to stop: exiting, so that no second copy can")

    async def _drain(
        self, dispatcher: Dispatcher, turns: asyncio.Task[None], consumers: list[asyncio.Task[None]]
    ) -> int:
        dispatcher.stop_claiming()
        hurry = asyncio.create_task(_wait_for(self._hurry))
        everyone = asyncio.create_task(_all_done(consumers))
        await asyncio.wait(
            {hurry, everyone}, timeout=self._settings.shutdown_grace, return_when=asyncio.FIRST_COMPLETED
        )
        hurry.cancel()
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

    async def _consume(self, dispatcher: Dispatcher) -> None:
        """One consumer: a job at a time, until nothing more is claimed."""
        while True:
            try:
                run = await dispatcher.next_run()
            except asyncio.CancelledError:
                return
            dispatcher.settle(run.job, await run.execute())

    def _make_run(self, job: ClaimedJob) -> Run:
        dispatcher = self._dispatcher
        worker_id = dispatcher.worker_id if dispatcher else 0

        async def write_progress(job_id: int, percent: int, label: str | None) -> None:
            await self._client.write_progress(job_id, worker_id, percent, label)

        return Run(job, self._registry.handler(job.kind), write_progress)

    def _stop_runs(self, reason: Stop) -> None:
        if self._dispatcher is not None:
            for run in self._dispatcher.runs.values():
                run.stop(reason)

    def _cancel(self, job_ids: list[int]) -> None:
        wanted = set(job_ids)
        if self._dispatcher is not None:
            for run in self._dispatcher.runs.values():
                if run.job.job_id in wanted and run.reason is None:
                    run.stop(Stop.CANCEL)

    def _heard(self, text: str) -> None:
        if self._dispatcher is not None and text != "cancel":
            self._dispatcher.nudge(look=text != "wake")
        if self._maintenance is not None and text in {"cancel", "connected"}:
            self._maintenance.cancel_requested()

    # -- what the heartbeat's threads call

    def fenced(self) -> None:
        """Others have this worker's agents: the next turn sees it, and nothing may go on until then."""
        self._soon(self._stop_runs, Stop.FENCE)
        if self._dispatcher is not None:
            self._soon(self._dispatcher.check)

    def out_of_contact(self) -> None:
        """Half the lease is over: handlers must end before others may start."""
        self._soon(self._stop_runs, Stop.FENCE)

    def cancel_requested(self, job_ids: list[int]) -> None:
        """Somebody asked to cancel running jobs."""
        self._soon(self._cancel, job_ids)

    def handler_code_runs(self) -> bool:
        """True while any handler of this process may run."""
        dispatcher = self._dispatcher
        return dispatcher is not None and any(run.active for run in list(dispatcher.runs.values()))

    def _soon(self, call: Callable[..., None], *args: object) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(call, *args)


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
            logger.debug("%s had ended with %s", task.get_name(), type(error).__name__, exc_info=error)
    if left:
        logger.warning("the database does not answer; left behind: %s", ", ".join(task.get_name() for task in left))
