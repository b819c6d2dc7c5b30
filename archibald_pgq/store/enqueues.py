"""Enqueues: one job, and many at once.

Owns: these statements, the check of their jobs, what the settings say about them, and what their answers mean. Must not: open connections.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from archibald_pgq.domain.new_job import NewJob
from archibald_pgq.domain.payload import check_new_job, json_bytes
from archibald_pgq.domain.plain import plain_payloads
from archibald_pgq.errors import InvalidJobError
from archibald_pgq.store.arrays import of_numbers, of_texts
from archibald_pgq.store.request import Request

DEFAULT_WINDOW = 30.0
"""Seconds; what the database takes where it is told nothing else."""

MAX_MANY_BYTES = 256 * 1024 * 1024
"""Payloads of one `enqueue_many`; the server refuses a message of 1 GB, and needs several times its size to read it."""

_ENQUEUE = """
SELECT archibald.enqueue(CAST(%(user_id)s AS text), CAST(%(kind)s AS text), CAST(%(payload)s AS jsonb), CAST(%(key)s AS text),
                         clock_timestamp() + make_interval(secs => CAST(%(delay)s AS double precision)))
"""
# Arrays as texts, see `store.arrays`; said to be texts, because a caller's driver may want something else for an array or for JSON.
_ENQUEUE_MANY = """
SELECT archibald.enqueue_many(CAST(CAST(%(user_ids)s AS text) AS text[]), CAST(CAST(%(kinds)s AS text) AS text[]),
                              CAST(CAST(CAST(%(payloads)s AS text) AS text[]) AS jsonb[]), CAST(CAST(%(keys)s AS text) AS text[]),
                              ARRAY (SELECT clock_timestamp() + make_interval(secs => d)
                                       FROM unnest(CAST(CAST(%(delays)s AS text) AS double precision[])) WITH ORDINALITY AS i(d, n)
                                      ORDER BY n))
"""
_ENQUEUE_PLAIN = """
SELECT archibald.enqueue_many(CAST(CAST(%(user_ids)s AS text) AS text[]), CAST(CAST(%(kinds)s AS text) AS text[]),
                              ARRAY (SELECT jsonb_array_elements(CAST(CAST(%(payloads)s AS text) AS jsonb))), NULL, NULL)
"""
_EXPECT_AGENTS = "SELECT archibald.expect_agents(CAST(%(user_ids)s AS text[]))"
# The trigger reads the settings; the CTE is evaluated before the call that depends on it. What is not given stays as the session has it.
_WITH_LIMITS = """
WITH setting AS MATERIALIZED (
  SELECT set_config(name, coalesce(value, current_setting(name, true), ''), true) AS done
    FROM (VALUES ('archibald.dedup_window', CAST(%(window)s AS text)),
                 ('archibald.agent_backlog', CAST(%(backlog)s AS text))) AS s(name, value))
SELECT q.answer FROM (SELECT count(done) AS done FROM setting) AS s CROSS JOIN LATERAL ({call} WHERE s.done > 0) AS q(answer)
"""


@dataclass(frozen=True, slots=True)
class Limits:
    """What the settings say about enqueues: ARCHIBALD_DEDUP_WINDOW in seconds, ARCHIBALD_AGENT_BACKLOG (None: the database's)."""

    window: float = DEFAULT_WINDOW
    backlog: int | None = None


_DEFAULT = Limits()


def enqueue(
    kind: str, limits: Limits, *, user_id: str, data: Mapping[str, Any], idempotency_key: str | None, delay: float
) -> Request[int]:
    """Enqueue a job; the answer is its id, or the id of the job that it duplicates.

    Raises:
        InvalidJobError: something of the job is not allowed.
    """
    params = {
        "payload": check_new_job(kind, user_id, data, idempotency_key, delay),
        "user_id": user_id,
        "kind": kind,
        "key": idempotency_key,
        "delay": float(delay) or None,
    }
    if idempotency_key is None and limits.window != DEFAULT_WINDOW:
        limits = replace(limits, window=DEFAULT_WINDOW)  # it decides about keys alone
    statement, params = _limited(_ENQUEUE, params, limits)
    return Request(statement, params, lambda rows: int(rows[0][0]), value=True)


def enqueue_many(jobs: Sequence[NewJob], limits: Limits) -> Request[list[int]]:
    """Enqueue jobs, all or none; the answer is their ids in the same order, of a duplicate that of the job that is already there.

    Raises:
        InvalidJobError: something of a job is not allowed (the text says which, from 1), or they are over 256 MB in all.
    """
    plain = plain_payloads(jobs)
    checked = _checked(jobs) if plain is None else {"payloads": plain}
    user_ids = [job.user_id for job in jobs]
    params = {"user_ids": of_texts(user_ids), "kinds": of_texts([job.kind for job in jobs]), **checked}
    several = [user_id for user_id, count in Counter(user_ids).items() if count > 1]
    before = (_EXPECT_AGENTS, {"user_ids": of_texts(several)}) if several else None
    statement, params = _limited(_ENQUEUE_MANY if plain is None else _ENQUEUE_PLAIN, params, limits)
    return Request(statement, params, lambda rows: rows[0][0], before=before)


def _checked(jobs: Sequence[NewJob]) -> dict[str, str]:
    """Return the parameters that need a look at each job."""
    payloads, size = [], 0
    for place, job in enumerate(jobs, 1):
        try:
            payloads.append(check_new_job(job.kind, job.user_id, job.data, job.idempotency_key, job.delay))
        except InvalidJobError as error:
            raise InvalidJobError(f"job {place} of {len(jobs)}: {error}") from None
        size += json_bytes(payloads[-1])
        if size > MAX_MANY_BYTES:
            raise InvalidJobError("the payloads are over 256 MB in all; enqueue them in several calls")
    return {
        "payloads": of_texts(payloads),
        "keys": of_texts(job.idempotency_key for job in jobs),
        "delays": of_numbers(float(job.delay) or None for job in jobs),
    }


def _limited(call: str, params: dict[str, Any], limits: Limits) -> tuple[str, dict[str, Any]]:
    """Return the statement for a call, and its parameters, under these limits."""
    if limits == _DEFAULT:
        return call, params
    given = {
        "window": None if limits.window == DEFAULT_WINDOW else str(limits.window),
        "backlog": None if limits.backlog is None else str(limits.backlog),
    }
    return _WITH_LIMITS.format(call=call), {**params, **given}
