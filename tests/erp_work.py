"""The handlers of the example ERP for tests: what each is given and what comes of it, without a queue around them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from archibald_pgq.examples.erp import handlers
from archibald_pgq.examples.erp.client import Erp
from archibald_pgq.examples.erp.site import Site, serving

from archibald_pgq import JobContext
from archibald_pgq.domain.job import ClaimedJob
from archibald_pgq.domain.operations import CATALOGUE
from archibald_pgq.domain.step import Step, StepState
from archibald_pgq.store.request import Request


def handler_of(kind: str) -> Callable[[JobContext, dict[str, Any]], Awaitable[Any]]:
    handler: Callable[[JobContext, dict[str, Any]], Awaitable[Any]] = getattr(handlers, kind.replace("-", "_"))
    return handler


def context(kind: str, reached: Any = None) -> JobContext:
    policy = CATALOGUE[kind]
    job = ClaimedJob(
        lane=1, epoch=1, job_id=1, user_id="alice", kind=kind, attempt=1, max_attempts=1, payload={}, policy=policy, saved_state=reached,
    )  # fmt: skip

    async def ask(request: Request[Any]) -> Any:
        """Progress and states need no database here; a step is begun."""
        return Step(StepState.BEGUN)

    return JobContext(job, 1, ask)


DATA: dict[str, dict[str, Any]] = {
    "create-customer": {"name": "Studio Rossi"},
    "send-to-verona": {"order": 1001},
    "edit-order": {"order": 1002, "note": "call first"},
    "delete-order": {"order": 1003},
    "download-ddt-pdf": {"number": "D-2001"},
    "download-invoice-pdf": {"number": "I-3001"},
    "sync-order-articles": {"order": 1004},
}


RESULT: dict[str, dict[str, Any]] = {
    "submit-order": {"order": 1051, "euro": 5},
    "create-customer": {"customer": "C-041"},
    "update-customer": {"customer": "C-001"},
    "send-to-verona": {"order": 1001, "state": "sent"},
    "edit-order": {"order": 1002},
    "delete-order": {"order": 1003},
    "download-ddt-pdf": {"number": "D-2001"},
    "download-invoice-pdf": {"number": "I-3001"},
    "sync-order-articles": {"order": 1004, "articles": 3},
    "sync-customers": {"customers": 40},
    "sync-orders": {"orders": 50},
    "sync-ddt": {"ddt": 30},
    "sync-invoices": {"invoices": 30},
    "sync-products": {"products": 80},
    "sync-prices": {"prices": 80},
}


class Disturbed:
    """Stands in for the ERP's delays: counts the requests, and ends alice's session during some of them."""

    def __init__(self, lose: Callable[[int], bool]) -> None:
        self.lose = lose
        self.requests = 0
        self.site = Site(pause=self)

    async def __call__(self, seconds: float) -> None:
        self.requests += 1
        if self.lose(self.requests):
            self.site.sessions.end("alice")

    async def do(
        self, kind: str, monkeypatch: pytest.MonkeyPatch, client: Callable[[str], Any] = Erp, data: Any = None
    ) -> Any:
        """Do the operation with a client of the ERP at a URL; the result, or what the handler raised."""
        async with serving(self.site) as url:
            monkeypatch.setattr(handlers, "erp", client(url))
            return await handler_of(kind)(context(kind), data or DATA.get(kind, {}))
