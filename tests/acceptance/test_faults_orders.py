"""Workers that are killed again and again while they place orders in the example ERP, which can have an order twice."""

from __future__ import annotations

import contextlib

import psutil
import pytest
from archibald_pgq.examples.erp.faults import Faults, Saved
from archibald_pgq.examples.erp.site import Site, serving

from archibald_pgq import NewJob
from tests.acceptance.faults import Scene
from tests.acceptance.placing import APPS, STATES, placed, until_ended
from tests.chromium import needs_chromium
from tests.erp import FAST


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ("browser", "orders", "kills"),
    [(False, 30, 3), pytest.param(True, 60, 6, marks=[pytest.mark.long, needs_chromium])],
)
async def test_whoever_is_killed_each_order_is_placed_exactly_once(
    faults: Scene, browser: bool, orders: int, kills: int
) -> None:
    async with placed(faults, orders, kills, looks=True, browser=browser, seed=1) as site:
        assert await faults.look.rows(STATES) == [("completed", orders)]
        stats = site.ledger.stats()
    assert (stats["orders"], stats["orders_twice"], stats["simultaneous"]) == (orders, 0, 0)


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ("browser", "orders", "kills"),
    [(False, 30, 3), pytest.param(True, 60, 6, marks=[pytest.mark.long, needs_chromium])],
)
async def test_where_nothing_can_be_looked_up_no_order_is_placed_twice_and_a_person_is_asked(
    faults: Scene, browser: bool, orders: int, kills: int
) -> None:
    async with placed(faults, orders, kills, looks=False, browser=browser, seed=2) as site:
        states = dict(await faults.look.rows(STATES))
        stats = site.ledger.stats()
    assert states.keys() == {"completed", "needs_review"}  # some were cut off between the save and its record
    assert sum(states.values()) == orders
    assert states["completed"] <= stats["orders"] <= orders
    assert (stats["orders_twice"], stats["simultaneous"]) == (0, 0)


async def test_while_the_erp_is_down_agents_are_paused_nothing_fails_and_all_ends_afterwards(faults: Scene) -> None:
    """The pauses of minutes are ended by hand: what they are is held by `test_breakers`."""
    site = Site(FAST, unique_numbers=False)
    async with serving(site) as url:
        site.faults = Faults(down="silent")
        await faults.app.enqueue_many(
            [NewJob("submit-order", user_id=f"user-{n % 5}", data={"reference": f"R-{n}"}) for n in range(20)]
        )
        await faults.start("worker", of=APPS[True], ERP_URL=url, ERP_BROWSER=0)
        await faults.look.until(
            "SELECT count(*) = 5 FROM archibald.agents WHERE state = 'idle' AND paused_reason LIKE 'breaker: 3 failures%'"
        )
        assert await faults.look.rows(STATES) == [("queued", 20)]
        site.faults = Faults()
        await faults.look.rows("UPDATE archibald.agents SET paused_until = clock_timestamp()")
        await until_ended(faults, 20)
        await faults.stop_all()
    assert await faults.look.rows("SELECT state, attempt, count(*) FROM archibald.job_history GROUP BY 1, 2") == [
        ("completed", 1, 20)
    ]
    assert await faults.look.rows("SELECT user_id FROM archibald.breakers") == []
    assert (site.ledger.stats()["orders"], site.ledger.stats()["orders_twice"]) == (20, 0)


@needs_chromium
async def test_browsers_that_are_killed_under_five_running_jobs_cost_no_order(faults: Scene) -> None:
    site = Site(FAST, unique_numbers=False)
    site.faults = Faults(saved=[Saved(seconds=1.0)])
    async with serving(site) as url:
        settings = {"ERP_URL": url, "ERP_BROWSER": 1, "WORKER_CONCURRENCY": 5, "ARCHIBALD_BROWSERS": 2}
        await faults.app.enqueue_many(
            [NewJob("submit-order", user_id=f"user-{n}", data={"reference": f"R-{n}"}) for n in range(5)]
        )
        worker = await faults.start("worker", of=APPS[True], **settings)
        await faults.look.until(
            "SELECT count(*) = 5 FROM archibald.checkpoints WHERE step = 'save' AND state = 'begun'"
        )
        killed = 0
        for process in psutil.Process(worker.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):  # with the one before it
                if "chrom" in process.name():
                    process.kill()
                    killed += 1
        assert killed >= 2
        await until_ended(faults, 5)
        await faults.stop_all()
    assert await faults.look.rows(
        "SELECT state, attempt, losses, count(*) FROM archibald.job_history GROUP BY 1, 2, 3"
    ) == [("completed", 1, 0, 5)]
    assert (site.ledger.stats()["orders"], site.ledger.stats()["orders_twice"]) == (5, 0)
