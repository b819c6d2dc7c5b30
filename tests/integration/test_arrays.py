"""Arrays that are made here are read by the server as they were meant."""

from __future__ import annotations

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from archibald_pgq.store.arrays import of_numbers, of_texts

TEXTS = st.lists(st.none() | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00")))
INTEGERS = st.lists(st.none() | st.integers(-(2**63), 2**63 - 1))
FLOATS = st.lists(st.none() | st.floats(allow_nan=False))


@settings(max_examples=50, suppress_health_check=list(HealthCheck))
@given(TEXTS, INTEGERS, FLOATS)
def test_the_server_reads_what_was_given(
    database: str, texts: list[str | None], integers: list[int | None], floats: list[float | None]
) -> None:
    with psycopg.connect(database) as connection:
        read = connection.execute(
            "SELECT %s::text[], %s::bigint[], %s::float8[]", (of_texts(texts), of_numbers(integers), of_numbers(floats))
        ).fetchone()
    assert read == (texts, integers, floats)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "NULL",
        "null",
        "{}",
        '"',
        "\\",
        '\\"',
        "a,b",
        " ",
        "{a}",
        "\n",
        "'",
        "\\x00",
        "é",
        "\N{MATHEMATICAL DOUBLE-STRUCK CAPITAL A}",
    ],
)
def test_no_text_is_taken_for_something_else(database: str, text: str) -> None:
    with psycopg.connect(database) as connection:
        assert connection.execute("SELECT %s::text[]", (of_texts([text, None, text]),)).fetchone() == (
            [text, None, text],
        )
