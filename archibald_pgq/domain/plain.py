"""Jobs that are looked at all at once, because none of them is special: what most sets are.

Guarantees: what passes here would pass `check_new_job` one by one, with the same payloads. Must not: say what is wrong with a job; whoever
gets None looks at each of them. Why: for a thousand it takes a fifth of the time.
"""

from __future__ import annotations

from collections.abc import Sequence

from archibald_pgq.domain.new_job import NewJob
from archibald_pgq.domain.payload import MAX_JSON_BYTES, MAX_USER_ID, check_kind, encode, json_bytes
from archibald_pgq.errors import InvalidJobError

_SCALARS = {str, int, float, bool, type(None)}


def plain_payloads(jobs: Sequence[NewJob]) -> str | None:
    """Return the payloads of these jobs as one JSON array; None if one of them is to be looked at.

    That is one with a key or a delay, with an object or a list in its payload, with a value of another type than the usual one, or with
    anything that is not allowed; and all of them if their payloads are over 1 MB together.
    """
    payloads = [job.data for job in jobs]
    if (
        any(job.idempotency_key is not None for job in jobs)
        or {type(payload) for payload in payloads} != {dict}
        or not {type(key) for payload in payloads for key in payload} <= {str}
        or not {type(value) for payload in payloads for value in payload.values()} <= _SCALARS
        or not {type(job.delay) for job in jobs} <= {int, float}
        or any(job.delay for job in jobs)
        or not _are_users([job.user_id for job in jobs])
    ):
        return None
    try:
        for kind in {job.kind for job in jobs}:
            check_kind(kind)
        text = encode(payloads)
        size = json_bytes(text)
    except (InvalidJobError, ValueError, TypeError):  # a kind, a number or a text that is none; the unhashable
        return None
    return text if size <= MAX_JSON_BYTES and "\\u0000" not in text else None


def _are_users(user_ids: Sequence[str]) -> bool:
    if {type(user_id) for user_id in user_ids} != {str}:
        return False
    lengths = [len(user_id) for user_id in user_ids]
    text = "".join(user_ids)
    return min(lengths) >= 1 and max(lengths) <= MAX_USER_ID and text.isascii() and "\x00" not in text
