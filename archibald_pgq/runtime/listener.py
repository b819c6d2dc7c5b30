"""Hears the database's notifications. They are only hints: nothing is lost when one is, or when this connection is."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

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
                await _hear(connection, heard)
        except psycopg.Error as error:
            await asyncio.sleep(outage.goes_on(error))


async def _hear(connection: psycopg.AsyncConnection[Any], heard: Callable[[str], None]) -> None:
    """Call `heard` from within the event loop as soon as something arrives, until the connection is lost or this is cancelled.

    Without a task that waits for `connection.notifies()`: it would come one step of the event loop later, through cold code, and the driver
    wakes it ten times a second besides.

    Raises:
        psycopg.OperationalError: the connection is lost.
    """
    loop, socket = asyncio.get_running_loop(), connection.fileno()
    lost: asyncio.Future[None] = loop.create_future()

    def arrived() -> None:
        try:
            connection.pgconn.consume_input()
            while notification := connection.pgconn.notifies():
                heard(notification.extra.decode(errors="replace"))  # anybody may notify, in any encoding
        except psycopg.Error as error:
            # At once: the socket is closed, and the next connection of this process may get its number.
            loop.remove_reader(socket)
            if not lost.done():
                lost.set_exception(error)

    loop.add_reader(socket, arrived)
    try:
        arrived()  # what came with the answer to LISTEN is not announced by the socket any more
        await lost
    finally:
        if not connection.closed:
            loop.remove_reader(socket)
