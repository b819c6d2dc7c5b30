"""What a worker does where the system behind an agent's login fails, so that it is not tried again and again.

Owns: which errors count, and what becomes of their jobs. Guarantees: such a job goes back to its place with no attempt spent; the first
success begins the count anew. Must not: decide how long a pause is (the database does, for all workers alike).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

from archibald_pgq.domain.job import ClaimedJob
from archibald_pgq.domain.operations import JobClass
from archibald_pgq.domain.outcome import Outcome
from archibald_pgq.domain.states import Event
from archibald_pgq.errors import ArchibaldError, LoginRefusedError, UnreachableError
from archibald_pgq.store import breakers
from archibald_pgq.store.request import Ask

logger = logging.getLogger(__name__)


class Breakers:
    """The circuit breakers, as one registered worker moves them."""

    def __init__(self, worker_id: int, ask: Ask) -> None:
        """Nothing is known to fail yet."""
        self._worker_id, self._ask = worker_id, ask
        self._failing: set[str] = set()
        """Agents of which somebody has noted a failure; a success of one of them is told to the database."""

    def are_failing(self, user_ids: Iterable[str]) -> None:
        """Take note of what the database says."""
        self._failing = set(user_ids)

    def concern(self, job: ClaimedJob, outcome: Outcome, error: BaseException | None) -> bool:
        """True where `judge` has something to do; mostly not."""
        match outcome.event:
            case Event.COMPLETE:
                return job.user_id in self._failing
            case Event.FAIL | Event.RETRY if isinstance(error, UnreachableError | LoginRefusedError):
                return True
            case Event.FAIL:
                return job.policy.job_class is JobClass.SYNC
        return False

    async def judge(self, job: ClaimedJob, outcome: Outcome, error: BaseException | None) -> Outcome:
        """Tell the database, and return what the run comes to."""
        try:
            if outcome.event is Event.COMPLETE:
                await self._ask(breakers.recovered(job, self._worker_id))
                self._failing.discard(job.user_id)
            elif isinstance(error, LoginRefusedError):
                await self._ask(breakers.login_refused(job, self._worker_id, str(error)))
                logger.warning("%s is paused until somebody resumes it: the login was refused: %s", job.user_id, error)
            elif isinstance(error, UnreachableError):
                self._failing.add(job.user_id)
                if seconds := await self._ask(breakers.outage(job, self._worker_id, str(error))):
                    logger.warning("%s is paused for %.0f s: %s", job.user_id, seconds, error)
            elif seconds := await self._ask(breakers.sync_failed(job, self._worker_id, outcome.error or "")):
                logger.warning("%s of %s is left alone for %.0f s: it failed again", job.kind, job.user_id, seconds)
        except ArchibaldError as failure:
            logger.warning("a breaker of %s could not be moved: %s", job.user_id, failure)
        if isinstance(error, UnreachableError | LoginRefusedError):
            return Outcome.gone_back(outcome.error)
        return outcome
