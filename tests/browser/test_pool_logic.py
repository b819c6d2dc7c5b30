"""Who gets which context, who waits, and what is closed: the pool on browsers that are only counted, in time that only passes."""

from __future__ import annotations

import asyncio
import random

import pytest

from archibald_pgq.browser import BrowserPool, PoolSettings, PoolStatistics
from archibald_pgq.browser.budget import WINDOW
from archibald_pgq.errors import BrowserError, BrowserSaturatedError, LoginError
from tests.browser.stage import Stage, of
from tests.browser.virtual import ended, in_virtual_time, settle


@in_virtual_time
async def test_a_context_is_reused_for_the_same_agent_and_for_no_other() -> None:
    async with Stage() as stage:
        first = await stage.used("anna")
        other = await stage.used("bob")
        again = await stage.used("anna")
        assert again is first
        assert other is not first
        assert stage.logins == ["anna", "bob"]


@in_virtual_time
async def test_a_new_context_goes_to_the_browser_with_the_fewest() -> None:
    async with Stage(browsers=3, contexts=3) as stage:
        leases = [await stage.acquire(f"u{number}") for number in range(6)]
        assert [len(browser.contexts) for browser in stage.driver.browsers] == [2, 2, 2]
        for lease in leases:
            if of(lease).browser is stage.driver.browsers[1]:
                await lease.release(keep=False)
        await stage.acquire("late")
        await stage.acquire("later")
        assert [len(browser.contexts) for browser in stage.driver.browsers] == [2, 2, 2]


@in_virtual_time
async def test_a_context_is_kept_on_success_with_nothing_going_on_in_it_and_closed_on_failure() -> None:
    async with Stage() as stage:
        kept = await stage.used("anna", keep=True)
        assert not kept.closed
        assert kept.tidied == 1
        failed = await stage.used("bob", keep=False)
        assert failed.closed
        assert await stage.used("bob") is not failed
        assert stage.logins == ["anna", "bob", "bob"]


@in_virtual_time
async def test_a_context_that_cannot_be_tidied_is_not_kept() -> None:
    async with Stage() as stage:
        stage.driver.untidy = True
        assert (await stage.used("anna")).closed
        assert stage.pool.statistics().contexts == 0


@in_virtual_time
async def test_the_least_recently_used_makes_room_and_never_one_in_use() -> None:
    async with Stage(contexts=3) as stage:
        in_use = await stage.acquire("old")
        first = await stage.used("anna")
        second = await stage.used("bob")
        await stage.used("anna")
        await stage.acquire("carl")
        assert second.closed
        await stage.acquire("dora")
        assert first.closed
        assert not of(in_use).closed
        assert stage.pool.statistics().evictions == 2


@in_virtual_time
async def test_all_in_use_waits_first_come_first_served_and_urgent_ones_first() -> None:
    async with Stage(contexts=1) as stage:
        held = await stage.acquire("holder")
        order: list[str] = []

        async def work(user_id: str, urgent: bool) -> None:
            lease = await stage.acquire(user_id, urgent=urgent)
            order.append(user_id)
            await lease.release(keep=True)

        tasks = []
        for user_id, urgent in (("sync1", False), ("write1", True), ("sync2", False), ("write2", True)):
            tasks.append(asyncio.create_task(work(user_id, urgent)))
            await settle()
        assert order == []
        assert stage.pool.statistics().waiting == 4
        await held.release(keep=True)
        await ended(*tasks)
        assert order == ["write1", "write2", "sync1", "sync2"]


@in_virtual_time
async def test_a_second_lease_of_the_same_agent_waits_for_the_first_and_lets_others_pass() -> None:
    async with Stage() as stage:
        first = await stage.acquire("anna")
        second = stage.acquiring("anna", urgent=True)
        await settle()
        await stage.used("bob")
        assert not second.done()
        await first.release(keep=True)
        assert (await second).context is first.context


@in_virtual_time
async def test_the_second_lease_begins_only_after_the_first_context_is_closed() -> None:
    async with Stage() as stage:
        first = await stage.acquire("anna")
        second = stage.acquiring("anna")
        stage.driver.closing.hold()
        release = asyncio.create_task(first.release(keep=False))
        await settle()
        assert not second.done()
        assert stage.logins == ["anna"]
        stage.driver.closing.let_go()
        await release
        assert (await second).context is not first.context


