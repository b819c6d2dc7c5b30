"""The app of the tests of what is logged: every line of every logger, and handlers that fail with their payload in hand."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from archibald_pgq import Archibald, Backoff, JobContext

logging.getLogger().setLevel(logging.DEBUG)

app = Archibald()


class UnprintableError(Exception):
    """An error that cannot even be shown."""

    def __str__(self) -> str:
        raise ValueError(self.args)


async def fail(ctx: JobContext, data: dict[str, Any]) -> object:
    """Fail in the way that the data names."""
    await ctx.progress(10, "begun")
    match data["how"]:
        case "raise":
            raise ValueError(f"cannot do {data}")
        case "unprintable":
            raise UnprintableError(data)
        case "exit":
            raise SystemExit(str(data))
        case "group":
            raise ExceptionGroup(str(data), [KeyError(str(data))])
        case "result":
            return {"bad": {1, str(data)}}
        case "deep":
            (await app.job(ctx.job_id)).payload["nothing"]["there"]
        case "nested":
            await app.enqueue("submit-order", user_id="bob", data={**data, "nul": "\x00"})
        case "forever":
            await asyncio.Event().wait()
    return data


app.operation("fails", job_class="read", max_attempts=2, backoff=Backoff.fixed(0.01), timeout=60)(fail)
app.operation("times-out", job_class="read", timeout=0.2)(fail)
