"""What holds when the network between a worker and the server loses packets, in one direction or both: real kernels' TCP, no proxy."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from archibald_pgq.store import migrations
from tests.acceptance.conftest import Measured
from tests.acceptance.faults import Daemon, Scene, own_server, scene
from tests.acceptance.history import now
from tests.acceptance.namespaces import SERVER, Cable, cable, within

pytestmark = pytest.mark.long  # run by `make faults`

LEASE = 2.0
SHORT: dict[str, Any] = {"ARCHIBALD_LEASE": LEASE}
# Nothing is preloaded; named, it makes of a worker a new process instead of the fork of one in this host's network.
ANEW = {"LD_PRELOAD": ""}


@pytest.fixture
async def wired() -> AsyncIterator[tuple[Cable, Scene]]:
    with cable() as laid, own_server(listen_addresses=SERVER) as server:
        server.allow_tcp()
        with within(laid.server):
            await server.start()
        migrations.upgrade(server.dsn)
        async with scene(server.dsn) as faults:
            yield laid, faults


async def far(laid: Cable, faults: Scene) -> Daemon:
    """A worker at the other end of the cable."""
    url = f"postgresql://archibald@{SERVER}/archibald?sslmode=disable&gssencmode=disable"
    with within(laid.worker):
        worker = faults.spawn("far", "app", url, {**SHORT, **ANEW})
    return await faults.registered(worker)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("to_server", "to_worker"),
    [(True, False), (False, True), (True, True)],
    ids=["worker to server", "server to worker", "both"],
)
async def test_when_the_network_loses_everything_in_a_direction_the_agents_go_on_elsewhere(
    wired: tuple[Cable, Scene], measured: Measured, to_server: bool, to_worker: bool
) -> None:
    laid, faults = wired
    worker = await far(laid, faults)
    held = [await faults.enqueue("fault-read", f"user-{n}") for n in range(3)]
    await faults.until_started(*held)
    heir = await faults.start("near", **SHORT)
    await faults.until_trusted(heir, LEASE)
    await faults.lose_witness(worker)
    laid.cut(to_server=to_server, to_worker=to_worker)
    cut = now()
    await faults.until_started(*held, times=2)
    way = " and ".join(name for name, lost in (("to server", to_server), ("to worker", to_worker)) if lost)
    measured(
        f"loss {way}, lease {LEASE:g} s: handlers ended", max(faults.events("end", job)[0].at for job in held) - cut
    )
    measured(
        f"loss {way}, lease {LEASE:g} s: started elsewhere",
        max(faults.events("start", job)[1].at for job in held) - cut,
    )
    laid.mend()
    await faults.until_anew(worker)
    faults.open()
    await faults.until_ended()
    # Whose words still arrive may give its jobs back itself once its handlers have ended, before it is fenced: no loss of theirs.
    losses = {1} if to_server else {0, 1}
    for job in held:
        state, lost = await faults.look.job(job, "state", "losses")
        assert (state, lost in losses) == ("completed", True)
    await faults.stop_all()
    await faults.check()


@pytest.mark.long
async def test_with_a_fifth_of_all_packets_lost_jobs_go_on_and_nothing_is_lost(
    wired: tuple[Cable, Scene], measured: Measured
) -> None:
    laid, faults = wired
    await far(laid, faults)
    await faults.start("near", **SHORT)
    laid.cut(to_server=True, to_worker=True, loss=0.2)
    over = now() + 10
    jobs = 0
    while now() < over:
        await faults.enqueue("fault-idempotent", f"user-{jobs % 20}", "short", seconds=0.05)
        jobs += 1
        await asyncio.sleep(0.02)  # the load, not a wait
    measured(
        "20 % loss both ways for 10 s: seconds a job",
        10 / await faults.look.value("SELECT count(*) FROM archibald.job_history"),
    )
    laid.mend()
    await faults.until_ended()
    assert await faults.look.rows("SELECT DISTINCT state FROM archibald.all_jobs") == [("completed",)]
    await faults.stop_all()
    await faults.check()
