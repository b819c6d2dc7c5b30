"""What the fault tests share.

Workers as real processes, real signals, gates that hold handlers, a Postgres that can be restarted, and a network that loses replies.

Nothing here sleeps to make something true: everything waits for a line in the history, a condition in the database, a line in a worker's
log or the end of a process, each with a deadline only so that a broken promise fails instead of hanging.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psutil
import psycopg
from psycopg.conninfo import conninfo_to_dict

from archibald_pgq import Archibald
from archibald_pgq.store import embedded
from archibald_pgq.store.embedded.account import make_private, prepare_folder, reachable
from archibald_pgq.store.embedded.cluster import Cluster
from archibald_pgq.store.embedded.layout import layout_of
from tests import daemons
from tests.acceptance import fault_app
from tests.acceptance.history import Event, JobRow, append, now, read, violations
from tests.support import LOOK_EVERY, Look, looking

JOBS = (
    "SELECT j.id, j.user_id, j.priority, j.state, j.class = 'sync', j.worker_id, h.epoch, j.idempotency_key, "
    "j.class = 'write' AND NOT coalesce(o.idempotent, false) "
    "FROM archibald.all_jobs j LEFT JOIN archibald.job_history h ON h.id = j.id AND h.created_at = j.created_at "
    "LEFT JOIN archibald.operations o ON o.kind = j.kind"
)
"""The columns of a `JobRow`."""

# Holds in the server what runs into it, until there is a row in `gate`.
HOLD = (
    "CREATE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql SET search_path = public AS $$ BEGIN "
    "WHILE NOT EXISTS (SELECT FROM gate) LOOP PERFORM pg_sleep(0.01); END LOOP; RETURN NEW; END $$"
)
HELD = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database())"

PATIENCE = 40.0
CHECKOUT = Path(__file__).resolve().parents[2]


async def until(condition: Callable[[], Any]) -> Any:
    """Wait until a condition outside the database is true; return its value."""
    async with asyncio.timeout(PATIENCE):
        while not (value := condition()):  # noqa: ASYNC110  # of other processes
            await asyncio.sleep(LOOK_EVERY)
        return value


class Daemon:
    """One worker process."""

    def __init__(self, name: str, process: daemons.Process, log: Path) -> None:
        self.name, self.process, self.pid, self.log = name, process, process.pid, log
        self.worker_id = 0

    def signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        self.process.send_signal(number)

    async def exit_code(self) -> int:
        """Wait for the end of the process."""
        await until(lambda: self.process.poll() is not None)
        assert self.process.returncode is not None
        return self.process.returncode

    async def until_logged(self, words: str, times: int = 1) -> None:
        """Wait until it has logged this text."""
        await until(lambda: self.log.read_text().count(words) >= times)


class Scene:
    """A database, a folder with history and gates, and the workers that a test starts."""

    def __init__(self, database: str, folder: Path, look: Look, app: Archibald) -> None:
        self.database, self.folder, self.look, self.app = database, folder, look, app
        self.history = folder / fault_app.HISTORY
        self.daemons: list[Daemon] = []

    # -- workers

    async def start(self, name: str, *, of: str = "app", database: str | None = None, **settings: Any) -> Daemon:
        """Start a worker and wait until it is registered; settings as environment variables. `of`: see `spawn`."""
        return await self.registered(self.spawn(name, of, database or self.database, settings))

    async def registered(self, daemon: Daemon) -> Daemon:
        """Wait until a worker is registered."""
        async with asyncio.timeout(PATIENCE):
            while True:
                rows = await self.look.rows(
                    "SELECT id FROM archibald.workers WHERE pid = %s AND stopped_at IS NULL ORDER BY id DESC",
                    daemon.pid,
                )
                if rows:
                    daemon.worker_id = rows[0][0]
                    return daemon
                assert daemon.process.poll() is None, daemon.log.read_text()
                await asyncio.sleep(LOOK_EVERY)

    def spawn(self, name: str, of: str, database: str, settings: dict[str, Any]) -> Daemon:
        """Start a worker of the app `of`: a name in the module of the fault tests, or MODULE:NAME."""
        environment = {
            **os.environ,
            "ARCHIBALD_DATABASE_URL": database,
            "FAULT_FOLDER": str(self.folder),
            "FAULT_WORKER": name,
            **{key: str(value) for key, value in settings.items()},
        }
        log = self.folder / f"{name}.log"
        name_of_app = of if ":" in of else f"tests.acceptance.fault_app:{of}"
        process = daemons.start(["run", name_of_app], env=environment, cwd=CHECKOUT, log=log)
        append(self.history, Event(now(), "spawned", process.pid, name))
        daemon = Daemon(name, process, log)
        self.daemons.append(daemon)
        return daemon

    async def kill(self, daemon: Daemon) -> None:
        """SIGKILL; the history gets the time of death."""
        daemon.process.kill()
        await self.died(daemon)

    async def died(self, daemon: Daemon) -> int:
        """Wait until a process has ended by itself or otherwise, and write it down."""
        code = await daemon.exit_code()
        append(self.history, Event(now(), "killed", daemon.pid, daemon.name))
        return code

    async def freeze(self, daemon: Daemon) -> None:
        """SIGSTOP; returns when the process is stopped."""
        daemon.signal(signal.SIGSTOP)
        await until(lambda: psutil.Process(daemon.pid).status() == psutil.STATUS_STOPPED)
        append(self.history, Event(now(), "stopped", daemon.pid, daemon.name))

    def thaw(self, daemon: Daemon) -> None:
        """SIGCONT."""
        append(self.history, Event(now(), "continued", daemon.pid, daemon.name))
        daemon.signal(signal.SIGCONT)

    async def end_listeners(self) -> None:
        """Terminate the backends that hear the workers' notifications, once there is one again."""
        pids = await until(lambda: backends(self.database, "^LISTEN"))
        await self.look.rows("SELECT pg_terminate_backend(pid) FROM unnest(%s::int[]) AS pid", pids)

    async def until_trusted(self, daemon: Daemon, lease: float) -> None:
        """Wait until a worker may take over from others: it has beaten for a lease and a beat."""
        await self.look.until(
            "SELECT beat > started_at + make_interval(secs => %s) FROM archibald.workers WHERE id = %s",
            lease + min(lease / 6, 1),
            daemon.worker_id,
        )

    async def lose_witness(self, daemon: Daemon) -> None:
        """As on another machine: nothing proves its death, the lease decides."""
        path = await self.look.value("SELECT witness_path FROM archibald.workers WHERE id = %s", daemon.worker_id)
        os.unlink(path)  # noqa: PTH108  # at once

    async def until_anew(self, daemon: Daemon) -> None:
        """Wait until a worker that was fenced has registered anew, as the same process."""
        await self.look.until(
            "SELECT EXISTS (SELECT FROM archibald.workers WHERE pid = %s AND id > %s)", daemon.pid, daemon.worker_id
        )

    async def stop_all(self) -> None:
        """SIGTERM to all that run; each must end with 0."""
        running = [daemon for daemon in self.daemons if daemon.process.poll() is None]
        for daemon in running:
            daemon.signal(signal.SIGTERM)
        for daemon in running:
            assert await daemon.exit_code() == 0, daemon.log.read_text()

    def show_logs(self) -> None:
        """Print what the workers said last: who reads of a failure wants to know."""
        for daemon in self.daemons:
            log = daemon.log.read_text()[-20_000:]
            sys.stdout.write(f"-- {daemon.name}, exit code {daemon.process.poll()}:\n{log}\n")

    def clear(self) -> None:
        """End what is left, whatever state it is in."""
        for daemon in self.daemons:
            if daemon.process.poll() is None:
                daemon.process.kill()
            daemon.process.wait()

    # -- jobs

    async def enqueue(self, kind: str, user_id: str, do: str = "wait", **data: Any) -> int:
        """Enqueue a job; a handler that waits does so for the gate `open`, if no other is named."""
        if do in ("wait", "ignore", "report", "check in"):
            data.setdefault("gate", "open")
        job = await self.app.enqueue(kind, user_id=user_id, data={"do": do, **data})
        append(self.history, Event(now(), "enqueued", job_id=job.id, user_id=user_id))
        return job.id

    def open(self, gate: str = "open") -> None:
        """Let the handlers at this gate go on, also those still to come."""
        (self.folder / gate).touch()

    def events(self, what: str, job_id: int) -> list[Event]:
        """The history's lines of one job."""
        return [event for event in read(self.history) if event.what == what and event.job_id == job_id]

    async def until_started(self, *jobs: int, times: int = 1) -> None:
        """Wait until handlers of these jobs have started so often."""
        for job in jobs:
            await until(lambda job=job: len(self.events("start", job)) >= times)  # type: ignore[misc]

    async def until_ended(self) -> None:
        """Wait until no job is queued or running."""
        await self.look.until("SELECT NOT EXISTS (SELECT FROM archibald.jobs WHERE state IN ('queued', 'running'))")

    async def check(self, *, order: bool = True) -> None:
        """The checker must find nothing, and no lane may be left with a worker; `order`: see `violations`."""
        rows = await self.look.rows(JOBS)
        broken = violations(read(self.history), [JobRow(*row) for row in rows], order=order)
        assert not broken, broken
        assert await self.look.rows("SELECT user_id FROM archibald.agents WHERE state = 'running'") == []


