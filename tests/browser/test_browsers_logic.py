"""Browsers that die, do not start, grow old, or are closed: on browsers that are only counted, in time that only passes."""

from __future__ import annotations

import asyncio

import pytest

from archibald_pgq.browser.host import LONGEST_PAUSE
from archibald_pgq.browser.pool import LOOK_EVERY
from archibald_pgq.errors import BrowserDiedError, BrowserError, BrowserSaturatedError
from tests.browser.stage import Stage, of
from tests.browser.virtual import ended, in_virtual_time, settle


@in_virtual_time
async def test_a_dead_browser_is_replaced_and_its_contexts_are_gone() -> None:
    async with Stage(browsers=2, contexts=2) as stage:
        kept, used = await stage.used("anna"), await stage.acquire("bob")
        await stage.acquire("carl")
        assert kept.browser is not of(used).browser
        stage.driver.launching.hold()
        kept.browser.die()
        of(used).browser.die()
        await settle()
        assert used.died
        assert stage.pool.capacity == 0
        assert stage.pool.statistics().contexts == stage.pool.statistics().browsers_alive == 0
        waiting = stage.acquiring("anna")
        await settle()
        assert not waiting.done()
        stage.driver.launching.let_go()
        assert (await waiting).context is not kept
        await settle()
        assert stage.pool.capacity == 4
        await used.release(keep=True)
        again = await stage.acquire("bob")
        assert again.context is not used.context
        assert not again.died
        statistics = stage.pool.statistics()
        assert (statistics.deaths, statistics.relaunches, statistics.browsers_alive) == (2, 2, 2)


@in_virtual_time
async def test_only_those_on_the_dead_browser_lose_their_contexts() -> None:
    async with Stage(browsers=2, contexts=1) as stage:
        first, second = await stage.acquire("anna"), await stage.acquire("bob")
        of(first).browser.die()
        assert (first.died, second.died) == (True, False)
        await settle()
        assert (first.died, second.died) == (True, False)


@in_virtual_time
async def test_a_lease_that_is_released_to_be_closed_has_not_died() -> None:
    async with Stage() as stage:
        lease = await stage.acquire("anna")
        await lease.release(keep=False)
        assert not lease.died


@in_virtual_time
async def test_a_context_whose_page_has_crashed_has_died_and_is_not_kept() -> None:
    async with Stage() as stage:
        lease = await stage.acquire("anna")
        of(lease).crashed = True
        assert lease.died
        await lease.release(keep=True)
        assert lease.died
        assert (await stage.acquire("anna")).context is not lease.context


@in_virtual_time
@pytest.mark.parametrize("step", ["opening", "login", "checking"])
async def test_who_prepares_a_context_while_its_browser_dies_is_told_so(step: str) -> None:
    async with Stage(contexts=1) as stage:
        if step == "checking":
            await stage.used("anna")
        gate = {"opening": stage.driver.opening, "login": stage.login, "checking": stage.checking}[step]
        gate.hold()
        anna = stage.acquiring("anna")
        await settle()
        stage.driver.browsers[0].die()
        gate.let_go()
        with pytest.raises(BrowserDiedError):
            await anna
        assert (await stage.acquire("anna")).user_id == "anna"
        assert stage.pool.statistics().contexts == 1


@in_virtual_time
async def test_a_browser_that_does_not_start_is_tried_again_with_a_growing_and_bounded_pause() -> None:
    async with Stage() as stage:
        stage.driver.broken = True
        stage.driver.browsers[0].die()
        await asyncio.sleep(300)
        pauses = [
            later - earlier
            for earlier, later in zip(stage.driver.attempts[1:], stage.driver.attempts[2:], strict=False)
        ]
        assert pauses[:6] == pytest.approx([0.5, 1, 2, 4, 8, 16])
        assert pauses[6:] == pytest.approx([LONGEST_PAUSE] * len(pauses[6:]))
        with pytest.raises(
            BrowserSaturatedError, match=r"no browser ran at the end of the 1 s for which anna .*: it does not start"
        ):
            await stage.acquire("anna", timeout=1)
        stage.driver.broken = False
        assert (await stage.acquire("anna", timeout=40)).user_id == "anna"
        assert stage.pool.statistics().failed_launches == len(stage.driver.attempts) - 2


@in_virtual_time
async def test_a_browser_that_dies_as_soon_as_it_runs_is_not_started_in_a_tight_loop() -> None:
    async with Stage() as stage:

        async def die() -> None:
            for _ in range(20):
                stage.driver.browsers[-1].die()
                launched = len(stage.driver.browsers)
                while len(stage.driver.browsers) == launched:  # noqa: ASYNC110  # time is virtual
                    await asyncio.sleep(0.1)

        await die()
        assert asyncio.get_running_loop().time() > 15 * LONGEST_PAUSE * 0.9
        await asyncio.sleep(120)  # it ran well
        stage.driver.browsers[-1].die()
        await settle()
        assert stage.pool.capacity == 2


