"""Whether the session of a kept context still holds, as far as its cookies tell.

Guarantees: a session cookie that was there after the login and is no longer makes the session invalid, also where others are left, for a
browser drops what has expired. Must not: ask the ERP.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from playwright.async_api import BrowserContext

_NAMES = re.compile(r"ASP\.NET_SessionId|\.ASPX.*|\.AspNet.*", re.IGNORECASE)
"""Cookies by which ASP.NET and ASP.NET Core know a session or a login."""


def live_sessions(cookies: Sequence[Mapping[str, Any]], now: float) -> frozenset[str]:
    """Return the names of the session cookies that have not expired.

    Args:
        cookies: as Playwright gives them; `expires` is in seconds since 1970, and -1 where the cookie lives as long as its context.
        now: seconds since 1970.
    """
    return frozenset(
        cookie["name"]
        for cookie in cookies
        if _NAMES.fullmatch(cookie["name"]) and not 0 <= cookie.get("expires", -1) <= now
    )


class AspNetSession:
    """The default rule: there are ASP.NET session cookies, and all of those that were there at first."""

    def __init__(self) -> None:
        """Nothing seen yet."""
        self._at_first: WeakKeyDictionary[BrowserContext, frozenset[str]] = WeakKeyDictionary()

    async def __call__(self, context: BrowserContext) -> bool:
        """Return whether the session holds; the first call for a context, after its login, says what there has to be."""
        live = live_sessions(await context.cookies(), time.time())
        return bool(live) and live >= self._at_first.setdefault(context, live)
