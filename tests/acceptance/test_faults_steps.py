"""A worker that is killed at any line of a step: its effect happens once, or a person is asked."""

from __future__ import annotations

import pytest

from tests.acceptance.faults import Scene
from tests.acceptance.step_app import ORDERS, POINTS

APP = "tests.acceptance.step_app:app"

RESULTS = {
    "before begin_step": "placed",
    "after begin_step": "placed",
    "before the effect": "placed",
    "after the effect": "found",
    "before finish_step": "found",
    "after finish_step": "placed",
    "before the end": "placed",
}
UNKNOWN = POINTS[1:5]
"""Where it dies between the begin of the step and the record of its end."""


async def killed_in(faults: Scene, point: str, *, verify: bool) -> int:
    """Run a job whose worker is killed there, and start the next worker."""
    faults.app.operation("order", job_class="write", idempotent=True)(_never)
    job = await faults.app.enqueue("order", user_id="alice", data={"die": point, "verify": verify})
    assert await faults.died(await faults.start("first", of=APP)) == -9
    await faults.start("second", of=APP)
    return job.id


async def _never(*_: object) -> None:
    raise AssertionError("these jobs are run by other processes")


@pytest.mark.parametrize("point", POINTS)
async def test_with_a_look_an_effect_happens_exactly_once_wherever_the_worker_is_killed(
    faults: Scene, point: str
) -> None:
    job = await killed_in(faults, point, verify=True)
    await faults.look.until_state(job, "completed")
    assert await faults.look.job(job, "result", "losses") == (RESULTS[point], 1)
    assert (faults.folder / ORDERS).read_text().split() == [str(job)]


@pytest.mark.parametrize("point", POINTS)
async def test_without_a_look_an_effect_happens_at_most_once_and_a_person_is_asked_where_it_is_unknown(
    faults: Scene, point: str
) -> None:
    job = await killed_in(faults, point, verify=False)
    await faults.look.until_state(job, "needs_review" if point in UNKNOWN else "completed")
    orders = faults.folder / ORDERS
    assert len(orders.read_text().split() if orders.exists() else []) == int(
        point not in ("after begin_step", "before the effect")
    )
