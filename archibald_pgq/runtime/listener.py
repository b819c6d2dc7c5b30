"""Hears the database's notifications. They are only hints: nothing is lost when one is, or when this connection is."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import psycopg

from archibald_pgq.runtime.reconnect import Outage
from archibald_pgq.store.connect import connect

CHANNEL = "archibald"


async def listen(conninfo: str, heard: Callable[[str], None]) -> None:
    """Call `heard` with each notification's text ('wake', 'unlock', 'cancel') until cancelled.

    After every (re)connect it is called with 'connected', because anything may have been missed.
    """
    outage = Outage("the listener")
    while True:
        try:
            connection = await connect(conninfo)
            async with connection:
                await connection.execute(f"LISTEN {CHANNEL}")
                outage.is_over()
                heard("connected")
                async for notification in connection.notifies():
                    heard(notification.payload)
        except psycopg.Error as error:
            await asyncio.sleep(outage.goes_on(error))
