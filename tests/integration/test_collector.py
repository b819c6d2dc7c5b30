"""The garbage collector while a worker of this process runs."""

from __future__ import annotations

import gc
from typing import Any

from archibald_pgq import Archibald, JobContext
from archibald_pgq.runtime.collector import YOUNG
from tests.support import working


async def test_it_looks_less_often_while_a_worker_runs_and_is_then_as_it_was(database: str) -> None:
    found = gc.get_threshold()
    app = Archibald(database)

    @app.operation("look", job_class="read")
    async def look(ctx: JobContext, data: dict[str, Any]) -> list[int]:
        return list(gc.get_threshold())

    async with app:
        async with working(app):
            job = await app.enqueue("look", user_id="alice")
            assert (await job.wait(30))[0] >= YOUNG
        assert gc.get_threshold() == found
