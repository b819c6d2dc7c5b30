"""DSNs: what is accepted, and how to speak of them without their password."""

from __future__ import annotations

import re

from psycopg import ProgrammingError
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from archibald_pgq.errors import ConfigError

_SCHEMES = re.compile(r"^(postgres|postgresql|postgresql\+psycopg)://")


def to_libpq(dsn: str) -> str:
    """Return `dsn` as libpq takes it.

    Accepted: `postgres://`, `postgresql://`, `postgresql+psycopg://` (SQLAlchemy's), and libpq's `key=value` form.

    Raises:
        ConfigError: it is none of these. The message does not repeat the text: it may hold a password.
    """
    if "://" in dsn and not _SCHEMES.match(dsn):
        scheme = dsn.split("://", 1)[0]
        raise ConfigError(f"the database URL starts with {scheme[:20]!r}; use postgresql://user@host:port/database")
    plain = _SCHEMES.sub("postgresql://", dsn)
    try:
        conninfo_to_dict(plain)
    except ProgrammingError:
        raise ConfigError(
            "the database URL cannot be read; write it as postgresql://user:password@host:port/database "
            "and percent-encode special characters of the password"
        ) from None
    return plain


def with_options(dsn: str, **options: str | int) -> str:
    """Return the libpq conninfo of `dsn` with `options` added where it does not set them itself."""
    given: dict[str, str | int] = {
        key: value for key, value in conninfo_to_dict(to_libpq(dsn)).items() if value is not None
    }
    return make_conninfo("", **{**options, **given})


def redacted(dsn: str) -> str:
    """Return host, port and database of `dsn` for a message; never a password."""
    parts = conninfo_to_dict(to_libpq(dsn))
    host = parts.get("host") or parts.get("hostaddr") or "the local socket"
    port = f":{parts['port']}" if parts.get("port") else ""
    return f"{host}{port}, database {parts.get('dbname') or parts.get('user') or 'default'}"
