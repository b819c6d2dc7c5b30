"""The examples of web applications do what they say, against a worker process started as their page says.

An order and its job appear together or not at all; a repeated request is one order; the job's page shows its state; what is refused is
a sentence.
"""

from __future__ import annotations

import ast
import asyncio
import importlib
import json
import signal
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from types import ModuleType
from typing import Any

import httpx
import pytest

from tests.commands import CHECKOUT, PATIENCE, PROGRAM, environment
from tests.support import Look

Answer = tuple[int, dict[str, Any]]
Call = Callable[[str, str, dict[str, Any] | None, str | None], Awaitable[Answer]]
"""(method, path, body, idempotency key) of a request to what it answers."""

ALL_CLOSED = (
    "SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    " AND backend_type = 'client backend')"
)


@contextmanager
def worker_of(example: str, database: str) -> Iterator[None]:
    """Run a worker process for an example's jobs."""
    daemon = subprocess.Popen(
        [*PROGRAM, "run", f"examples.web.{example}:queue"],
        cwd=CHECKOUT,
        env=environment(DATABASE_URL=database),
        stderr=subprocess.PIPE,
        text=True,
    )
    assert daemon.stderr is not None
    log = ""
    while " is ready: " not in log:
        line = daemon.stderr.readline()
        assert line, log
        log += line
    try:
        yield
    finally:
        daemon.send_signal(signal.SIGTERM)
        _, rest = daemon.communicate(timeout=PATIENCE)
    assert daemon.returncode == 0, log + rest
    assert "Traceback" not in log + rest


@pytest.fixture
def example(request: pytest.FixtureRequest, database: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The example's module, which reads the database from the environment."""
    monkeypatch.setenv("DATABASE_URL", database)
    return importlib.import_module(f"examples.web.{request.param}")


async def shops(call: Call, look: Look, *, orders: str = "orders", stock: str = "stock") -> None:
    """Buy, buy again, buy too much, ask."""
    await look.rows(f"INSERT INTO {stock} VALUES ('pen', 10)")
    left = f"SELECT pieces FROM {stock}"
    order = {"customer": "alice", "article": "pen", "pieces": 3}

    code, answer = await call("POST", "/orders", order, "key-1")
    assert code == 202, answer
    job = answer["job"]
    assert await call("POST", "/orders", order, "key-1") == (202, {"job": job})
    assert await look.rows(f"SELECT job_id, customer, article, pieces FROM {orders}") == [(job, "alice", "pen", 3)]
    assert await look.rows(left) == [(7,)]
    await look.until_state(job, "completed")
    assert await call("GET", f"/jobs/{job}", None, None) == (
        200,
        {"state": "completed", "progress": 50, "result": {"submitted": "pen"}, "error": None},
    )

    code, answer = await call("POST", "/orders", {**order, "pieces": 8}, "key-2")
    assert (code, answer["detail"]) == (409, "so many are not in stock")
    assert await look.value("SELECT count(*) FROM archibald.all_jobs") == 1
    assert await look.value(f"SELECT count(*) FROM {orders}") == 1
    assert await look.rows(left) == [(7,)]
    code, answer = await call("POST", "/orders", {**order, "pieces": 7}, "key-2")  # the key was rolled back too
    assert code == 202, answer
    await look.until_state(answer["job"], "completed")
    assert await look.rows(left) == [(0,)]

    code, answer = await call("POST", "/orders", {**order, "customer": ""}, None)
    assert (code, answer["detail"]) == (422, "user_id must be a text of 1 to 200 characters")
    code, answer = await call("GET", "/jobs/999999", None, None)
    assert (code, answer["detail"]) == (404, "there is no job 999999; `archibald-pgq jobs` lists the newest")


def _headers(key: str | None) -> dict[str, str]:
    return {} if key is None else {"Idempotency-Key": key}


@pytest.mark.parametrize("example", ["fastapi_app"], indirect=True)
async def test_an_order_of_the_fastapi_shop_and_its_job_are_one(example: ModuleType, database: str, look: Look) -> None:
    site = example.site
    transport = httpx.ASGITransport(app=site)
    with worker_of("fastapi_app", database):
        async with (
            site.router.lifespan_context(site),
            httpx.AsyncClient(transport=transport, base_url="http://testserver") as client,
        ):

            async def call(method: str, path: str, body: dict[str, Any] | None, key: str | None) -> Answer:
                answer = await client.request(method, path, json=body, headers=_headers(key))
                return answer.status_code, answer.json()

            await shops(call, look)
    await look.until(ALL_CLOSED)


@pytest.mark.parametrize("example", ["flask_app"], indirect=True)
async def test_an_order_of_the_flask_shop_and_its_job_are_one(
    example: ModuleType, database: str, look: Look, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_the_end: list[Callable[[], None]] = []
    monkeypatch.setattr("atexit.register", at_the_end.append)
    client = example.create_app().test_client()

    async def call(method: str, path: str, body: dict[str, Any] | None, key: str | None) -> Answer:
        answer = await asyncio.to_thread(client.open, path, method=method, json=body, headers=_headers(key))
        return answer.status_code, answer.json or {"detail": answer.text.split("<p>")[-1].split("</p>")[0]}

    with worker_of("flask_app", database):
        await shops(call, look)
    for close in at_the_end:
        close()
    await look.until(ALL_CLOSED)


@pytest.mark.parametrize("example", ["django_app"], indirect=True)
async def test_an_order_of_the_django_shop_and_its_job_are_one(example: ModuleType, database: str, look: Look) -> None:
    from django.db import connection, connections
    from django.test import Client

    needed = connection.features.minimum_database_version
    if needed and look.connection.info.server_version // 10000 < needed[0]:
        pytest.skip(f"this Django needs PostgreSQL {needed[0]}")
    client = Client()
    with ThreadPoolExecutor(1) as thread:  # Django has a connection for each thread

        async def in_thread(act: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            return await asyncio.get_running_loop().run_in_executor(thread, partial(act, *args, **kwargs))

        async def call(method: str, path: str, body: dict[str, Any] | None, key: str | None) -> Answer:
            content = json.dumps(body) if body else ""
            answer = await in_thread(client.generic, method, path, content, headers=_headers(key))
            return answer.status_code, answer.json()

        await in_thread(example.create_tables)
        with worker_of("django_app", database):
            await shops(call, look, orders="shop_order", stock="shop_stock")
        await in_thread(connections.close_all)
        await in_thread(example.queue.sync.close)
    await look.until(ALL_CLOSED)


def test_the_examples_use_only_public_names_and_are_short() -> None:
    import archibald_pgq

    for path in sorted((CHECKOUT / "examples" / "web").glob("*.py")):
        source = path.read_text(encoding="utf-8")
        assert len(source.splitlines()) <= 95, path
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("archibald_pgq"):
                assert node.module == "archibald_pgq", path
                assert {name.name for name in node.names} <= set(archibald_pgq.__all__), path
