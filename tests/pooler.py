"""A real PgBouncer in front of a test's database; without it its tests are skipped."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import quote

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from tests.support import LOOK_EVERY, PATIENCE

PROGRAM = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")

needs_pgbouncer = pytest.mark.skipif(
    PROGRAM is None, reason="pgbouncer is not installed (on Debian: apt install pgbouncer)"
)


class Pooler:
    """A PgBouncer with the settings that it has by itself, apart from those named here."""

    def __init__(self, database: str, folder: Path, mode: str, pool_size: int, extra: str) -> None:
        self._folder = folder
        target = {key: str(value) for key, value in conninfo_to_dict(database).items() if value is not None}
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            self._port = found.getsockname()[1]
        self.user, self.password = target.get("user", "postgres"), target.get("password", "")
        here = {"host": "127.0.0.1", "port": self._port, "user": self.user, "dbname": target["dbname"]}
        self.dsn = make_conninfo(
            "", **here, **({"password": self.password} if self.password else {}), sslmode="disable"
        )
        login = ":".join(quote(part, safe="") for part in (self.user, self.password) if part)
        self.url = f"{login}@127.0.0.1:{self._port}/{target['dbname']}?sslmode=disable"
        """Without a scheme."""
        # The embedded server is behind a socket that only its user can reach; PgBouncer refuses to run as root anyhow.
        host = target.get("host", "localhost")
        self._account: int | None = None
        if os.geteuid() == 0:
            self._account = Path(host).stat().st_uid if host.startswith("/") else pwd.getpwnam("nobody").pw_uid
            os.chown(folder, self._account, -1)
        behind = f"host={host} port={target.get('port', '5432')} dbname={target['dbname']}"
        (folder / "users.txt").write_text(f'"{self.user}" "{self.password}"\n')
        (folder / "pgbouncer.ini").write_text(
            f"[databases]\n{target['dbname']} = {behind}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {self._port}\n"
            f"unix_socket_dir =\nauth_type = {'scram-sha-256' if self.password else 'trust'}\nauth_file = {folder}/users.txt\n"
            f"pool_mode = {mode}\ndefault_pool_size = {pool_size}\n{extra}\n"
        )
        self._process: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        """Start it and wait until it answers."""
        assert PROGRAM is not None
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(  # noqa: ASYNC220  # it is not waited for
                [PROGRAM, str(self._folder / "pgbouncer.ini")],
                user=self._account,
                extra_groups=[] if self._account is not None else None,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        async with asyncio.timeout(PATIENCE):
            while True:
                try:
                    async with await psycopg.AsyncConnection.connect(self.dsn):
                        return
                except psycopg.OperationalError:
                    assert self._process.poll() is None, (self._folder / "log").read_text()
                    await asyncio.sleep(LOOK_EVERY)

    def stop(self) -> None:
        """End it at once, whoever is connected."""
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait()
            self._process = None


@contextlib.asynccontextmanager
async def pooler(
    database: str, mode: str = "transaction", pool_size: int = 3, extra: str = ""
) -> AsyncIterator[Pooler]:
    """Start a PgBouncer in front of a database."""
    with tempfile.TemporaryDirectory(prefix="archibald-pooler-") as folder:
        made = Pooler(database, Path(folder), mode, pool_size, extra)
        try:
            await made.start()
            yield made
        finally:
            made.stop()
