"""The rules of the pool, with browsers in memory: the pool's own code runs, only Chromium does not."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest

from archibald_pgq.browser import BrowserPool, Lease, PoolSettings, check_margin
from archibald_pgq.browser import seat as seats
from archibald_pgq.browser.budget import LoginBudget
from archibald_pgq.browser.session import session_lives
from archibald_pgq.browser.slots import Slots
from archibald_pgq.errors import BrowserDiedError, BrowserError, BrowserSaturatedError, ConfigError
from tests.browser.memory import MemoryDriver
from tests.support import PATIENCE


class Clock:
    """Time that stands still until a test moves it; seconds."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Scene:
    """A pool, and what happens around it."""

    def __init__(self, browsers: int, contexts: int, **settings: Any) -> None:
        self.driver, self.clock = MemoryDriver(), Clock()
        self.logins: list[str] = []
        self.valid = True
        self.checking: asyncio.Event | None = None
        """Set: the check of a session waits for it."""
        self.checked = asyncio.Event()
        self.pool = BrowserPool(
            PoolSettings(browsers, contexts, login_budget=10_000, **settings),
            valid=self._check,
            driver=self.driver,
            clock=self.clock,
        )

    async def _check(self, _context: Any) -> bool:
        self.checked.set()
        if self.checking is not None:
            await self.checking.wait()
        return self.valid

    async def acquire(self, user: str, *, urgent: bool = False, patience: float = PATIENCE) -> Lease:
        async def login(_page: Any) -> None:
            self.logins.append(user)

        return await self.pool.acquire(user, urgent=urgent, patience=patience, login=login)

    async def used(self, user: str, *, keep: bool = True) -> Any:
        """Use a context for a moment, and return it."""
        lease = await self.acquire(user)
        await lease.release(keep=keep)
        self.clock.now += 1
        return lease.context

    def waits(self, user: str, *, urgent: bool = False) -> asyncio.Task[Lease]:
        return asyncio.create_task(self.acquire(user, urgent=urgent))


@pytest.fixture
async def scene(request: pytest.FixtureRequest) -> AsyncIterator[Scene]:
    """A pool of the size that a test names: browsers, contexts of each."""
    made = Scene(*request.param)
    await made.pool.start()
    yield made
    await made.pool.close()
    assert made.driver.running() == []


def sized(browsers: int, contexts: int) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("scene", [(browsers, contexts)], indirect=True)


async def until(scene: Scene, waiting: int) -> None:
    async with asyncio.timeout(PATIENCE):
        while scene.pool.statistics().waiting != waiting:  # noqa: ASYNC110  # the tasks get on at each turn of the loop
            await asyncio.sleep(0)


# -- reuse


@sized(1, 2)
async def test_a_context_is_used_again_for_the_same_agent_and_for_no_other(scene: Scene) -> None:
    first = await scene.used("alice")
    assert await scene.used("alice") is first
    assert await scene.used("bob") is not first
    assert scene.logins == ["alice", "bob"]


@sized(1, 2)
async def test_a_context_is_kept_after_a_success_and_closed_after_a_failure(scene: Scene) -> None:
    first = await scene.used("alice", keep=False)
    assert first.closed
    assert await scene.used("alice") is not first
    assert scene.pool.statistics().closed_after_failure == 1


@sized(1, 2)
async def test_a_context_that_is_too_old_logs_in_again(scene: Scene) -> None:
    first = await scene.used("alice")
    scene.clock.now += 1800
    assert await scene.used("alice") is not first
    assert first.closed
    assert scene.logins == ["alice"] * 2


@sized(1, 2)
async def test_a_context_whose_session_is_over_logs_in_again(scene: Scene) -> None:
    first = await scene.used("alice")
    scene.valid = False
    assert await scene.used("alice") is not first
    assert first.closed
    assert scene.logins == ["alice"] * 2


