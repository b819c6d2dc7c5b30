"""What `ctx.once` does: an effect outside Postgres that is not repeated by a later run of its job.

Guarantees: that a step begins is committed before it acts; a step that is done never acts again; one whose end is unknown acts again only
after `verify` said that it did not happen. Must not: decide for a person; let a lost answer of the database make a step unknown.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeVar
from uuid import uuid4

from archibald_pgq.domain.job import ClaimedJob
from archibald_pgq.domain.payload import to_json
from archibald_pgq.domain.step import StepState, check_name
from archibald_pgq.errors import (
    DatabaseError,
    InvalidJobError,
    NotPermittedError,
    SchemaError,
    StepUnknownError,
)
from archibald_pgq.runtime.reconnect import jittered
from archibald_pgq.store import steps
from archibald_pgq.store.request import Ask, Request

logger = logging.getLogger(__name__)

AGAIN = 0.3
"""Seconds, on average, until a step is written again when the database could not."""

T = TypeVar("T")
Act = Callable[[], Awaitable[Any]]


class Checkpoints:
    """The steps of one run of one job."""

    def __init__(self, job: ClaimedJob, worker_id: int, ask: Ask) -> None:
        """Prepare; nothing is asked yet."""
        self._job, self._worker_id, self._ask = job, worker_id, ask
        self._under_way: set[tuple[str, str | None]] = set()

    async def once(self, step: str, act: Act, key: str | None, verify: Act | None, settle: float) -> Any:
        """See `JobContext.once`."""
        place = check_name(step, "step"), None if key is None else check_name(key, "key")
        if place in self._under_way:
            raise InvalidJobError(f"the step {step!r} is under way in this job; await it before you ask for it again")
        self._under_way.add(place)
        try:
            return await self._once(place, act, verify, settle)
        finally:
            self._under_way.discard(place)

    async def _once(self, place: tuple[str, str | None], act: Act, verify: Act | None, settle: float) -> Any:
        begin = partial(steps.begin, self._job, self._worker_id, *place, uuid4(), verifiable=verify is not None)
        step = await self._surely(begin(absent=False))
        if step.state is StepState.UNKNOWN:
            if verify is None:
                raise StepUnknownError(
                    f"the step {place[0]!r} was begun {step.age:.0f} s before, and whether it happened is not known; look outside, then "
                    "retry the job if it did not happen, else discard it"
                )
            await asyncio.sleep(max(settle - step.age, 0))
            found = await verify()
            if found is not None:
                return await self._finish(place, found)
            step = await self._surely(begin(absent=True))
        if step.state is StepState.DONE:
            return step.result
        return await self._finish(place, await act())

    async def _finish(self, place: tuple[str, str | None], result: Any) -> Any:
        try:
            text = to_json(result, f"result of the step {place[0]!r}")
        except InvalidJobError:
            await self._surely(steps.finish(self._job, self._worker_id, *place, "null"))  # it happened all the same
            raise
        await self._surely(steps.finish(self._job, self._worker_id, *place, text))
        return json.loads(text)  # what a later run gets

    async def forget(self, key: str) -> None:
        """See `JobContext.forget`."""
        await self._surely(steps.forget(self._job, self._worker_id, check_name(key, "key")))

    async def _surely(self, request: Request[T]) -> T:
        """Ask until there is an answer: without it nobody knew afterwards whether the step happened. Who stops the job ends this too."""
        told = False
        while True:
            try:
                answer: T = await self._ask(request)
            except (NotPermittedError, SchemaError):
                raise
            except DatabaseError as error:
                if not told:
                    logger.warning("job %d waits, for a step cannot be written: %s", self._job.job_id, error)
                    told = True
                await asyncio.sleep(jittered(AGAIN))
            else:
                return answer
