"""A job to be: what somebody asks for, before it is one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)  # not frozen: that takes half as long again
class NewJob:
    """One of the jobs that `enqueue_many` is to enqueue.

    Attributes:
        kind: the operation.
        user_id: the agent, 1 to 200 characters; its jobs run one at a time.
        data: a JSON object of up to 1 MB, given to the handler unchanged.
        idempotency_key: makes repeated requests of this agent one job; see `Archibald.enqueue`.
        delay: seconds before which it must not run.
    """

    kind: str
    user_id: str = field(kw_only=True)
    data: Mapping[str, Any] = field(default_factory=dict, kw_only=True)
    idempotency_key: str | None = field(default=None, kw_only=True)
    delay: float = field(default=0, kw_only=True)
