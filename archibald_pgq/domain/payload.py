"""What may be given to a job and come back from it: checks that need no database.

Guarantees: what passes here is accepted by the table's own constraints (which check again, for those who INSERT directly).
Every refusal is one sentence that names the argument.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from archibald_pgq.domain.operations import KIND_PATTERN
from archibald_pgq.domain.states import State
from archibald_pgq.errors import InvalidJobError, UnknownJobError

MAX_JSON_BYTES = 1_048_576
MAX_DEPTH = 200
"""Levels of nesting; far below what overflows the stack of a JSON parser, in a worker or in the server."""
MAX_USER_ID = 200
MAX_KEY = 200
MAX_REASON = 500
MAX_DELAY = 10 * 365 * 86400.0
MAX_ID = 2**63 - 1
MAX_LIMIT = 10_000


encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode
"""Turns a value into JSON text, unchecked; raises ValueError, TypeError or RecursionError."""


def _text(name: str, value: object, longest: int) -> str:
    if not isinstance(value, str) or not 1 <= len(value) <= longest:
        raise InvalidJobError(f"{name} must be a text of 1 to {longest} characters")
    if problem := _unstorable(value):
        raise InvalidJobError(f"{name} holds {problem}, which Postgres cannot store; remove it")
    return value


def _unstorable(text: str) -> str | None:
    """Say what in `text` Postgres cannot store, if anything."""
    if "\x00" in text:
        return "a NUL character"
    if text.isascii():
        return None
    try:
        text.encode()
    except UnicodeEncodeError:
        return "a lone surrogate"
    return None


def check_user_id(value: object) -> str:
    """Return the user_id, or raise InvalidJobError."""
    return _text("user_id", value, MAX_USER_ID)


def check_key(value: object) -> str:
    """Return the idempotency key, or raise InvalidJobError."""
    return _text("idempotency_key", value, MAX_KEY)


def check_kind(value: object) -> str:
    """Return the kind, or raise InvalidJobError."""
    if not isinstance(value, str) or not KIND_PATTERN.fullmatch(value):
        raise InvalidJobError(
            "kind must be 1 to 100 of a-z, 0-9, '.', '_', ':' and '-', starting with a letter or digit"
        )
    return value


def check_delay(value: object) -> float:
    """Return the delay in seconds, or raise InvalidJobError."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MAX_DELAY:
        raise InvalidJobError(f"delay must be a number of seconds from 0 to {MAX_DELAY:.0f} (10 years)")
    return float(value)


def check_new_job(kind: object, user_id: object, data: object, idempotency_key: object, delay: object) -> str:
    """Return the payload of a job to be as JSON text, or raise InvalidJobError if anything of the job is not allowed."""
    payload = check_payload(data)
    check_kind(kind)
    check_user_id(user_id)
    check_delay(delay)
    if idempotency_key is not None:
        check_key(idempotency_key)
    return payload


def check_job_id(value: object) -> int:
    """Return the id, or raise UnknownJobError: what is no id is the id of no job."""
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_ID:
        raise UnknownJobError(f"there is no job {value!r}; a job's id is a whole number from 1 to {MAX_ID}")
    return value


def check_reason(value: object) -> str:
    """Return the reason of a pause, or raise InvalidJobError."""
    return _text("reason", value, MAX_REASON)


def check_limit(value: object) -> int:
    """Return the length of a list, or raise InvalidJobError."""
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_LIMIT:
        raise InvalidJobError(f"limit must be a whole number from 1 to {MAX_LIMIT}")
    return value


def check_state(value: object) -> State:
    """Return the state, or raise InvalidJobError."""
    if not isinstance(value, str) or value not in set(State):
        raise InvalidJobError(f"state must be one of {', '.join(State)}")
    return State(value)


