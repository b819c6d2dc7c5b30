"""A desk: what a handler can do in the ERP, whoever does it: the HTTP client (`client.py`) or a browser (`browser.py`).

Owns: the protocol, and what both say when the ERP refuses. Must not: know how a page is fetched.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from http import HTTPStatus
from typing import Protocol

from .scraper import ErpError, LoginRefusedError, MissingError, Page, UnreachableError

LOGIN = "/login"
LONGEST_ANSWER = 100.0
"""Seconds after which an answer is no longer waited for."""
Values = Mapping[str, str | Sequence[str]]
"""What is typed into a form; a list goes into the fields of that name, one after the other."""


class Desk(Protocol):
    """One login at work: the pages of one operation, one after the other. All of it may raise ErpError."""

    async def open(self, path: str) -> Page:
        """Return a page."""

    def grid(self, path: str) -> AsyncIterator[Page]:
        """Yield the pages of a grid, from the one at `path` and along the links to the next."""

    async def submit(self, path: str, action: str, values: Values | None = None, shown: Page | None = None) -> Page:
        """Fill the form at `path`, press its button `action`, and return the page that comes of it.

        `shown` is the page with the form, where it is on the screen already. The form is posted a second time only if
        the ERP sent the first one to the login page.
        """

    async def pdf(self, path: str) -> bytes:
        """Return a PDF's bytes."""


class SignedOutError(ErpError):
    """The ERP asks to sign in, and has done nothing else."""

    def __init__(self, login: str) -> None:
        """Say whose session it was."""
        super().__init__(f"the ERP has ended the session of {login}, perhaps because of another sign-in")


def checked_pdf(path: str, content_type: str, content: bytes) -> bytes:
    """Return the content of what came for `path`, or raise ErpError if it is no PDF."""
    if content_type != "application/pdf" or not content.startswith(b"%PDF-"):
        raise ErpError(f"the ERP sent no PDF for {path}")
    return content


def refusal(method: str, path: str, status: int, sentence: str) -> ErpError:
    """Return the error for an answer with a status from 400 on; its class tells what can be done about it."""
    text = f"the ERP refused {method} {path}: {sentence} ({status})"
    if status == HTTPStatus.UNPROCESSABLE_ENTITY and path.partition("?")[0] == LOGIN:
        return LoginRefusedError(text)
    if status == HTTPStatus.NOT_FOUND:
        return MissingError(text)
    return UnreachableError(text) if status == HTTPStatus.SERVICE_UNAVAILABLE else ErpError(text)