@in_virtual_time
async def test_a_waiter_gets_a_saturation_error_in_time_and_never_a_context_afterwards() -> None:
    async with Stage(contexts=1) as stage:
        held = await stage.acquire("holder")
        began = asyncio.get_running_loop().time()
        late = stage.acquiring("late", timeout=30)
        with pytest.raises(BrowserSaturatedError, match=r"late within 30 s, all 1 are in use"):
            await late
        assert asyncio.get_running_loop().time() - began == pytest.approx(30, abs=0.1)
        await held.release(keep=True)
        await settle()
        assert stage.logins == ["holder"]
        statistics = stage.pool.statistics()
        assert (statistics.in_use, statistics.opening, statistics.idle, statistics.saturations) == (0, 0, 1, 1)


@in_virtual_time
async def test_who_waits_for_the_agents_own_context_is_told_so() -> None:
    async with Stage() as stage:
        await stage.acquire("anna")
        with pytest.raises(BrowserSaturatedError, match=r"^the browser context of anna was in use for 5 s$"):
            await stage.acquire("anna", timeout=5)


@in_virtual_time
@pytest.mark.parametrize("kept", [True, False])
async def test_a_context_given_to_who_gives_up_in_that_moment_goes_to_the_next(kept: bool) -> None:
    async with Stage(contexts=1) as stage:
        held = await stage.acquire("holder")
        unlucky, next_one = stage.acquiring("unlucky"), stage.acquiring("next")
        await settle()
        release = asyncio.create_task(held.release(kept))
        while stage.pool.statistics().waiting == 2:  # noqa: ASYNC110  # turn by turn of the loop
            await asyncio.sleep(0)
        unlucky.cancel()  # it has been given the place, and has not seen it
        await release
        assert (await next_one).user_id == "next"
        assert stage.logins == ["holder", "next"]
        assert unlucky.cancelled()
        await next_one.result().release(keep=False)
        assert stage.pool.statistics().contexts == 0


@in_virtual_time
async def test_a_kept_context_taken_for_who_gives_up_in_that_moment_stays_its_agents() -> None:
    async with Stage(contexts=1) as stage:
        held = await stage.acquire("holder")
        unlucky = stage.acquiring("unlucky")
        await settle()
        release = asyncio.create_task(held.release(keep=True))
        while stage.pool.statistics().waiting == 1:  # noqa: ASYNC110  # turn by turn of the loop
            await asyncio.sleep(0)
        unlucky.cancel()
        await ended(release, unlucky)
        assert (await stage.acquire("holder")).context is held.context
        assert stage.logins == ["holder"]


@in_virtual_time
async def test_a_context_is_in_use_before_its_session_is_checked() -> None:
    async with Stage(contexts=1) as stage:
        context = await stage.used("anna")
        stage.checking.hold()
        anna, bob = stage.acquiring("anna"), stage.acquiring("bob")
        await settle()
        assert stage.checking.waiting == 1
        assert not context.closed  # bob found no idle context to evict
        assert stage.pool.statistics().opening == 1
        stage.checking.let_go()
        assert (await anna).context is context
        assert not bob.done()
        bob.cancel()


@in_virtual_time
async def test_what_is_being_opened_and_closed_counts() -> None:
    async with Stage() as stage:
        stage.driver.opening.hold()
        tasks = [stage.acquiring(f"u{number}") for number in range(5)]
        await settle()
        assert stage.driver.opening.waiting == 2
        assert stage.pool.statistics().contexts == 2
        stage.driver.opening.let_go()
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        done = next(task for task in tasks if task.done())
        stage.driver.closing.hold()
        release = asyncio.create_task(done.result().release(keep=False))
        await settle()
        assert stage.pool.statistics().contexts == 2
        assert stage.driver.contexts == 2
        stage.driver.closing.let_go()
        await release
        for task in tasks:
            task.cancel()


@pytest.mark.parametrize("seed", range(12))
def test_concurrent_acquires_never_exceed_capacity_and_leave_nothing_behind(seed: int) -> None:
    @in_virtual_time
    async def play() -> None:
        chance = random.Random(seed)
        using: dict[str, int] = {}
        async with Stage(browsers=3, contexts=2, login_budget=400) as stage:

            async def work(user_id: str) -> None:
                await asyncio.sleep(chance.random() * 20)
                lease = await stage.acquire(user_id, urgent=chance.random() < 0.3, timeout=chance.random() * 9)
                using[user_id] = using.get(user_id, 0) + 1
                assert using[user_id] == 1
                try:
                    await asyncio.sleep(chance.random())
                    assert of(lease).user_id == user_id or lease.died
                finally:
                    using[user_id] -= 1
                    await lease.release(keep=chance.random() < 0.7)

            async def meddle(tasks: list[asyncio.Task[None]]) -> None:
                while not all(task.done() for task in tasks):
                    await asyncio.sleep(chance.random() * 0.5)
                    if chance.random() < 0.5:
                        chance.choice(tasks).cancel()
                    elif chance.random() < 0.2 and stage.driver.running:
                        chance.choice(stage.driver.running).die()
                    assert stage.driver.contexts <= stage.pool.statistics().contexts <= 6

            async def slowly() -> None:
                await asyncio.sleep(chance.random() * 0.3)

            for gate in (stage.login, stage.checking, stage.driver.opening, stage.driver.closing):
                gate.pass_through = slowly  # type: ignore[method-assign]
            tasks = [asyncio.create_task(work(f"u{chance.randrange(12)}")) for _ in range(200)]
            await meddle(tasks)
            errors = [error for error in await ended(*tasks) if isinstance(error, Exception)]
            assert [error for error in errors if not isinstance(error, BrowserError)] == []
            assert len(errors) < len(tasks)
            await asyncio.sleep(60)
            assert max(browser.most for browser in stage.driver.browsers) <= 2
            statistics = stage.pool.statistics()
            assert (statistics.in_use, statistics.opening, statistics.waiting) == (0, 0, 0)
            assert statistics.contexts == statistics.idle == stage.driver.contexts
            assert statistics.browsers_alive == 3
            assert statistics.reuses > 0

    play()