@pytest.mark.parametrize(
    ("cookies", "lives"),
    [
        ([], False),
        ([("theme", -1)], False),
        ([("ASP.NET_SessionId", -1)], True),
        ([("ASP.NET_SessionId", 101), ("theme", 50)], True),
        ([("ASP.NET_SessionId", -1), (".ASPXAUTH", 99)], False),
        ([(".AspNetCore.Cookies", 101)], True),
    ],
)
def test_a_session_lives_while_it_has_its_cookies_and_none_of_them_has_expired(
    cookies: list[tuple[str, float]], lives: bool
) -> None:
    assert session_lives([{"name": name, "expires": expires} for name, expires in cookies], now=100.0) is lives


@sized(1, 1)
async def test_pages_that_a_job_left_open_are_closed_and_one_that_it_closed_is_opened(scene: Scene) -> None:
    lease = await scene.acquire("alice")
    other: Any = await lease.context.new_page()
    await lease.release(keep=True)
    assert other.closed
    lease = await scene.acquire("alice")
    await lease.page.close()
    await lease.release(keep=True)
    lease = await scene.acquire("alice")
    assert not lease.page.is_closed()
    await lease.release(keep=True)


# -- room


@sized(3, 5)
async def test_a_new_context_goes_to_the_browser_with_the_fewest(scene: Scene) -> None:
    leases = [await scene.acquire(f"user-{n}") for n in range(7)]
    assert sorted(browser.open for browser in scene.driver.running()) == [2, 2, 3]
    for lease in leases:
        await lease.release(keep=True)


@sized(1, 3)
async def test_the_least_recently_used_context_makes_room_and_never_one_in_use(scene: Scene) -> None:
    held = await scene.acquire("held")  # the oldest
    first, second = await scene.used("first"), await scene.used("second")
    await scene.used("first")
    await scene.used("new")
    assert second.closed
    assert not first.closed
    assert not held.context.closed  # type: ignore[attr-defined]  # in memory
    await held.release(keep=True)
    assert scene.pool.statistics().evictions == 1


@sized(1, 1)
async def test_while_all_are_in_use_others_wait_their_turn_and_urgent_ones_go_first(scene: Scene) -> None:
    lease = await scene.acquire("alice")
    waiting = [
        scene.waits("bob"),
        scene.waits("carol"),
        scene.waits("dan", urgent=True),
        scene.waits("erin", urgent=True),
    ]
    await until(scene, 4)
    order = []
    for _ in waiting:
        await lease.release(keep=True)
        done, _ = await asyncio.wait(
            [task for task in waiting if task not in order], return_when=asyncio.FIRST_COMPLETED
        )
        (task,) = done
        order.append(task)
        lease = task.result()
    await lease.release(keep=True)
    assert order == [waiting[2], waiting[3], waiting[0], waiting[1]]


@sized(1, 2)
async def test_an_agent_whose_context_is_in_use_waits_and_lets_others_pass(scene: Scene) -> None:
    lease = await scene.acquire("alice")
    again = scene.waits("alice", urgent=True)
    await scene.used("bob")
    assert not again.done()
    await lease.release(keep=True)
    second = await again
    assert second.context is lease.context
    await second.release(keep=True)


@sized(1, 1)
async def test_who_waits_too_long_is_told_so_and_gets_nothing_later(scene: Scene) -> None:
    lease = await scene.acquire("alice")
    with pytest.raises(
        BrowserSaturatedError, match="no browser context was free for bob within 0 s: 1 of 1 are in use"
    ):
        await scene.acquire("bob", patience=0)
    await lease.release(keep=True)
    await scene.used("dan")
    assert scene.logins == ["alice", "dan"]
    assert scene.pool.statistics().in_use == 0
    assert scene.pool.statistics().saturations == 1


async def test_who_gives_up_at_the_moment_of_the_grant_leaves_the_place_to_the_next() -> None:
    slots = Slots(1)
    await slots.take("alice", urgent=False, patience=PATIENCE)
    gives_up = asyncio.create_task(slots.take("bob", urgent=True, patience=PATIENCE))
    waits = asyncio.create_task(slots.take("carol", urgent=False, patience=PATIENCE))
    await asyncio.sleep(0)
    slots.free("alice")
    assert slots.taken == {"bob"}
    gives_up.cancel()
    await waits
    assert gives_up.cancelled()
    assert slots.taken == {"carol"}


