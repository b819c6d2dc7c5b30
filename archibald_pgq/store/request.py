"""A request to the database as a value: made once, asked by the asynchronous client and by the synchronous one alike."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

T = TypeVar("T")
Rows = Sequence[Sequence[Any]]

PLACEHOLDER = re.compile(r"%\((\w+)\)s")
"""What stands for a parameter in a statement."""


class Request(NamedTuple, Generic[T]):
    """One statement, its parameters, and what its rows mean.

    Attributes:
        statement: SQL with psycopg's `%(name)s` placeholders.
        params: their values.
        read: turns the rows into the answer, or into the error that they stand for.
        value: True where the answer is one value and time counts: on a connection of our own it is read as text, see `store.statement`.
        named: True where `read` asks the rows for their columns' names; only on a connection of our own.
        before: what is run before it in a transaction of its own, and so not on a caller's connection: a statement and its parameters.
    """

    statement: str
    params: Mapping[str, Any]
    read: Callable[[Rows], T]
    value: bool = False
    named: bool = False
    before: tuple[str, Mapping[str, Any]] | None = None


Ask = Callable[[Request[Any]], Awaitable[Any]]
"""Asks the database, on a connection that is not the dispatcher's."""


def nothing(_rows: Rows) -> None:
    """Read the rows of a statement that answers nothing."""