@in_virtual_time
async def test_an_acquire_that_is_cancelled_during_its_login_closes_the_context_before_anybody_else_has_the_place() -> (
    None
):
    async with Stage(contexts=1) as stage:
        stage.login.hold()
        cancelled, next_one = stage.acquiring("anna"), stage.acquiring("bob")
        await settle()
        stage.driver.closing.hold()
        cancelled.cancel()
        await settle()
        assert stage.logins == ["anna"]
        cancelled.cancel()  # once more does not cut the closing
        await settle()
        assert cancelled.cancelled()
        assert stage.driver.contexts == 1
        stage.driver.closing.let_go()
        stage.login.let_go()
        assert (await next_one).user_id == "bob"
        assert stage.driver.contexts == 1
        assert stage.driver.browsers[0].most == 1


@in_virtual_time
async def test_a_context_whose_opening_was_given_up_is_closed_once_it_is_open() -> None:
    async with Stage(contexts=1) as stage:
        stage.driver.opening.hold()
        cancelled = stage.acquiring("anna")
        await settle()
        cancelled.cancel()
        await settle()
        assert stage.pool.statistics().contexts == 1
        stage.driver.opening.let_go()
        await ended(cancelled)
        assert stage.driver.contexts == stage.pool.statistics().contexts == 0
        assert stage.logins == []


@in_virtual_time
async def test_a_context_that_makes_room_is_closed_to_the_end_though_who_it_makes_room_for_is_cancelled() -> None:
    async with Stage(contexts=1) as stage:
        await stage.used("anna")
        stage.driver.closing.hold()
        cancelled, next_one = stage.acquiring("bob"), stage.acquiring("carl")
        await settle()
        cancelled.cancel()
        await settle()
        assert stage.logins == ["anna"]
        stage.driver.closing.let_go()
        await next_one
        assert stage.driver.contexts == stage.driver.browsers[0].most == 1


@in_virtual_time
async def test_a_release_goes_to_its_end_though_its_caller_is_cancelled_and_is_done_once() -> None:
    async with Stage() as stage:
        lease = await stage.acquire("anna")
        stage.driver.closing.hold()
        release = asyncio.create_task(lease.release(keep=False))
        await settle()
        release.cancel()
        await settle()
        assert release.cancelled()
        stage.driver.closing.let_go()
        await lease.release(keep=True)
        assert of(lease).closed
        assert stage.driver.closing.passed == 1
        assert stage.pool.statistics().contexts == 0


@in_virtual_time
async def test_an_expired_context_logs_in_again_in_a_new_one() -> None:
    async with Stage(max_age=1800.0) as stage:
        first = await stage.used("anna")
        await asyncio.sleep(1799)
        assert await stage.used("anna") is first
        await asyncio.sleep(2)  # its age counts from its login, not from its last use
        assert await stage.used("anna") is not first
        assert first.closed
        assert stage.logins == ["anna", "anna"]
        assert stage.pool.statistics().expired == 1


@in_virtual_time
async def test_a_context_whose_session_is_over_logs_in_again_in_a_new_one() -> None:
    async with Stage() as stage:
        first = await stage.used("anna")
        first.valid = False
        second = await stage.used("anna")
        assert second is not first
        assert first.closed
        assert stage.pool.statistics().invalid == 1


@in_virtual_time
async def test_a_rule_may_be_no_coroutine() -> None:
    stage = Stage()
    pool = BrowserPool(PoolSettings(), login=stage._log_in, valid=lambda _: True, driver=stage.driver)
    async with pool:
        await (await pool.acquire("anna", False, 1)).release(keep=True)
        await (await pool.acquire("anna", False, 1)).release(keep=True)
        assert stage.logins == ["anna"]


