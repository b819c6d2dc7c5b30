"""What may be given to a job and come back from it: checks that need no database.

Guarantees: what passes here is accepted by the table's own constraints (which check again, for those who INSERT directly).
Every refusal is one sentence that names the argument.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from archibald_pgq.domain.operations import KIND_PATTERN
from archibald_pgq.errors import InvalidJobError

MAX_JSON_BYTES = 1_048_576
MAX_USER_ID = 200
MAX_KEY = 200
MAX_DELAY = 10 * 365 * 86400.0


def _text(name: str, value: object, longest: int) -> str:
    if not isinstance(value, str) or not 1 <= len(value) <= longest:
        raise InvalidJobError(f"{name} must be a text of 1 to {longest} characters")
    problem = _unstorable(value)
    if problem:
        raise InvalidJobError(f"{name} holds {problem}, which Postgres cannot store; remove it")
    return value


def _unstorable(text: str) -> str | None:
    """Say what in `text` Postgres cannot store, if anything."""
    if "\x00" in text:
        return "a NUL character"
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


def to_json(value: object, what: str = "payload") -> str:
    """Return `value` as JSON text that Postgres can store.

    Raises:
        InvalidJobError: it is no JSON, has NaN, infinity, NUL or a lone surrogate, or is over 1 MB.
    """
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except RecursionError:
        raise InvalidJobError(f"the {what} is nested too deeply to be stored as JSON") from None
    except (TypeError, ValueError) as error:
        raise InvalidJobError(f"the {what} cannot be stored as JSON: {error}") from None
    if "\\u0000" in text and _has_nul(value):
        raise InvalidJobError(f"the {what} holds a NUL character, which Postgres cannot store; remove it")
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise InvalidJobError(f"the {what} holds a lone surrogate, which Postgres cannot store; remove it") from None
    if size > MAX_JSON_BYTES:
        raise InvalidJobError(f"the {what} is {size} bytes as JSON; at most {MAX_JSON_BYTES} (1 MB) are kept")
    return text


def _has_nul(value: object) -> bool:
    if isinstance(value, str):
        return "\x00" in value
    if isinstance(value, Mapping):
        return any(_has_nul(part) for pair in value.items() for part in pair)
    if isinstance(value, list | tuple):
        return any(_has_nul(part) for part in value)
    return False


def check_payload(value: object) -> str:
    """Return the payload as JSON text, or raise InvalidJobError; it must be a JSON object with text keys."""
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise InvalidJobError('the payload must be a JSON object, such as {"order": 7}')
    return to_json(dict(value))


def parse_payload(text: str) -> dict[str, Any]:
    """Return the object that `text` (a JSON text, from the command line) holds, or raise InvalidJobError."""

    def refuse(name: str) -> float:
        raise InvalidJobError(f"the payload holds {name}, which is no JSON; write a number or null")

    try:
        value = json.loads(text, parse_constant=refuse)
    except InvalidJobError:
        raise
    except RecursionError:
        raise InvalidJobError("the payload is nested too deeply to be stored as JSON") from None
    except ValueError as error:
        raise InvalidJobError(f"the payload is no JSON: {error}") from None
    check_payload(value)
    assert isinstance(value, dict)  # noqa: S101  # check_payload has just said so; for the type checker
    return value
