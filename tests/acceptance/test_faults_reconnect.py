"""Each part of a worker says once that its connection is lost, and once that it is back, however many attempts that took."""

from __future__ import annotations

import re
import signal

import pytest

from archibald_pgq.store import migrations
from tests.acceptance.faults import own_server, scene, until
from tests.support import looking

PARTS = ("the heartbeat", "the listener", "upkeep", "the dispatcher")


@pytest.mark.slow
async def test_over_a_server_that_is_away_each_part_says_once_that_it_reconnects_and_once_that_it_has() -> None:
    with own_server() as server:
        await server.start()
        migrations.upgrade(server.dsn)
        async with scene(server.dsn) as faults:
            worker = await faults.start("a")
            held = await faults.enqueue("fault-write", "alice")
            await faults.until_started(held)
            await server.stop(signal.SIGINT)
            await worker.until_logged("the dispatcher cannot reconnect yet", times=4)
            await until(lambda: all(f"{part} lost its connection" in worker.log.read_text() for part in PARTS))
            await server.start()
            await until(lambda: all(f"{part} is connected again" in worker.log.read_text() for part in PARTS))
            async with looking(server.dsn) as look:
                faults.look = look
                faults.open()
                await faults.until_ended()
                assert await look.job(held, "state", "attempt", "losses") == ("completed", 1, 0)
                await faults.stop_all()
                log = worker.log.read_text()
                for part in PARTS:
                    assert len(re.findall(rf"WARNING +{part} lost its connection .*reconnects", log)) == 1, log
                    assert len(re.findall(rf"INFO +{part} is connected again", log)) == 1, log
                await faults.check()