@sized(1, 1)
async def test_a_context_is_in_use_before_its_session_is_checked(scene: Scene) -> None:
    first = await scene.used("alice")
    scene.checking = asyncio.Event()
    checks = scene.waits("alice")
    await scene.checked.wait()
    other = scene.waits("bob")
    await until(scene, 1)
    assert not first.closed  # bob would have evicted it
    scene.checking.set()
    lease = await checks
    assert lease.context is first
    await lease.release(keep=True)
    await (await other).release(keep=True)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("deaths", [0.0, 0.02])
@sized(2, 3)
async def test_many_at_once_never_exceed_what_there_may_be(
    scene: Scene, seed: int, deaths: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seats, "FIRST_PAUSE", 0.0)
    dice = random.Random(seed)
    users: Counter[str] = Counter()

    async def work(user: str) -> None:
        for _ in range(20):
            try:
                lease = await scene.acquire(user, urgent=dice.random() < 0.3)
            except (BrowserDiedError, ConnectionError):
                assert deaths
                continue
            users[user] += 1
            assert users[user] == 1
            for _ in range(dice.randrange(4)):
                await asyncio.sleep(0)
            if dice.random() < deaths:
                dice.choice(scene.driver.running()).die()
            assert lease.died or not lease.context.closed  # type: ignore[attr-defined]  # in memory
            users[user] -= 1
            await lease.release(keep=dice.random() < 0.8)

    await asyncio.gather(*(work(f"user-{dice.randrange(12)}") for _ in range(40)))
    assert scene.driver.most_open <= 6
    assert scene.driver.most_in_one <= 3
    found = scene.pool.statistics()
    assert (found.in_use, found.waiting) == (0, 0)
    assert found.contexts == sum(browser.open for browser in scene.driver.running())
    assert found.contexts == sum(seat.contexts for seat in scene.pool._seats)


@sized(1, 1)
async def test_a_login_that_fails_leaves_no_context_and_no_place_taken(scene: Scene) -> None:
    async def refused(_page: Any) -> None:
        raise PermissionError("wrong password")

    with pytest.raises(PermissionError):
        await scene.pool.acquire("alice", urgent=False, patience=1, login=refused)
    assert scene.driver.running()[0].open == 0
    await scene.used("bob")


@sized(1, 1)
async def test_a_context_is_given_back_though_its_caller_is_cancelled(scene: Scene) -> None:
    lease = await scene.acquire("alice")
    giving = asyncio.create_task(lease.release(keep=False))
    await asyncio.sleep(0)
    giving.cancel()
    await asyncio.gather(giving, return_exceptions=True)
    await scene.used("bob")
    await lease.release(keep=True)  # a second time: nothing
    assert scene.pool.statistics().in_use == 0


# -- browsers


@sized(2, 1)
async def test_a_browser_that_died_takes_its_contexts_along_and_is_started_anew(scene: Scene) -> None:
    one, other = await scene.acquire("alice"), await scene.acquire("bob")
    assert scene.pool.capacity == 2
    scene.driver.launched[0].die()
    assert one.died
    assert not other.died
    assert scene.pool.capacity == 1
    await one.release(keep=True)
    async with asyncio.timeout(PATIENCE):
        while scene.pool.capacity < 2:  # noqa: ASYNC110  # it is started in a task of its own
            await asyncio.sleep(0)
    again = await scene.acquire("alice")
    assert again.context is not one.context
    await again.release(keep=True)
    await other.release(keep=True)
    found = scene.pool.statistics()
    assert (found.deaths, found.launches, found.browsers, found.in_use) == (1, 3, 2, 0)


@sized(1, 1)
async def test_a_browser_that_does_not_start_again_is_tried_again_and_who_waits_gets_it(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seats, "FIRST_PAUSE", 0.0)
    scene.driver.refuses = 3
    scene.driver.launched[0].die()
    assert scene.pool.capacity == 0
    await scene.used("alice")
    assert scene.pool.capacity == 1


