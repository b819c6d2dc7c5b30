"""DSNs: what is accepted, and how to speak of them without their password."""

from __future__ import annotations

import re

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from archibald_pgq.errors import ConfigError

_SCHEMES = re.compile(r"^(postgres|postgresql|postgresql\+psycopg)://")
_ANY_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]{0,30})://")
_PORTS = re.compile(r"[0-9]*(,[0-9]*)*")
_UNREADABLE = (
    "the database URL cannot be read; write it as postgresql://user:password@host:port/database "
    "and percent-encode special characters of the password"
)


def to_libpq(dsn: str) -> str:
    """Return `dsn` as libpq takes it.

    Accepted: `postgres://`, `postgresql://`, `postgresql+psycopg://` (SQLAlchemy's), and libpq's `key=value` form.

    Raises:
        ConfigError: it is none of these. The message does not repeat the text: it may hold a password.
    """
    scheme = _ANY_SCHEME.match(dsn)
    if scheme and not _SCHEMES.match(dsn):
        raise ConfigError(f"the database URL starts with {scheme[1]!r}; use postgresql://user@host:port/database")
    plain = _SCHEMES.sub("postgresql://", dsn)
    try:
        parts = conninfo_to_dict(plain)
    except (psycopg.Error, UnicodeEncodeError):  # which error it is differs between versions of psycopg
        raise ConfigError(_UNREADABLE) from None
    if "://" in str(
        parts.get("dbname") or ""
    ):  # a URL in the wrong place, with its password: messages name the database
        raise ConfigError(_UNREADABLE)
    if scheme and _misread(plain, str(parts.get("host") or ""), str(parts.get("port") or "")):
        raise ConfigError(_UNREADABLE)
    return plain


def _misread(url: str, host: str, port: str) -> bool:
    """True where a password holds a bare '@' or '/': libpq takes its rest for the host, port or database, which messages name."""
    path = url.removeprefix("postgresql://").partition("/")[2].partition("?")[0]
    return "@" in path or ("@" in host[1:] and host[0] != "/") or not _PORTS.fullmatch(port)


def with_options(dsn: str, **options: str | int) -> str:
    """Return the libpq conninfo of `dsn` for a connection of our own, with `options` added where it does not set them itself.

    In UTF-8, whatever the DSN, the role or the database says: a text of a job may have any letters.
    """
    given: dict[str, str | int] = {
        key: value for key, value in conninfo_to_dict(to_libpq(dsn)).items() if value is not None
    }
    return make_conninfo("", **{**options, **given, "client_encoding": "UTF8"})


def redacted(dsn: str) -> str:
    """Return host, port and database of `dsn` for a message; never a password."""
    parts = conninfo_to_dict(to_libpq(dsn))
    host = parts.get("host") or parts.get("hostaddr") or "the local socket"
    port = f":{parts['port']}" if parts.get("port") else ""
    return f"{host}{port}, database {parts.get('dbname') or parts.get('user') or 'default'}"
