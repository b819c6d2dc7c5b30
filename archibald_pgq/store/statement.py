"""A statement by the shortest way through the driver: libpq's own, without a cursor.

Why: what a cursor does beside (conversions, columns, rows) took a tenth of an enqueue, and a third of the calls from a notification to its
handler, see ADR 23. Guarantees: the connection waits, is cancelled and fails as with a cursor of psycopg's, and prepares a statement when
it would. Must not: be used where a cursor takes no notable part of the time.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

import psycopg
from psycopg import generators
from psycopg.abc import PQGen
from psycopg.errors import error_from_result
from psycopg.pq import ExecStatus
from psycopg.pq.abc import PGresult

from archibald_pgq.store.request import PLACEHOLDER

_Connection = psycopg.Connection[Any] | psycopg.AsyncConnection[Any]


class _Session:
    """Of a connection: how often it ran each statement; what it ran more often than its threshold, it has prepared."""

    __slots__ = ("runs", "threshold")

    def __init__(self, connection: _Connection) -> None:
        self.threshold = connection.prepare_threshold
        self.runs: dict[bytes, int] = {}


_sessions: WeakKeyDictionary[_Connection, _Session] = WeakKeyDictionary()

_GOOD = frozenset((ExecStatus.TUPLES_OK, ExecStatus.COMMAND_OK))

_numbers = itertools.count()


@cache
def _for_libpq(statement: str) -> tuple[bytes, bytes, tuple[str, ...]]:
    """Return a name for this statement, its text as libpq takes it, and whose value each of its parameters is."""
    names = tuple(dict.fromkeys(PLACEHOLDER.findall(statement)))
    text = PLACEHOLDER.sub(lambda found: f"${names.index(found[1]) + 1}", statement)
    return f"archibald_{next(_numbers)}".encode(), text.encode(), names


def run(connection: _Connection, statement: str, params: Mapping[str, Any]) -> PQGen[PGresult]:
    """Run a statement and return libpq's result; to be given to the connection's `wait`.

    Args:
        connection: of our own, in UTF-8, and nobody else uses it.
        statement: with `%(name)s` for each parameter, whose type it says.
        params: None, a number or a text; a text without NUL, at which libpq would end it: `domain.payload` refuses
            it, and an error's text is written without it.

    Raises:
        psycopg.Error: the server refuses, or is gone.
    """
    name, text, names = _for_libpq(statement)
    if (session := _sessions.get(connection)) is None:
        session = _sessions[connection] = _Session(connection)
    values = [None if (given := params[key]) is None else str(given).encode() for key in names]
    pgconn = connection.pgconn
    runs = session.runs.get(name, 0)
    if session.threshold is None or runs < session.threshold:
        pgconn.send_query_params(text, values)
    else:
        if runs == session.threshold:
            pgconn.send_prepare(name, text)
            _check((yield from generators.execute(pgconn))[0])
        pgconn.send_query_prepared(name, values)
    session.runs[name] = runs + 1
    result: PGresult = (yield from generators.execute(pgconn))[0]
    _check(result)
    return result


def value(connection: _Connection, statement: str, params: Mapping[str, Any]) -> PQGen[str | None]:
    """Run a statement and return the one value that it answers, see `run`."""
    answer = (yield from run(connection, statement, params)).get_value(0, 0)
    return None if answer is None else answer.decode()


def _check(result: PGresult) -> None:
    if result.status not in _GOOD:
        raise error_from_result(result)