@sized(1, 1)
async def test_a_browser_that_dies_during_a_login_is_what_the_job_is_told(scene: Scene) -> None:
    async def login(_page: Any) -> None:
        scene.driver.launched[0].die()
        raise ConnectionError("target closed")

    with pytest.raises(BrowserDiedError, match="the browser of alice ended"):
        await scene.pool.acquire("alice", urgent=False, patience=PATIENCE, login=login)
    await scene.used("alice")


@sized(2, 2)
async def test_the_close_of_the_pool_ends_all_browsers_and_starts_none(scene: Scene) -> None:
    leases = [await scene.acquire(f"user-{n}") for n in range(3)]
    await scene.pool.close()
    for lease in leases:
        await lease.release(keep=True)
    assert scene.driver.running() == []
    assert len(scene.driver.launched) == 2
    assert not scene.driver.started
    with pytest.raises(BrowserError, match="are closed"):
        await scene.acquire("late")


async def test_a_first_browser_that_does_not_start_is_an_error_of_the_start() -> None:
    made = Scene(2, 2)
    made.driver.refuses = 1
    with pytest.raises(BrowserError, match="it does not start"):
        await made.pool.start()
    assert made.driver.running() == []
    assert not made.driver.started


@pytest.mark.parametrize("why", ["age", "memory"])
@sized(1, 2)
async def test_an_old_or_large_browser_is_started_anew_when_nobody_uses_it(scene: Scene, why: str) -> None:
    held = await scene.acquire("alice")
    if why == "age":
        scene.clock.now += 4 * 3600
    else:
        scene.driver.launched[0].bytes = 1024**3
    await scene.used("bob")
    assert len(scene.driver.running()) == 1  # alice is in it
    await held.release(keep=True)
    assert scene.driver.running() == []
    await scene.used("alice")
    found = scene.pool.statistics()
    assert (found.recycled, found.deaths, found.launches) == (1, 0, 2)


# -- bounds


async def test_no_more_logins_begin_within_a_minute_than_the_budget_allows() -> None:
    clock = Clock()
    budget = LoginBudget(2, clock)
    await budget.spend()
    clock.now += 10
    await budget.spend()
    assert budget.left() == 50
    clock.now += 50
    assert budget.left() == 0
    await budget.spend()
    assert budget.left() == 10


@sized(1, 2)
async def test_a_login_waits_for_the_budget(scene: Scene) -> None:
    scene.pool._budget = LoginBudget(1, scene.clock)
    await scene.used("alice")
    waits = scene.waits("bob")
    for _ in range(20):
        await asyncio.sleep(0)
    assert scene.logins == ["alice"]
    waits.cancel()
    await asyncio.gather(waits, return_exceptions=True)
    assert scene.pool.statistics().in_use == 0


@pytest.mark.parametrize(
    ("concurrency", "browsers", "contexts", "enough"),
    [(10, 3, 5, True), (11, 3, 5, False), (4, 1, 5, True), (5, 1, 5, False), (5, 2, 5, True), (1, 1, 1, False)],
)
def test_with_one_browser_down_there_must_be_a_context_for_each_consumer(
    concurrency: int, browsers: int, contexts: int, enough: bool
) -> None:
    if enough:
        check_margin(concurrency, browsers, contexts)
    else:
        with pytest.raises(
            ConfigError, match=rf"WORKER_CONCURRENCY is {concurrency}.*lower it, or raise ARCHIBALD_BROWSERS"
        ):
            check_margin(concurrency, browsers, contexts)


@sized(1, 2)
async def test_the_statistics_tell_what_there_is_and_what_was_done(scene: Scene) -> None:
    lease = await scene.acquire("alice")
    found = scene.pool.statistics()
    assert (found.browsers, found.capacity, found.contexts, found.in_use, found.waiting) == (1, 2, 1, 1, 0)
    await lease.release(keep=True)
    await scene.used("alice")
    found = scene.pool.statistics()
    assert (found.in_use, found.contexts, found.logins, found.reuses, found.launches) == (0, 1, 1, 1, 1)
