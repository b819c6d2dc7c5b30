"""One request of somebody who is signed in, and how an answer is shown.

Owns: the templates. Guarantees: what a template shows is escaped; no page is kept by a browser or a proxy, whose old
token would be of no use. Must not: know a route.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any

from aiohttp import web
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from .records import Books, RefusedError

TOKEN_FIELD = "__RequestVerificationToken"  # noqa: S105  # the field's name
ACTION_FIELD = "action"
"""The name of every button; its value says which one was pressed."""

_TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_TEMPLATES.globals.update(token_field=TOKEN_FIELD, action_field=ACTION_FIELD)


def show(template: str, values: Mapping[str, Any], status: int = HTTPStatus.OK) -> web.Response:
    """Return a page; `values` hold at least `login` and `token`, which are empty for a page without the menu."""
    text = _TEMPLATES.get_template(template).render(values)
    return web.Response(text=text, status=status, content_type="text/html", headers={"Cache-Control": "no-store"})


def see(path: str) -> web.Response:
    """Return the answer to a form that was done: look there for the result."""
    return web.Response(status=HTTPStatus.SEE_OTHER, headers={"Location": path})


@dataclass(frozen=True)
class Visit:
    """A request behind the sign-in.

    Attributes:
        request: what was asked for.
        login: by whom.
        books: the documents of that login.
        token: for the forms on the page.
        fields: what a posted form holds; a name may occur several times.
        placed: the references of the orders that this request has placed.
    """

    request: web.Request
    login: str
    books: Books
    token: str
    fields: Mapping[str, Sequence[str]]
    placed: list[str] = field(default_factory=list)

    @property
    def page_number(self) -> int:
        """The page of a grid that is asked for, from 1; raises RefusedError."""
        text = self.request.query.get("page", "1")
        if not text.isascii() or not text.isdigit() or not 1 <= len(text) <= 4 or int(text) < 1:  # bounds nonsense
            raise RefusedError(f"page is {text!r}; it must be a whole number from 1")
        return int(text)

    @property
    def order_number(self) -> int:
        """The number of the order in the path."""
        return int(self.request.match_info["number"])

    def typed(self, name: str) -> str:
        """Return what was typed into a field, empty if there is none."""
        return next(iter(self.typed_lines(name)), "")

    def typed_lines(self, name: str) -> list[str]:
        """Return what was typed into all fields of a name, without the line ends of browsers and spaces around."""
        return [text.replace("\r\n", "\n").strip() for text in self.fields.get(name, ())]

    def show(self, template: str, status: int = HTTPStatus.OK, **values: Any) -> web.Response:
        """Return a page with the menu and this login's token in its forms."""
        return show(template, {"login": self.login, "token": self.token, **values}, status)


async def read_fields(request: web.Request) -> dict[str, list[str]]:
    """Return what the posted form holds; a name may occur several times.

    Raises:
        web.HTTPBadRequest: the form cannot be read.
    """
    try:
        posted = await request.post()
    except (LookupError, ValueError):  # an unknown encoding, or bytes that are none of it
        raise web.HTTPBadRequest(text="the form cannot be read: it is not written as it says") from None
    fields: dict[str, list[str]] = {}
    for key, value in posted.items():
        if isinstance(value, str):  # no form of the ERP sends files
            fields.setdefault(key, []).append(value)
    return fields
