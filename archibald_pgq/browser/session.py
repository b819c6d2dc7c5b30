"""Whether a kept context is still logged in, as far as its cookies tell."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from playwright.async_api import BrowserContext

SESSION_COOKIE = re.compile(r"ASP\.NET_SessionId|\.ASPX.*|\.AspNet.*|\.AspNetCore\..*", re.IGNORECASE)
"""Names that ASP.NET, its forms authentication, and ASP.NET Core give the cookies of a session."""


async def asp_net_session(context: BrowserContext) -> bool:
    """True where there is an ASP.NET session cookie, and none that has expired."""
    return session_lives([dict(cookie) for cookie in await context.cookies()], time.time())


def session_lives(cookies: Sequence[Mapping[str, Any]], now: float) -> bool:
    """The rule itself; `now` and `expires` in seconds since 1970, -1 for a cookie that lives as long as its browser."""
    expiries = [float(cookie.get("expires", -1)) for cookie in cookies if SESSION_COOKIE.fullmatch(str(cookie["name"]))]
    return bool(expiries) and all(expires < 0 or expires > now for expires in expiries)
