"""The way to switch faults on where the ERP is another process: `POST /admin/faults` with what shall be wrong from now on.

Guarantees: there only if the ERP was started so, and only for who is on the same machine; not for a web page in a
browser there either, which cannot post JSON to another site. Must not: decide what a fault does.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from http import HTTPStatus

from aiohttp import web

from .faults import Faults

PATH = "/admin/faults"
_HERE = {"127.0.0.1", "::1"}


def route(switch: Callable[[Faults], None]) -> web.RouteDef:
    """Return the route that reads faults and hands them to `switch`."""

    async def post(request: web.Request) -> web.Response:
        if request.remote not in _HERE:
            raise web.HTTPForbidden(text="faults can be switched on from the same machine only")
        if request.content_type != "application/json":
            raise web.HTTPUnsupportedMediaType(text="faults are told as application/json")
        try:
            switch(Faults.read(json.loads(await request.text())))
        except (ValueError, LookupError) as error:  # LookupError: an unknown encoding
            raise web.HTTPBadRequest(text=f"these are no faults: {error}") from None
        return web.Response(status=HTTPStatus.NO_CONTENT)

    return web.post(PATH, post)
