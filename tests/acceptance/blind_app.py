"""The example ERP's app for an ERP in which nothing can be looked up: its steps have no `verify`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from archibald_pgq.examples.erp import app

from archibald_pgq import JobContext

__all__ = ["app"]

_once = JobContext.once


async def _blind(self: JobContext, step: str, act: Callable[[], Awaitable[Any]], **given: Any) -> Any:
    return await _once(self, step, act, key=given.get("key"))


JobContext.once = _blind  # type: ignore[method-assign]
