"""The operations of an app: which handler runs which kind, and the policies that the app declares itself."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from archibald_pgq.domain.operations import CATALOGUE, JobClass, Policy
from archibald_pgq.domain.payload import check_kind
from archibald_pgq.errors import ConfigError, InvalidJobError
from archibald_pgq.runtime.context import JobContext

if TYPE_CHECKING:
    from playwright.async_api import BrowserContext, Page

Handler = Callable[[JobContext, dict[str, Any]], Awaitable[Any]]
Login = Callable[[JobContext, "Page"], Awaitable[None]]
Valid = Callable[["BrowserContext"], Awaitable[bool] | bool]


@dataclass(frozen=True, slots=True)
class Operation:
    """A kind with its handler; `policy` is None where the app says nothing about it: then the kind's row in the database decides."""

    kind: str
    handler: Handler
    policy: Policy | None
    needs_browser: bool = False


def declared_policy(kind: str, **given: Any) -> Policy | None:
    """Return the policy that an app declares for a kind: the arguments that are not None, with defaults for the rest; None if all are.

    Raises:
        ConfigError: an argument is out of its range.
    """
    chosen = {name: value for name, value in given.items() if value is not None}
    if not chosen:
        return None
    try:
        if "job_class" in chosen:
            chosen["job_class"] = JobClass(chosen["job_class"])
        return Policy(**chosen)
    except ValueError as error:
        raise ConfigError(f"the operation {kind!r} cannot be registered: {error}") from None


class Registry:
    """The operations of one app, by kind."""

    def __init__(self) -> None:
        """Start empty."""
        self._operations: dict[str, Operation] = {}
        self.login: Login | None = None
        """Logs an agent in, in a new context."""
        self.valid: Valid | None = None
        """Says whether a context's session still is; None: the pool's own rule."""

    def add(self, kind: str, handler: Handler, policy: Policy | None, *, needs_browser: bool = False) -> None:
        """Register a handler, with the policy that the app declares for the kind, if it does.

        Raises:
            ConfigError: the kind is not well formed or has a handler already, or the handler is no `async def`.
        """
        try:
            check_kind(kind)
        except InvalidJobError as error:
            raise ConfigError(f"the operation {kind!r} cannot be registered: {error}") from None
        if kind in self._operations:
            raise ConfigError(f"the operation {kind!r} has two handlers; register one")
        if not inspect.iscoroutinefunction(handler):
            raise ConfigError(f"the handler of {kind!r} is not an async function; write it as `async def`")
        self._operations[kind] = Operation(kind, handler, policy, needs_browser)

    def operation(self, kind: str) -> Operation | None:
        """Return what this app says of a kind, if it has a handler of it."""
        return self._operations.get(kind)

    @property
    def any_needs_browser(self) -> bool:
        """True where a worker of this app needs browsers."""
        return any(operation.needs_browser for operation in self._operations.values())

    def kinds(self) -> list[str]:
        """Return the kinds with a handler, sorted."""
        return sorted(self._operations)

    def __len__(self) -> int:
        """Return how many kinds there are; they only grow more."""
        return len(self._operations)

    def declared(self, start: int = 0) -> Iterator[tuple[str, Policy | None]]:
        """Yield the kinds that need a row of this app's making: with its policy, or with None where any row will do.

        The first `start` kinds that were registered are left out.
        """
        for operation in list(self._operations.values())[start:]:
            if operation.policy is not None or operation.kind not in CATALOGUE:
                yield operation.kind, operation.policy
