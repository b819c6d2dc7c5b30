"""The worker: one process that runs jobs, registered once or, after the loss of its lease, again.

Owns: the life of the process as a worker, and what signals ask of it. Guarantees: after the first request to stop nothing more is
claimed; a second one ends the grace. Must not: touch a job (that is `registration`'s).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging

import psycopg

from archibald_pgq.config import Settings
from archibald_pgq.errors import DatabaseError, SchemaError
from archibald_pgq.runtime import browsing, collector, witness
from archibald_pgq.runtime.reconnect import jittered
from archibald_pgq.runtime.registration import Registration
from archibald_pgq.runtime.registry import Registry
from archibald_pgq.runtime.session import FencedError
from archibald_pgq.store import migrations, workers
from archibald_pgq.store.client import Client
from archibald_pgq.store.connect import connect, unreachable, worker_options
from archibald_pgq.store.direct import require_direct, require_same_database
from archibald_pgq.store.dsn import redacted

logger = logging.getLogger(__name__)

EXIT_NOT_SERVED = 3
"""The schema was migrated and no longer serves this code: the supervisor of the process should start a newer one."""

AGAIN = 1.0
"""Seconds, on average, between two attempts to register anew."""


class Worker:
    """Runs the jobs of a registry's kinds until told to stop."""

    def __init__(self, registry: Registry, client: Client, settings: Settings, version: str) -> None:
        """Prepare; `client` is for what handlers write.

        Raises:
            ConfigError: some kind needs a browser, and there can be none, or too few for all consumers.
        """
        self.ready = asyncio.Event()
        """Set while the worker is registered and claims."""
        self._registry, self._client, self._settings, self._version = registry, client, settings, version
        self._stops = 0
        self._behind = False
        self._stop_requested = asyncio.Event()
        self._hurry = asyncio.Event()
        self._registration: Registration | None = None
        self._browsers = browsing.prepare(registry, settings, client.ask) if registry.any_needs_browser else None
        self._witness: witness.Witness | None = None
        """For the life of the process: a proof of its end, whichever of its registrations it is asked for."""

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
        if self._registration is not None:
            self._registration.heartbeat.exit_if_late()

    async def run(self) -> int:
        """Run until asked to stop; return the exit code of the process: 0, 3 if the schema left it behind, or 70 if handlers did not end.

        Raises:
            DatabaseError: the database cannot be used at the start.
        """
        self._witness = witness.make()
        async with self._browsers or contextlib.nullcontext():
            with collector.less_often():
                code = await self._run()
        if code == 0 and self._witness is not None:  # else handler code may run until the process has ended
            self._witness.close()
        return code

    async def _run(self) -> int:
        fenced = told = False
        while True:
            try:
                registration = self._registration = await self._register()
                self.ready.set()
                told = False
                code = await registration.serve(self._stop_requested, self._hurry)
                return code or self._ended()
            except FencedError:
                fenced = True
                self.ready.clear()
                if self._stop_requested.is_set():
                    return self._ended()
                logger.error("this worker's lease was lost; its agents are with others. It registers anew")
            except DatabaseError as error:
                if not fenced:
                    raise
                if isinstance(error, SchemaError):
                    self._not_served()
                    return self._ended()
                if not told:
                    told = True
                    logger.warning("it cannot register anew yet: %s", error)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(jittered(AGAIN)):
                        await self._stop_requested.wait()
                        return 0

    def _not_served(self) -> None:
        """The schema no longer serves this code: drain, as if told to."""
        if not self._behind:
            self._behind = True
            logger.error(
                "the schema was migrated and no longer serves this code (revision %s): it drains and ends; upgrade archibald-pgq",
                migrations.CODE_REVISION,
            )
            self._stop_requested.set()

    def _ended(self) -> int:
        return EXIT_NOT_SERVED if self._behind else 0

    async def _register(self) -> Registration:
        """Add this process to the workers, on the connection that will hold its agents' locks.

        Raises:
            DatabaseError: the database cannot be used.
        """
        settings, kinds = self._settings, self._registry.kinds()
        url = settings.direct_url or self._client.dsn
        conninfo = worker_options(url, "worker", settings.lease)
        try:
            connection = await connect(conninfo)
            try:
                await require_direct(connection, conninfo)
                if settings.direct_url is not None:
                    await require_same_database(connection, url, self._client.dsn)
                if not await migrations.serves(connection):
                    raise SchemaError(
                        f"the schema archibald at {redacted(url)} does not serve this code (revision {migrations.CODE_REVISION}); "
                        "upgrade archibald-pgq"
                    )
                worker_id = await workers.register(
                    connection,
                    self._version,
                    kinds,
                    concurrency=settings.worker_concurrency,
                    max_syncs=settings.max_syncs,
                    lease=settings.lease,
                    max_wait=settings.max_wait,
                    max_preemptions=settings.max_preemptions,
                    max_losses=settings.max_losses,
                    mark=self._witness.mark if self._witness is not None else None,
                )
            except BaseException:
                await connection.close()
                raise
        except psycopg.Error as error:
            setting = "ARCHIBALD_DATABASE_URL" if settings.direct_url is None else "ARCHIBALD_DIRECT_URL"
            raise unreachable(url, error, setting) from None
        logger.info(
            "worker %d is ready: %d consumers, %d operations", worker_id, settings.worker_concurrency, len(kinds)
        )
        return Registration(
            conninfo,
            connection,
            worker_id,
            registry=self._registry,
            client=self._client,
            settings=settings,
            browsers=self._browsers,
            not_served=self._not_served,
        )