@in_virtual_time
async def test_a_browser_that_does_not_start_at_first_is_an_error_and_nothing_stays() -> None:
    stage = Stage(browsers=3)
    stage.driver.broken = True
    with pytest.raises(BrowserError, match="it does not start"):
        await stage.pool.start()
    assert stage.driver.closed
    await asyncio.sleep(100)
    assert len(stage.driver.attempts) == 3


@in_virtual_time
async def test_shutdown_closes_all_also_under_those_who_use_them_and_relaunches_none() -> None:
    stage = Stage(browsers=2, contexts=1)
    await stage.pool.start()
    lease = await stage.acquire("anna")
    stage.login.hold()
    opening = stage.acquiring("bob")
    await settle()
    await stage.pool.close()
    stage.login.let_go()
    assert stage.driver.running == []
    assert stage.driver.closed
    assert all(browser.closed for browser in stage.driver.browsers)
    (error,) = await ended(opening)
    assert str(error) == "the browsers of this process are closed"
    await lease.release(keep=True)
    await stage.pool.close()
    await asyncio.sleep(500)
    assert len(stage.driver.attempts) == 2
    assert stage.pool.statistics().relaunches == stage.pool.statistics().deaths == 0


@in_virtual_time
async def test_shutdown_sends_away_at_once_who_waits_and_who_comes_afterwards() -> None:
    stage = Stage(browsers=1, contexts=2, login_budget=1)
    await stage.pool.start()
    await stage.acquire("anna")
    for_login, for_place = stage.acquiring("bob"), stage.acquiring("carl")
    await settle()
    assert (stage.pool.statistics().waiting, stage.pool.statistics().waiting_for_login) == (1, 1)
    began = asyncio.get_running_loop().time()
    await stage.pool.close()
    errors = await ended(for_login, for_place, stage.acquiring("dora"), stage.acquiring("anna"))
    assert [type(error) for error in errors] == [BrowserError] * 4
    assert {str(error) for error in errors} == {"the browsers of this process are closed"}
    assert asyncio.get_running_loop().time() == began


@in_virtual_time
async def test_shutdown_while_a_browser_is_being_started_again_starts_none() -> None:
    stage = Stage()
    await stage.pool.start()
    stage.driver.launching.hold()
    stage.driver.browsers[0].die()
    await settle()
    await stage.pool.close()
    stage.driver.launching.let_go()
    await asyncio.sleep(100)
    assert stage.driver.running == []


@in_virtual_time
async def test_intended_closes_start_nothing() -> None:
    async with Stage() as stage:
        await stage.used("anna", keep=False)
        await asyncio.sleep(100)
        assert len(stage.driver.attempts) == 1


@in_virtual_time
async def test_an_old_browser_is_started_anew_only_when_no_context_of_it_is_in_use() -> None:
    async with Stage(browsers=2, contexts=3, browser_age=3600.0) as stage:
        kept = await stage.used("anna")
        lease = await stage.acquire("bob")
        busy = of(lease).browser
        assert kept.browser is not busy
        await asyncio.sleep(3600 + 5 * LOOK_EVERY)
        assert kept.browser.closed
        assert not busy.closed
        fresh = [await stage.acquire(f"u{number}") for number in range(3)]
        assert busy not in [of(one).browser for one in fresh]  # it is to become idle
        await lease.release(keep=True)
        await settle()
        assert [browser.closed for browser in stage.driver.browsers] == [True, True, False, False]
        statistics = stage.pool.statistics()
        assert (statistics.recycled, statistics.relaunches, statistics.deaths) == (2, 2, 0)
        assert statistics.browsers_alive == 2
        assert not fresh[0].died


@in_virtual_time
async def test_no_browser_is_started_anew_while_another_one_is_down() -> None:
    async with Stage(browsers=2, browser_age=3600.0) as stage:
        await asyncio.sleep(3599)
        stage.driver.broken = True
        stage.driver.browsers[0].die()
        await asyncio.sleep(10 * LOOK_EVERY)
        assert stage.pool.statistics().recycled == 0
        assert stage.pool.capacity == 2


@in_virtual_time
async def test_a_browser_that_takes_too_much_memory_is_started_anew_when_idle() -> None:
    async with Stage(browsers=2, browser_memory=1000) as stage:
        stage.driver.browsers[0].bytes = 1000
        await asyncio.sleep(2 * LOOK_EVERY)
        assert stage.pool.statistics().recycled == 0
        stage.driver.browsers[0].bytes = 1001
        await asyncio.sleep(2 * LOOK_EVERY)
        assert [browser.closed for browser in stage.driver.browsers] == [True, False, False]
        assert stage.pool.statistics().recycled == 1


@in_virtual_time
async def test_browsers_that_are_due_are_started_anew_one_after_the_other() -> None:
    async with Stage(browsers=3, browser_age=100.0) as stage:
        stage.driver.launching.hold()
        await asyncio.sleep(100 + 3 * LOOK_EVERY)
        assert stage.pool.capacity == 4
        stage.driver.launching.let_go()
        await asyncio.sleep(100)
        assert stage.pool.capacity == 6