def to_json(value: object, what: str = "payload") -> str:
    """Return `value` as JSON text that Postgres can store and every worker can read.

    Raises:
        InvalidJobError: it is no JSON, has NaN, infinity, NUL or a lone surrogate, is nested deeper than 200 levels, or is over 1 MB.
    """
    try:
        text = encode(value)
    except RecursionError:
        raise _too_deep(what) from None
    except (TypeError, ValueError) as error:
        raise InvalidJobError(f"the {what} cannot be stored as JSON: {error}") from None
    try:
        size = json_bytes(text)
    except UnicodeEncodeError:
        raise InvalidJobError(f"the {what} holds a lone surrogate, which Postgres cannot store; remove it") from None
    if size > MAX_JSON_BYTES:
        raise InvalidJobError(f"the {what} is {size} bytes as JSON; at most {MAX_JSON_BYTES} (1 MB) are kept")
    if (
        "\\u0000" in text or text.count("{") + text.count("[") > MAX_DEPTH
    ):  # either may be harmless; few texts get this far
        for part, depth in _parts(value):
            if depth > MAX_DEPTH:
                raise _too_deep(what)
            if isinstance(part, str) and "\x00" in part:
                raise InvalidJobError(f"the {what} holds a NUL character, which Postgres cannot store; remove it")
    return text


_SCALARS = (str, int, float, type(None))
_OBJECT = (dict, Mapping)  # in this order: to ask the second one takes ten times as long


def json_bytes(text: str) -> int:
    """Return the size of a JSON text in bytes.

    Raises:
        UnicodeEncodeError: it has a lone surrogate.
    """
    return len(text) if text.isascii() else len(text.encode())


def _too_deep(what: str) -> InvalidJobError:
    return InvalidJobError(f"the {what} is nested too deeply; at most {MAX_DEPTH} levels are kept")


def _parts(value: object) -> Iterator[tuple[object, int]]:
    """Yield each value and key in `value`, itself first, with the number of objects and lists around it; never recurses."""
    waiting: list[tuple[object, int]] = [(value, 0)]
    while waiting:
        part, depth = waiting.pop()
        yield part, depth
        if isinstance(part, Mapping):
            waiting.extend((inner, depth + 1) for pair in part.items() for inner in pair)
        elif isinstance(part, list | tuple):
            waiting.extend((inner, depth + 1) for inner in part)


def check_payload(value: object) -> str:
    """Return the payload as JSON text, or raise InvalidJobError; it must be a JSON object with text keys."""
    if not isinstance(value, _OBJECT):
        raise InvalidJobError('the payload must be a JSON object, such as {"order": 7}')
    text = to_json(value if isinstance(value, dict) else dict(value))
    for part, _ in () if _is_flat(value) else _parts(value):
        # json would turn 1 into "1" and None into "null": the handler would not get what was given
        if isinstance(part, Mapping) and not all(isinstance(key, str) for key in part):
            key = next(key for key in part if not isinstance(key, str))
            raise InvalidJobError(f"the payload has the key {key!r}; the keys of a JSON object are texts")
    return text


def _is_flat(value: Mapping[object, object]) -> bool:
    """True for an object of text keys and plain values, as most payloads are: nothing in it has keys of its own."""
    for key, inner in value.items():  # noqa: SIM110  # a generator takes twice as long
        if not isinstance(key, str) or not isinstance(inner, _SCALARS):
            return False
    return True


def parse_payload(text: str) -> dict[str, Any]:
    """Return the object that `text` (a JSON text, from the command line) holds, or raise InvalidJobError."""

    def refuse(name: str) -> float:
        raise InvalidJobError(f"the payload holds {name}, which is no JSON; write a number or null")

    try:
        value = json.loads(text, parse_constant=refuse)
    except InvalidJobError:
        raise
    except RecursionError:
        raise _too_deep("payload") from None
    except ValueError as error:
        raise InvalidJobError(f"the payload is no JSON: {error}") from None
    check_payload(value)
    assert isinstance(value, dict)  # noqa: S101  # check_payload has just said so; for the type checker
    return value
