"""The waits and the words of a part of a worker whose connection is lost."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from pathlib import Path
from typing import cast

import psycopg
import pytest

from archibald_pgq.runtime.heartbeat import Heartbeat
from archibald_pgq.runtime.maintenance import Maintenance
from archibald_pgq.runtime.reconnect import Outage


def test_the_pauses_double_up_to_their_bound_and_no_two_are_alike() -> None:
    means = [0.05, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0, 1.0]
    outages = [[outage.goes_on(psycopg.OperationalError("gone")) for _ in means] for outage in (_outage(), _outage())]
    for pauses in outages:
        assert all(0.5 * mean <= pause <= 1.5 * mean for pause, mean in zip(pauses, means, strict=True))
    assert outages[0] != outages[1]


def test_after_an_outage_the_first_pause_is_short_again() -> None:
    outage = _outage()
    for _ in range(8):
        outage.goes_on(psycopg.OperationalError("gone"))
    outage.is_over()
    assert outage.goes_on(psycopg.OperationalError("gone")) <= 0.075


def test_an_outage_is_told_once_and_its_end_is(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    outage = _outage()
    outage.is_over()
    for _ in range(2):
        for _ in range(3):
            outage.goes_on(psycopg.OperationalError("server closed the connection\n\tit is down"))
        outage.is_over()
        outage.is_over()
    lost = "the post lost its connection (server closed the connection) and reconnects"
    assert caplog.messages == [lost, "the post is connected again after 0.0 s"] * 2


def _outage() -> Outage:
    return Outage("the post", longest=1.0)


async def test_upkeep_that_is_asked_while_its_server_is_away_does_not_keep_the_event_loop(tmp_path: Path) -> None:
    """A missing socket refuses at once, without a turn of the loop: an attempt after the other would stop handlers and signals."""

    class Beat:
        interval, trusted = 0.05, False

    missing = f"host={tmp_path} dbname=none"
    upkeep = Maintenance(
        missing,
        1,
        cast("Heartbeat", Beat()),
        3,
        cancel=lambda _: None,
        preempt=lambda _: None,
        failing=lambda _: None,
        not_served=lambda: None,
    )
    upkeep.look_for_requests()
    task = asyncio.create_task(upkeep.run())
    for _ in range(20):
        await asyncio.sleep(0.01)  # never comes back if the loop is kept
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert task.cancelled()
