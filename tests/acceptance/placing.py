"""Orders that are placed in the example ERP, which can have an order twice, by workers that are killed again and again."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from archibald_pgq.examples.erp.faults import Faults, Saved
from archibald_pgq.examples.erp.site import Site, serving

from archibald_pgq import NewJob
from tests.acceptance.faults import Scene
from tests.erp import FAST

APPS = {True: "archibald_pgq.examples.erp:app", False: "tests.acceptance.blind_app:app"}
"""By whether a step is looked up before it is repeated."""

ENDED = "SELECT count(*) FROM archibald.all_jobs WHERE state IN ('completed', 'failed', 'cancelled', 'needs_review')"
SAVING = "SELECT EXISTS (SELECT FROM archibald.checkpoints WHERE step = 'save' AND state = 'begun')"
STATES = "SELECT state, count(*) FROM archibald.all_jobs GROUP BY 1"


async def until_ended(faults: Scene, orders: int) -> None:
    """Wait for one order after the other: on a slow machine all of them together may take longer than patience lasts."""
    for number in range(await faults.look.value(ENDED) + 1, orders + 1):
        await faults.look.until(f"SELECT ({ENDED}) >= %s", number)


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
            await until_ended(faults, (number + 1) * orders // (kills + 2))
            if number == 0:  # once between an effect and its record for certain
                await faults.look.until(SAVING)
            else:
                await asyncio.sleep(dice.uniform(0.0, 0.7))  # anywhere in the steps that run now: that is the fault
            await faults.kill(worker)
        await faults.start("last", of=APPS[looks], **settings)
        await until_ended(faults, orders)
        await faults.stop_all()
        yield site
