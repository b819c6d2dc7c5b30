"""DSNs: three schemes, libpq's own form, and never a password in a message."""

from __future__ import annotations

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from archibald_pgq.errors import ConfigError
from archibald_pgq.store.connect import unreachable
from archibald_pgq.store.dsn import redacted, to_libpq, with_options

PASSWORD = "Geheim77"


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg"])
def test_three_schemes_mean_the_same(scheme: str) -> None:
    dsn = f"{scheme}://ann:{PASSWORD}@db.example:5433/shop?sslmode=require"
    assert conninfo_to_dict(to_libpq(dsn)) == {
        "user": "ann", "password": PASSWORD, "host": "db.example", "port": "5433", "dbname": "shop", "sslmode": "require",
    }  # fmt: skip


@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql://",
        "postgresql:///shop",
        "postgresql://ann@/shop?host=/tmp/a@b",
        "postgresql://[::1]:5432/shop",
        "postgresql://a:1,b:2/shop",
        "postgresql://ann:p%40ss%2Fword@h/shop",
        "host=/var/run/postgresql dbname=shop",
        "host=@abstract dbname=shop",
        f"host=h password=a://{PASSWORD}@",
        "",
    ],
)
def test_what_libpq_understands_is_taken_as_it_is(dsn: str) -> None:
    assert to_libpq(dsn) == dsn


@pytest.mark.parametrize(
    "dsn",
    [
        f"mysql://ann:{PASSWORD}@h/shop",
        f"postgresql+asyncpg://ann:{PASSWORD}@h/shop",
        f"POSTGRESQL://ann:{PASSWORD}@h/shop",
        f"http://{PASSWORD}@h",
    ],
)
def test_another_scheme_is_named_and_refused(dsn: str) -> None:
    with pytest.raises(
        ConfigError, match=r"the database URL starts with '.*'; use postgresql://user@host:port/database"
    ) as caught:
        to_libpq(dsn)
    assert dsn.split("://", maxsplit=1)[0] in str(caught.value)
    assert PASSWORD not in str(caught.value)


@pytest.mark.parametrize(
    "dsn",
    [
        f"{PASSWORD}",
        f"ann:{PASSWORD}@h/shop",
        f"ann:{PASSWORD}@h://shop",
        f" postgresql://ann:{PASSWORD}@h/shop",
        f"password={PASSWORD} nonsense",
        f"postgresql://ann:{PASSWORD}@[::1/shop",
        f"postgresql://ann:{PASSWORD}@h/shop?nonsense=1",
        f"postgresql://ann:{PASSWORD}%zz@h/shop",
        f"postgresql://ann:x@{PASSWORD}@h/shop",
        f"postgresql://ann:x/{PASSWORD}@h/shop",
        f"postgresql://ann:{PASSWORD}/x@h/shop",
        f"postgresql://ann:12/{PASSWORD}@h/shop",
        f"postgresql://h:{PASSWORD}/shop",
        f"postgresql://ann:{PASSWORD}\udcff@h/shop",
    ],
)
def test_what_cannot_be_read_is_refused_without_its_text(dsn: str) -> None:
    """Among them passwords with bare special characters, whose rest libpq would take for the host, the port or the database."""
    with pytest.raises(ConfigError, match="the database URL cannot be read; write it as ") as caught:
        to_libpq(dsn)
    assert PASSWORD not in str(caught.value)


@pytest.mark.parametrize(
    ("dsn", "text"),
    [
        (f"postgres://ann:{PASSWORD}@db.example:5433/shop", "db.example:5433, database shop"),
        (f"postgresql+psycopg://ann:{PASSWORD}@db.example", "db.example, database ann"),
        (f"host=h password={PASSWORD}", "h, database default"),
        (f"postgresql:///shop?password={PASSWORD}&hostaddr=10.0.0.1", "10.0.0.1, database shop"),
        ("postgresql://", "the local socket, database default"),
    ],
)
def test_a_message_names_host_port_and_database_only(dsn: str, text: str) -> None:
    assert redacted(dsn) == text


def test_options_are_added_where_the_dsn_does_not_set_them() -> None:
    found = conninfo_to_dict(
        with_options("postgres://h/shop?connect_timeout=9", connect_timeout=5, application_name="x")
    )
    assert found == {
        "host": "h", "dbname": "shop", "connect_timeout": "9", "application_name": "x", "client_encoding": "UTF8",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (
            'connection failed: connection to server at "127.0.0.1", port 1 failed: Connection refused\n'
            "\tIs the server running on that host and accepting TCP/IP connections?",
            "Connection refused",
        ),
        (
            'connection failed: connection to server at "h", port 5432 failed: FATAL:  database "shop" does not exist',
            'database "shop" does not exist',
        ),
        (
            "failed to resolve host 'h': [Errno -2] Name or service not known",
            "failed to resolve host 'h': [Errno -2] Name or",
        ),
        ("terminating connection due to administrator command\nDETAIL:  more", "terminating connection"),
        ("", "no answer"),
    ],
)
def test_a_database_out_of_reach_is_one_sentence_with_its_reason(message: str, reason: str) -> None:
    text = str(unreachable(f"postgresql://ann:{PASSWORD}@h/shop", psycopg.OperationalError(message)))
    assert text.startswith(f"the database at h, database shop cannot be used: {reason}")
    assert text.endswith("; check ARCHIBALD_DATABASE_URL and that it is up")
    assert "\n" not in text
    assert PASSWORD not in text
