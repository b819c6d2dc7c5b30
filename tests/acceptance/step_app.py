"""The app of the tests that kill a worker within a step: orders are lines of a file, and the process dies where a job's data says.

`FAULT_FOLDER` names the folder; it dies once for each job, which a file there says.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from archibald_pgq import Archibald, JobContext
from archibald_pgq.store.client import Client
from archibald_pgq.store.request import Request

FOLDER = Path(os.environ.get("FAULT_FOLDER", "."))
ORDERS = "orders"

POINTS = (
    "before begin_step",
    "after begin_step",
    "before the effect",
    "after the effect",
    "before finish_step",
    "after finish_step",
    "before the end",
)
"""Every place where a step can be cut off, in their order."""

app = Archibald()
_chosen = ""
"""Where this process dies, and in which job."""


def _point(name: str) -> None:
    if _chosen.startswith(f"{name} of ") and not (mark := FOLDER / _chosen).exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)


_ask = Client.ask


async def _asking(self: Client, request: Request[Any], *args: Any) -> Any:
    writes = [name for name in ("begin_step", "finish_step") if name in request.statement]
    for name in writes:
        _point(f"before {name}")
    answer = await _ask(self, request, *args)
    for name in writes:
        _point(f"after {name}")
    return answer


Client.ask = _asking  # type: ignore[method-assign,assignment]  # the place between a write and its answer


async def place(ctx: JobContext, data: dict[str, Any]) -> Any:
    """Place the order of this job."""
    global _chosen  # noqa: PLW0603  # of this process
    _chosen = f"{data['die']} of {ctx.job_id}"
    orders = FOLDER / ORDERS

    async def act() -> str:
        _point("before the effect")
        with orders.open("a", encoding="utf-8") as file:
            file.write(f"{ctx.job_id}\n")
        _point("after the effect")
        return "placed"

    async def verify() -> str | None:
        return "found" if orders.exists() and str(ctx.job_id) in orders.read_text().split() else None

    result = await ctx.once("place", act, verify=verify if data["verify"] else None)
    _point("before the end")
    return result


app.operation("order", job_class="write", idempotent=True)(place)
