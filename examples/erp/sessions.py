"""The sign-ins of the example ERP, kept as ASP.NET keeps them: two cookies, and a token in every form.

Owns: the sessions, their cookies and the forms' tokens. Guarantees: a login has one session, so that signing in again
ends the one before; a session ends after `SESSION_SECONDS` of silence; a form's token is good for the session it was
made for and for no other. Must not: show a page.

| cookie | what it is |
|---|---|
| `ASP.NET_SessionId` | names the visitor, signed in or not; ends with the browser |
| `.ASPXAUTH` | says that the visitor is signed in; runs out, and every page prolongs it |
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

from aiohttp import web

PASSWORD = "archibald"  # noqa: S105  # every login of the example has it
SESSION_SECONDS = 20
"""A session ends after so much silence; not scaled by the speed, so that no session ends within an operation."""
SESSION_COOKIE = "ASP.NET_SessionId"
TICKET_COOKIE = ".ASPXAUTH"


@dataclass
class Session:
    """One sign-in: whose it is, the values of its cookies, until when it holds (seconds on the site's clock)."""

    login: str
    key: str
    ticket: str
    until: float


class Sessions:
    """Who is signed in."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin with nobody; `clock` returns seconds."""
        self._clock = clock
        self._by_key: dict[str, Session] = {}
        self._secret = secrets.token_bytes(32)

    def of(self, request: web.Request) -> Session | None:
        """Return the session of the request's cookies; None without one, or when it has ended."""
        session = self._by_key.get(request.cookies.get(SESSION_COOKIE, ""))
        ticket = request.cookies.get(TICKET_COOKIE, "")
        if session is None or session.until < self._clock() or not _same(ticket, session.ticket):
            return None
        return session

    def begin(self, login: str) -> Session:
        """Sign `login` in, which ends the session it had; those that ran out go with it."""
        now = self._clock()
        self._by_key = {key: old for key, old in self._by_key.items() if old.login != login and old.until >= now}
        session = Session(login, new_key(), secrets.token_hex(32), now + SESSION_SECONDS)
        self._by_key[session.key] = session
        return session

    def end(self, login: str) -> None:
        """Forget the session of `login`, if it has one."""
        self._by_key = {key: session for key, session in self._by_key.items() if session.login != login}

    def prolong(self, session: Session, answer: web.StreamResponse) -> None:
        """Let the session last `SESSION_SECONDS` from now, and say so in the answer's cookies."""
        session.until = self._clock() + SESSION_SECONDS
        name(answer, session.key)
        runs_out = datetime.now(UTC) + timedelta(seconds=SESSION_SECONDS)
        answer.set_cookie(
            TICKET_COOKIE,
            session.ticket,
            max_age=SESSION_SECONDS,
            expires=format_datetime(runs_out, usegmt=True),
            httponly=True,
            samesite="Lax",
        )

    def token(self, key: str) -> str:
        """Return the token that the forms of the visitor `key` carry."""
        return hmac.new(self._secret, _bytes(key), hashlib.sha256).hexdigest()

    def is_token(self, key: str, given: object) -> bool:
        """Tell whether `given` came from a form of the visitor `key`."""
        return isinstance(given, str) and _same(given, self.token(key))


def new_key() -> str:
    """Return a name for a new visitor."""
    return secrets.token_hex(12)


def name(answer: web.StreamResponse, key: str) -> None:
    """Have the browser name itself `key` from now on."""
    answer.set_cookie(SESSION_COOKIE, key, httponly=True, samesite="Lax")


def _same(given: str, wanted: str) -> bool:
    return hmac.compare_digest(_bytes(given), _bytes(wanted))


def _bytes(text: str) -> bytes:
    # A header may hold any bytes; aiohttp hands over those that are no UTF-8 as surrogates.
    return text.encode(errors="surrogateescape")
