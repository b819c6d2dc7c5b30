"""The blocks of docs/python.md run in their order, against a database and a worker of the app that they declare."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import create_async_engine

from archibald_pgq import Archibald
from archibald_pgq.domain.operations import Policy
from tests.documents import ROOT, Block, blocks
from tests.support import Look, working

BLOCKS = blocks("docs/python.md", "python")


def _execute(block: Block, names: dict[str, Any]) -> None:
    exec(compile(block.code, block.name, "exec"), names)  # noqa: S102  # the page's own examples


def _examples(names: dict[str, Any]) -> list[Callable[..., Awaitable[None] | None]]:
    """The functions that are no handlers, in the order in which they stand."""
    return [
        each
        for each in names.values()
        if inspect.isfunction(each)
        and each.__module__ == names["__name__"]
        and "ctx" not in inspect.signature(each).parameters
    ]


async def test_every_example_of_the_python_page_does_what_it_says(
    database: str, look: Look, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ARCHIBALD_DATABASE_URL", database)
    names: dict[str, Any] = {"__name__": "docs"}
    for block in BLOCKS:
        _execute(block, names)
    elsewhere: dict[str, Any] = {}
    for block in BLOCKS[:3]:  # the app and its handlers
        _execute(block, elsewhere)
    workers_app: Archibald = elsewhere["app"]
    engine = create_async_engine(database.replace("postgresql://", "postgresql+psycopg://"))
    given = {"dsn": database, "engine": engine, "url": engine.url}
    async with workers_app, working(workers_app):
        examples = _examples(names)
        assert [example.__name__ for example in examples] == [
            "sync",
            "place",
            "submit",
            "change_of_mind",
            "careful",
            "decide",
            "with_psycopg",
            "with_sqlalchemy",
            "in_bulk",
            "synchronously",
            "with_a_session",
            "with_a_connection",
        ]
        for example in examples:
            arguments = {name: given[name] for name in inspect.signature(example).parameters}
            if inspect.iscoroutinefunction(example):
                await example(**arguments)
            else:
                await asyncio.to_thread(example, **arguments)
        await look.until("SELECT count(*) = 1 FROM archibald.all_jobs WHERE user_id = 'dan' AND state = 'completed'")
        await look.until("SELECT count(*) = 2 FROM archibald.all_jobs WHERE user_id = 'erin' AND state = 'completed'")
    await engine.dispose()
    assert await look.rows("SELECT payload FROM archibald.all_jobs WHERE user_id = 'erin' ORDER BY id") == [
        ({"order": 10},),
        ({"order": 11},),
    ]  # order 12 was rolled back
    assert await look.value("SELECT payload FROM archibald.all_jobs WHERE user_id = 'dan'") == {
        "order": 8
    }  # order 9 was rolled back
    assert "completed 1 " in capsys.readouterr().out
    policy = await look.rows(
        "SELECT class, priority, timeout_s, max_attempts, backoff, backoff_s FROM archibald.operations WHERE kind = 'send-mail'"
    )
    assert policy == [("read", 20, 30.0, 3, "fixed", 5.0)]


def test_the_defaults_of_a_policy_are_those_of_the_page() -> None:
    page = (ROOT / "docs/python.md").read_text(encoding="utf-8")
    policy = Policy()
    for name, value in (
        ("job_class", f'"{policy.job_class}"'),
        ("priority", policy.priority),
        ("timeout", f"{policy.timeout:g}"),
        ("max_attempts", policy.max_attempts),
        ("idempotent", policy.idempotent),
    ):
        assert f"| `{name}` | `{value}` |" in page or f"| `{name}` | {value} |" in page, name
    documented = set(inspect.signature(Archibald.operation).parameters) - {"self", "kind"}
    assert all(f"| `{name}` |" in page for name in documented)


def test_every_name_that_a_handler_is_given_is_documented() -> None:
    from archibald_pgq import JobContext

    page = (ROOT / "docs/python.md").read_text(encoding="utf-8")
    attributes = [
        line.split(":")[0].strip()
        for line in (JobContext.__doc__ or "").split("Attributes:")[1].splitlines()
        if ":" in line
    ]
    assert attributes
    for name in [*attributes, "progress"]:
        assert f"`{name}`" in page or f"ctx.{name}" in page, name