@contextlib.asynccontextmanager
async def scene(database: str) -> AsyncIterator[Scene]:
    """Set up on a migrated database; whatever the test started is gone at the end."""
    with tempfile.TemporaryDirectory(prefix="archibald-faults-") as folder:
        async with Archibald(database) as app, looking(database) as look:
            fault_app.register(app)
            made = Scene(database, Path(folder), look, app)
            try:
                yield made
            except BaseException:
                made.show_logs()
                raise
            finally:
                made.clear()


class OwnServer:
    """A Postgres that the test may stop, start and freeze; nobody else uses it."""

    def __init__(self, folder: Path, settings: dict[str, str]) -> None:
        layout = layout_of(folder)
        account = prepare_folder(layout)
        make_private(layout, account)
        self._pid_file = layout.data / "postmaster.pid"
        self._log = os.open(layout.log, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        programs = reachable(embedded.find_programs(), account, layout)
        self._cluster = Cluster(
            layout, programs, account, {"fsync": "off", "max_connections": "60", **settings}, self._log
        )
        self._cluster.create()
        self.dsn = layout.dsn

    def process(self) -> psutil.Process:
        """The postmaster."""
        return psutil.Process(int(self._pid_file.read_text().split("\n", 1)[0]))

    async def start(self) -> None:
        """Start it and wait until it accepts connections."""
        self._cluster.launch()
        await until(self._cluster.ready)

    async def stop(self, number: signal.Signals) -> None:
        """SIGINT: fast, SIGQUIT: immediate; returns when it has ended."""
        self.process().send_signal(number)
        await until(lambda: not self._cluster.alive())

    @property
    def alive(self) -> bool:
        """Whether its postmaster runs."""
        return self._cluster.alive()

    def allow_tcp(self) -> None:
        """Let everybody in who reaches it: for one that listens where only the test comes."""
        with (self._pid_file.parent / "pg_hba.conf").open("a") as file:
            file.write("host all all all trust\n")

    def freeze(self) -> None:
        """Nothing of it answers any more."""
        self._all(signal.SIGSTOP)

    def thaw(self) -> None:
        """It goes on."""
        self._all(signal.SIGCONT)

    def _all(self, number: signal.Signals) -> None:
        postmaster = self.process()
        for process in [postmaster, *postmaster.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):  # a backend may have just ended
                process.send_signal(number)

    def close(self) -> None:
        """End it."""
        if self._cluster.alive():
            self.thaw()
            self._cluster.stop()
        os.close(self._log)


@contextlib.contextmanager
def own_server(folder: Path | None = None, **settings: str) -> Iterator[OwnServer]:
    """Make one in a folder of its own, not started yet."""
    folder = folder or Path(tempfile.mkdtemp(prefix="archibald-own-"))
    try:
        server = OwnServer(folder, settings)
        try:
            yield server
        finally:
            server.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class Wire:
    """A TCP address in front of a database, which can lose one reply, or swallow everything."""

    def __init__(self, database: str) -> None:
        target = conninfo_to_dict(database)
        self._host, self._port = str(target.get("host", "")), str(target.get("port", "5432"))
        self._conninfo = database
        self._lose: bytes | None = None
        self._delay: bytes | None = None
        self._half_open = False
        self._delayed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._flows = asyncio.Event()
        self._flows.set()
        self.lost = asyncio.Event()
        """Set once a reply was lost."""
        self.caught = asyncio.Event()
        """Set once a reply was caught, to be delayed."""
        self.dsn = ""
        self.openings: list[bytes] = []
        """What each connection said first."""

    async def __aenter__(self) -> Wire:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        target = conninfo_to_dict(self._conninfo)
        login = ":".join(quote(str(target[key]), safe="") for key in ("user", "password") if key in target)
        self.dsn = f"postgresql://{login}@127.0.0.1:{port}/{target['dbname']}?sslmode=disable&gssencmode=disable"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def lose_reply_with(self, words: bytes) -> None:
        """Of the next reply that has these bytes nothing arrives; its connection breaks."""
        self._lose = words

    def delay_reply_with(self, words: bytes) -> None:
        """The next reply that has these bytes arrives when `let_through` is called."""
        self._delay = words

    def let_through(self) -> None:
        """See `delay_reply_with`."""
        self._delayed.set()

    def hold(self) -> None:
        """Black hole: what is sent arrives nowhere, and nobody is told."""
        self._flows.clear()

    def hold_lock_connection(self) -> None:
        """Half open: of what the dispatcher's connection sends nothing arrives any more; other connections go on."""
        self._half_open = True

    def release(self) -> None:
        """Everything arrives again."""
        self._flows.set()

    def reset(self) -> None:
        """Every connection that there is breaks."""
        for writer in self._writers:
            writer.transport.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        try:
            await self._flows.wait()
            if self._host.startswith("/"):
                up_reader, up_writer = await asyncio.open_unix_connection(f"{self._host}/.s.PGSQL.{self._port}")
            else:
                up_reader, up_writer = await asyncio.open_connection(self._host, int(self._port))
            try:
                self.openings.append(opening := await reader.read(1 << 16))
                up_writer.write(opening)
                pumps = [
                    asyncio.create_task(self._pump(reader, up_writer, replies=False)),
                    asyncio.create_task(self._pump(up_reader, writer, replies=True)),
                ]
                try:
                    await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for pump in pumps:
                        pump.cancel()
                    await asyncio.gather(*pumps, return_exceptions=True)
            finally:
                up_writer.close()
        except (asyncio.CancelledError, OSError):
            return  # by __aexit__, or the server is down, or the client has gone; asyncio's own callback would print it
        finally:
            writer.transport.abort()
            self._tasks.discard(task)
            self._writers.discard(writer)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, replies: bool) -> None:
        turns = False  # it is known by its first turn: later ones do not send the statement's text
        while data := await reader.read(1 << 16):
            await self._flows.wait()
            turns = turns or (not replies and b"archibald.turn(" in data)
            if turns and self._half_open:
                self._half_open = False
                self.caught.set()
                await asyncio.Event().wait()
            if replies and self._lose is not None and self._lose in data:
                self._lose = None
                self.lost.set()
                return
            if replies and self._delay is not None and self._delay in data:
                self._delay = None
                self.caught.set()
                await self._delayed.wait()
            writer.write(data)
            await writer.drain()


def backends(database: str, pattern: str) -> list[int]:
    """The pids of the workers' connections whose last statement matches."""
    with psycopg.connect(database, autocommit=True) as connection:
        rows = connection.execute(
            "SELECT pid FROM pg_stat_activity WHERE datname = current_database() "
            "AND application_name LIKE 'archibald-pgq %%' AND query ~ %s",
            (pattern,),
        )
        return [row[0] for row in rows]