@in_virtual_time
async def test_a_login_that_fails_closes_the_context_and_tells_only_the_first_line() -> None:
    async with Stage() as stage:
        stage.login_error = RuntimeError("Locator.fill: Timeout\nCall log:\n  - fill('secret')")
        with pytest.raises(
            LoginError, match=r"^the login of anna failed: RuntimeError: Locator.fill: Timeout$"
        ) as caught:
            await stage.acquire("anna")
        assert caught.value.__cause__ is stage.login_error
        stage.login_error = LoginError("the ERP refuses anna's password")
        with pytest.raises(LoginError, match=r"^the ERP refuses"):
            await stage.acquire("anna")
        assert stage.driver.contexts == stage.pool.statistics().contexts == 0
        assert stage.pool.statistics().failed_logins == 2


@in_virtual_time
async def test_a_login_that_leaves_no_valid_session_has_failed() -> None:
    stage = Stage()
    pool = BrowserPool(PoolSettings(), login=stage._log_in, valid=lambda _: False, driver=stage.driver)
    async with pool:
        with pytest.raises(LoginError, match="left no valid session"):
            await pool.acquire("anna", False, 1)
        assert stage.driver.contexts == 0


@in_virtual_time
async def test_no_more_logins_start_within_a_minute_than_the_budget_allows_and_the_others_wait() -> None:
    async with Stage(contexts=10, login_budget=3) as stage:
        loop = asyncio.get_running_loop()
        tasks = [stage.acquiring(f"sync{number}") for number in range(5)]
        await settle()
        tasks += [stage.acquiring(f"write{number}", urgent=True) for number in range(2)]
        await settle()
        assert stage.logins == ["sync0", "sync1", "sync2"]
        assert stage.pool.statistics().waiting_for_login == 4
        assert stage.driver.contexts == 3  # nothing is open while it waits
        began = loop.time()
        await asyncio.sleep(59)
        tasks.append(stage.acquiring("late"))
        await settle()
        assert len(stage.logins) == 3
        await asyncio.gather(*tasks)
        assert stage.logins[3:] == ["write0", "write1", "sync3", "sync4", "late"]
        assert loop.time() - began == pytest.approx(120, abs=1)


@in_virtual_time
async def test_who_waits_too_long_for_a_login_gets_a_saturation_error_and_costs_nothing() -> None:
    async with Stage(login_budget=1) as stage:
        lease = await stage.acquire("anna")
        with pytest.raises(
            BrowserSaturatedError, match=r"no login was left for bob within 10 s; ARCHIBALD_LOGIN_BUDGET allows 1"
        ):
            await stage.acquire("bob", timeout=10)
        assert stage.pool.statistics().contexts == 1
        await lease.release(keep=True)
        assert await stage.used("anna") is lease.context  # a reuse needs no login
        assert (await stage.acquire("carl", timeout=50.5)).user_id == "carl"


@in_virtual_time
async def test_a_login_given_to_who_gives_up_in_that_moment_goes_to_the_next() -> None:
    async with Stage(login_budget=1, contexts=3) as stage:
        loop = asyncio.get_running_loop()
        began = loop.time()
        await stage.used("anna")
        unlucky = stage.acquiring("unlucky")
        await settle()
        next_one = stage.acquiring("next")
        await settle()
        # Right behind the timer that gives it the login: within the resolution of the clock, so in the same turn of the loop.
        loop.call_at(began + WINDOW + 5e-10, unlucky.cancel)
        assert (await next_one).user_id == "next"
        assert unlucky.cancelled()
        assert stage.logins == ["anna", "next"]
        assert loop.time() < began + WINDOW + 1


@in_virtual_time
async def test_statistics_tell_what_there_is_and_what_was_done() -> None:
    async with Stage(browsers=2, contexts=1, login_budget=7) as stage:
        await stage.used("anna")
        await stage.used("anna")
        await stage.used("bob", keep=False)
        held = await stage.acquire("bob")
        await stage.acquire("carl")
        waiting = stage.acquiring("dora")
        await settle()
        assert stage.pool.statistics() == PoolStatistics(
            browsers=2,
            browsers_alive=2,
            capacity=2,
            contexts=2,
            in_use=2,
            opening=0,
            idle=0,
            waiting=1,
            waiting_for_login=0,
            logins=4,
            failed_logins=0,
            reuses=1,
            expired=0,
            invalid=0,
            evictions=1,
            closed_by_failure=1,
            saturations=0,
            deaths=0,
            relaunches=0,
            failed_launches=0,
            recycled=0,
        )
        waiting.cancel()
        await held.release(keep=True)
        assert stage.pool.statistics().idle == 1
