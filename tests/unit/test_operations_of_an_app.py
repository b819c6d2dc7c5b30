"""Registering operations: what is not allowed is refused where it is written, with one sentence."""

from __future__ import annotations

from typing import Any

import pytest

from archibald_pgq import Archibald, Backoff, ConfigError, JobContext, Policy
from archibald_pgq.runtime.registry import Registry


async def handler(ctx: JobContext, data: dict[str, Any]) -> None: ...


def test_the_decorator_returns_the_function_and_the_app_knows_its_kind() -> None:
    app = Archibald()
    assert app.operation("submit-order")(handler) is handler
    assert app.operation("a-kind-of-ours", priority=3)(handler) is handler
    assert app.kinds == ["a-kind-of-ours", "submit-order"]


def test_a_second_handler_of_a_kind_is_refused() -> None:
    app = Archibald()
    app.operation("submit-order")(handler)
    with pytest.raises(ConfigError, match="the operation 'submit-order' has two handlers; register one"):
        app.operation("submit-order")(handler)


def test_a_handler_that_is_no_coroutine_function_is_refused() -> None:
    def sync_handler(ctx: JobContext, data: dict[str, Any]) -> None: ...

    app = Archibald()
    with pytest.raises(
        ConfigError, match="the handler of 'submit-order' is not an async function; write it as `async def`"
    ):
        app.operation("submit-order")(sync_handler)  # type: ignore[type-var]
    assert app.kinds == []


@pytest.mark.parametrize("kind", ["", "Submit", "a b", "x" * 101, "'; DROP SCHEMA archibald CASCADE; --", None, 7])
def test_a_kind_that_is_not_well_formed_is_refused(kind: Any) -> None:
    with pytest.raises(ConfigError, match=r"the operation .* cannot be registered: kind must be 1 to 100 of a-z"):
        Archibald().operation(kind)(handler)


@pytest.mark.parametrize(
    "policy",
    [
        {"job_class": "nonsense"},
        {"priority": -1},
        {"priority": 1.5},
        {"timeout": 0},
        {"timeout": float("nan")},
        {"max_attempts": 0},
        {"max_attempts": "3"},
        {"backoff": 5},
        {"idempotent": "yes"},
    ],
)
def test_a_policy_out_of_range_is_refused(policy: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="the operation 'submit-order' cannot be registered: "):
        Archibald().operation("submit-order", **policy)


def test_only_kinds_with_a_policy_of_their_own_are_declared() -> None:
    registry = Registry()
    registry.add("submit-order", handler, None)
    registry.add("edit-order", handler, Policy(priority=7))
    registry.add("ours", handler, None)
    assert dict(registry.declared()) == {"edit-order": Policy(priority=7), "ours": None}
    assert (found := registry.operation("ours")) is not None
    assert found.handler is handler
    assert registry.operation("unknown") is None


def test_what_is_not_given_of_a_declared_policy_takes_the_default() -> None:
    app = Archibald()
    app.operation("ours", job_class="sync", backoff=Backoff.fixed(5))(handler)
    assert app.kinds == ["ours"]
