"""Whether an order is in the ERP: the question before anybody places it a second time."""

from __future__ import annotations

from urllib.parse import quote

from .desk import Desk
from .scraper import ErpError


async def find_order(desk: Desk, reference: str) -> int | None:
    """Return the number of the order with the agent's own reference, None if there is none; the first of several.

    Raises:
        ErpError: the ERP cannot be asked, or there is no reference to ask for.
    """
    if not reference.strip():
        raise ErpError("an order without a reference cannot be looked up")
    found = (await desk.open(f"/orders?reference={quote(reference.strip(), safe='')}")).rows
    return int(found[0]["Number"]) if found else None
