"""What a worker does for jobs that drive a browser: a context of their agent before the handler starts, and away with it behind it.

Owns: the worker's pool of contexts, and what a failed run last saw. Guarantees: a context is back, or closed, before the outcome of its job
is written, so that the agent's next job meets nobody in it; a job whose browser died has not failed by itself. Must not: choose among
browsers or contexts (`archibald_pgq.browser` does).
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections import Counter
from typing import TYPE_CHECKING

from archibald_pgq.config import Settings
from archibald_pgq.domain.job import ClaimedJob
from archibald_pgq.domain.operations import JobClass
from archibald_pgq.domain.outcome import Outcome
from archibald_pgq.domain.states import Event
from archibald_pgq.errors import ArchibaldError, BrowserError, LoginError, UnreachableError
from archibald_pgq.runtime.context import JobContext
from archibald_pgq.runtime.registry import Registry
from archibald_pgq.runtime.tab import Tab
from archibald_pgq.store import evidence
from archibald_pgq.store.request import Ask

if TYPE_CHECKING:
    from playwright.async_api import BrowserContext, Page

    from archibald_pgq.browser import PoolSettings

logger = logging.getLogger(__name__)

WAIT = 60.0
"""Seconds that a job waits for a context before it goes back to its place; with the margin that is checked at the start none waits."""

TELLING = frozenset({Event.FAIL, Event.RETRY, Event.REVIEW})
"""Outcomes of which it is kept what the page showed."""


def prepare(registry: Registry, settings: Settings, ask: Ask) -> Browsers:
    """Return a worker's browsers, not started yet.

    Raises:
        ConfigError: Playwright or Chromium is missing, or with one browser down there would be fewer contexts than consumers.
    """
    from archibald_pgq.browser import PoolSettings, check_margin, require_playwright  # no other worker needs them

    require_playwright()
    check_margin(settings.worker_concurrency, settings.browsers, settings.browser_contexts)
    chosen = PoolSettings(
        browsers=settings.browsers,
        contexts=settings.browser_contexts,
        chromium=settings.chromium,
        login_budget=settings.login_budget,
    )
    return Browsers(chosen, registry, ask, trace=settings.browser_trace, most_deaths=settings.max_losses)


class Browsers:
    """The browsers of one worker process."""

    def __init__(self, settings: PoolSettings, registry: Registry, ask: Ask, *, trace: bool, most_deaths: int) -> None:
        """Prepare; `most_deaths`: a job whose browser died so often fails."""
        from archibald_pgq.browser import BrowserPool

        self._login, self._ask, self.trace, self._most_deaths = registry.login, ask, trace, most_deaths
        self._pool = BrowserPool(
            settings, login=self._log_in, valid=registry.valid or (None if self._login else _always)
        )
        self.seen: str | None = None
        """What they did when somebody looked last, as JSON: `PoolStatistics`."""
        self._asking: dict[str, JobContext] = {}
        """Of each agent the run that wants its context now."""
        self._deaths: Counter[int] = Counter()
        """Of each job how often its browser died under it, in this process."""

    async def __aenter__(self) -> Browsers:
        """Start them."""
        await self._pool.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close them all."""
        await self._pool.close()

    @property
    def capacity(self) -> int:
        """The contexts that can be had now: fewer while a browser is down."""
        return self._pool.capacity

    def look(self) -> None:
        """See what they are doing; in the event loop only."""
        self.seen = json.dumps(dataclasses.asdict(self._pool.statistics()))

    async def open(self, job: ClaimedJob, ctx: JobContext) -> Tab:
        """Return a context of the job's agent, logged in.

        Raises:
            BrowserError: there is none to be had. UnreachableError, LoginRefusedError: from the app's login.
        """
        self._asking[job.user_id] = ctx
        try:
            lease = await self._pool.acquire(job.user_id, urgent=job.policy.job_class is JobClass.WRITE, timeout=WAIT)
        finally:
            self._asking.pop(job.user_id, None)
        tab = Tab(lease, job)
        if self.trace:
            try:
                await tab.begin_trace()
            except BaseException:
                await lease.release(keep=False)
                raise
        return tab

    async def _log_in(self, user_id: str, page: Page) -> None:
        from playwright.async_api import Error as PlaywrightError

        if self._login is None:
            return
        try:
            await self._login(self._asking[user_id], page)
        except PlaywrightError as error:  # a page that does not come, or not in time: so far nothing was done there
            raise UnreachableError(f"the login of {user_id} met {_first_line(error)}") from error

    async def after(
        self, tab: Tab | None, job: ClaimedJob, outcome: Outcome, error: BaseException | None, *, forced: bool
    ) -> Outcome:
        """Take a run's context back, and return what the run comes to; `forced`: its handler was cancelled to make room."""
        if tab is None:  # it got none, and that is no fault of the job's
            own = isinstance(error, LoginError) or not isinstance(error, BrowserError)
            spared = not own and outcome.event in TELLING
            return Outcome.gone_back(outcome.error) if spared else outcome
        died = tab.lease.died
        try:
            if outcome.event in TELLING and not died:
                await self._keep(tab)
            await tab.drop_trace()
        finally:
            keep = outcome.event is Event.COMPLETE or (outcome.event is Event.PREEMPT and not forced)
            await tab.lease.release(keep=keep and not died)
        return self._after_death(job, outcome) if died and outcome.event in TELLING else outcome

    def _after_death(self, job: ClaimedJob, outcome: Outcome) -> Outcome:
        if not job.policy.repeatable:
            return Outcome.needs_review(f"its browser died: {outcome.error}")
        self._deaths[job.job_id] += 1
        if self._deaths[job.job_id] >= self._most_deaths:
            return Outcome.failed(f"its browser died {self._deaths.pop(job.job_id)} times: {outcome.error}")
        return Outcome.gone_back(f"its browser died: {outcome.error}")

    async def _keep(self, tab: Tab) -> None:
        url, screenshot, trace = await tab.look()
        try:
            await self._ask(evidence.keep(tab.job.job_id, tab.job.attempt, url, screenshot, trace))
        except ArchibaldError as error:
            logger.warning("what job %d last saw could not be kept: %s", tab.job.job_id, error)


def _always(_context: BrowserContext) -> bool:
    """Where an app has no login there is no session to look for."""
    return True


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
