"""Hears the database's notifications. They are only hints: nothing is lost when one is, or when this connection is."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable

import psycopg

from archibald_pgq.store.connect import connect

logger = logging.getLogger(__name__)

CHANNEL = "archibald"


async def listen(conninfo: str, heard: Callable[[str], None]) -> None:
    """Call `heard` with each notification's text ('wake', 'unlock', 'cancel') until cancelled.

    After every (re)connect it is called with 'connected', because anything may have been missed.
    """
    pause = 0.05
    while True:
        try:
            connection = await connect(conninfo)
            async with connection:
                await connection.execute(f"LISTEN {CHANNEL}")
                pause = 0.05
                heard("connected")
                async for notification in connection.notifies():
                    heard(notification.payload)
        except psycopg.Error as error:
            logger.warning(
                "the listener lost its connection (%s) and reconnects; polling goes on", type(error).__name__
            )
        await asyncio.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311  # jitter, not a secret
        pause = min(pause * 2, 2.0)
