"""Whether something is done in the ERP: the question before anybody does it a second time.

Each returns what the operation would have come to, or None if it did not happen; and raises ErpError if the ERP cannot be asked.
"""

from __future__ import annotations

from urllib.parse import quote

from .desk import Desk
from .scraper import ErpError, MissingError

SENT = "sent"


async def find_order(desk: Desk, reference: str) -> int | None:
    """Return the number of the order with the agent's own reference; the first of several.

    Raises:
        ErpError: the ERP cannot be asked, or there is no reference to ask for.
    """
    if not reference.strip():
        raise ErpError("an order without a reference cannot be looked up")
    found = (await desk.open(f"/orders?reference={quote(reference.strip(), safe='')}")).rows
    return int(found[0]["Number"]) if found else None


async def find_customer(desk: Desk, name: str) -> str | None:
    """Return the code of the newest customer of this name."""
    codes = [row["Code"] async for page in desk.grid("/customers") for row in page.rows if row["Name"] == name.strip()]
    return codes[-1] if codes else None


async def sent(desk: Desk, number: int) -> str | None:
    """Return the state of an order that was sent to Verona."""
    state = (await desk.open(f"/orders/{number}")).text("state")
    return state if state == SENT else None


async def deleted(desk: Desk, number: int) -> int | None:
    """Return the number of an order that is not there."""
    try:
        await desk.open(f"/orders/{number}")
    except MissingError:
        return number
    return None
