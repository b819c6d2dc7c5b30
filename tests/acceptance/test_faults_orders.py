"""Workers that are killed again and again while they place orders in the example ERP, which can have an order twice."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from archibald_pgq.examples.erp.faults import Faults, Saved
from archibald_pgq.examples.erp.site import Site, serving

from archibald_pgq import NewJob
from tests.acceptance.faults import Scene, scene
from tests.chromium import needs_chromium
from tests.erp import FAST

APPS = {True: "archibald_pgq.examples.erp:app", False: "tests.acceptance.blind_app:app"}
ENDED = (
    "SELECT count(*) >= %s FROM archibald.all_jobs WHERE state IN ('completed', 'failed', 'cancelled', 'needs_review')"
)
STATES = "SELECT state, count(*) FROM archibald.all_jobs GROUP BY 1"


@pytest.fixture
async def faults(database: str) -> AsyncIterator[Scene]:
    async with scene(database) as made:
        yield made


@asynccontextmanager
async def placed(
    faults: Scene, orders: int, kills: int, *, looks: bool, browser: bool, seed: int
) -> AsyncIterator[Site]:
    """Have `orders` placed by workers of which so many are killed; the ERP answers half a second after it has saved."""
    dice = random.Random(seed)
    site = Site(FAST, unique_numbers=False)
    site.faults = Faults(saved=[Saved(seconds=0.5)])
    async with serving(site) as url:
        settings = {
            "ERP_URL": url,
            "ERP_BROWSER": int(browser),
            "ARCHIBALD_MAX_LOSSES": 100,
            "ARCHIBALD_LOGIN_BUDGET": 10_000,
        }
        await faults.app.enqueue_many(
            [NewJob("submit-order", user_id=f"user-{n % 20}", data={"reference": f"R-{n}"}) for n in range(orders)]
        )
        for number in range(kills):
            worker = await faults.start(f"worker-{number}", of=APPS[looks], **settings)
            await faults.look.until(ENDED, (number + 1) * orders // (kills + 2))
            await asyncio.sleep(dice.uniform(0.0, 0.7))  # anywhere in the steps that run now: that is the fault
            await faults.kill(worker)
        await faults.start("last", of=APPS[looks], **settings)
        await faults.look.until(ENDED, orders)
        await faults.stop_all()
        yield site


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ("browser", "orders", "kills"),
    [(False, 40, 4), pytest.param(True, 60, 6, marks=[pytest.mark.long, needs_chromium])],
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
    [(False, 40, 4), pytest.param(True, 60, 6, marks=[pytest.mark.long, needs_chromium])],
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
