"""A thin handler for each of the 15 operations: what the agent asked for, on the pages of the ERP.

Owns: `app`, which `archibald-pgq run archibald_pgq.examples.erp:app` runs. Guarantees: a wrong payload fails the job
with one sentence; long ones report progress. Must not: guard against two jobs of one agent at once, which is the
queue's promise.

What may stand in `data`, all of it optional unless marked (!):
`order` a number (! but for submit-order), `customer` a code such as "C-001", `lines` a list of {"article", "quantity"},
`name`, `note`, `number` (!) of a DDT or invoice, `reference` a text by which the agent finds the order again (the
order's number, if that is given and this is not).

The handlers work at a `Desk`, which is the HTTP client's or a browser's; they are the same for both.
"""

from __future__ import annotations

import base64
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from functools import partial
from typing import TYPE_CHECKING

from archibald_pgq import Archibald, JobContext, LoginRefusedError, UnreachableError

from . import scraper
from .client import Erp
from .desk import Desk
from .lookups import deleted, find_customer, find_order, sent
from .payload import Data, columns_of, customer_code, document_number, order_number, text_of
from .scraper import Page

if TYPE_CHECKING:
    from playwright.async_api import Page as BrowserPage

app = Archibald()
erp = Erp()

USUAL_LINES = [{"article": "A-001", "quantity": 1}]


BROWSER = os.environ.get("ERP_BROWSER") == "1"
"""The agents drive a real browser; else the same pages over HTTP."""
operation = partial(app.operation, needs_browser=BROWSER)

SETTLE = 3.0
"""Seconds after which the ERP has saved what came from a browser that has died, or never will."""


@app.login
async def log_in(ctx: JobContext, page: BrowserPage) -> None:
    """Sign the agent in, in a new browser context."""
    with _told_to_the_queue():
        await login(ctx.user_id, page)


async def login(user_id: str, page: BrowserPage) -> None:
    """Sign an agent in, in a browser.

    Raises:
        scraper.LoginRefusedError: the ERP does not take the agent's password.
        ErpError: the ERP refuses otherwise, or cannot be reached.
    """
    from .browser import sign_in  # needs Playwright, which the handlers over HTTP do without
    from .tab import Tab

    await sign_in(Tab(page, await erp.url(), user_id))


@contextmanager
def _told_to_the_queue() -> Iterator[None]:
    """What is no fault of the job's is told in the queue's own words: the job goes back, and the agent may be paused."""
    try:
        yield
    except scraper.LoginRefusedError as error:
        raise LoginRefusedError(str(error)) from error
    except scraper.UnreachableError as error:
        raise UnreachableError(str(error)) from error


@asynccontextmanager
async def _at_work(ctx: JobContext) -> AsyncIterator[Desk]:
    """The job's agent at its desk in the ERP."""
    with _told_to_the_queue():
        async with await _operation(ctx) as desk:
            yield desk


async def _operation(ctx: JobContext) -> AbstractAsyncContextManager[Desk]:
    name = f"{ctx.kind} of job {ctx.job_id}"
    if not BROWSER:
        return erp.operation(ctx.user_id, name)
    from .browser import desk_in

    return desk_in(await ctx.page(), ctx.user_id, await erp.url(), name)


@operation("submit-order", priority=1, idempotent=True)
async def submit_order(ctx: JobContext, data: Data) -> Data:
    """Look up the customer, check the lines, place the order: once, whatever happens to this job.

    The agent's own reference is what the order is found by after a crash.
    """
    number = "" if data.get("order") is None else str(data["order"])

    async def make_reference() -> str:
        return text_of(data, "reference") or number or f"job {ctx.job_id}"

    typed = {
        "number": number,
        # who retries this job as another one gets the same; to make it has no effect, so that it may be made again
        "reference": await ctx.once("reference", make_reference, verify=make_reference),
        "customer": customer_code(data),
        **columns_of(data.get("lines", USUAL_LINES)),
    }
    async with _at_work(ctx) as desk:
        await desk.open(f"/customers/{typed['customer']}")
        await ctx.progress(20, "customer found")
        checked = await desk.submit("/orders/new", "check", typed)
        await ctx.progress(50, "lines checked")

        async def save() -> int:
            order = await desk.submit("/orders/new", "save", typed, shown=checked)
            return int(order.text("number"))

        saved = await ctx.once("save", save, verify=partial(find_order, desk, typed["reference"]), settle=SETTLE)
    return {"order": saved, "euro": int(checked.text("total"))}


@operation("create-customer")
async def create_customer(ctx: JobContext, data: Data) -> Data:
    """Look whether the list can be read, then add the customer: once, whatever happens to this job."""
    name = text_of(data, "name")
    async with _at_work(ctx) as desk:
        await desk.open("/customers")

        async def save() -> str:
            return (await desk.submit("/customers/new", "save", {"name": name})).text("code")

        code = await ctx.once("save", save, verify=partial(find_customer, desk, name), settle=SETTLE)
    return {"customer": code}


@operation("update-customer")
async def update_customer(ctx: JobContext, data: Data) -> Data:
    """Open the customer and save what has changed."""
    path = f"/customers/{customer_code(data)}/edit"
    changes = {name: text_of(data, name) for name in data.keys() & {"name", "note"}}
    async with _at_work(ctx) as desk:
        customer = await desk.submit(path, "save", changes)
    return {"customer": customer.text("code")}


@operation("send-to-verona")
async def send_to_verona(ctx: JobContext, data: Data) -> Data:
    """Open the order and send it; from then on it cannot be changed."""
    number = order_number(data)
    async with _at_work(ctx) as desk:

        async def send() -> str:
            return (await desk.submit(f"/orders/{number}", "send")).text("state")

        state = await ctx.once("send", send, verify=partial(sent, desk, number), settle=SETTLE)
    return {"order": number, "state": state}


@operation("edit-order")
async def edit_order(ctx: JobContext, data: Data) -> Data:
    """Open the order and save its new lines or note; what is not named stays as it is."""
    number = order_number(data)
    changes: dict[str, str | list[str]] = {"note": text_of(data, "note")} if "note" in data else {}
    if "lines" in data:
        changes.update(columns_of(data["lines"]))
    async with _at_work(ctx) as desk:
        await desk.submit(f"/orders/{number}/edit", "save", changes)
    return {"order": number}


@operation("delete-order")
async def delete_order(ctx: JobContext, data: Data) -> Data:
    """Open the order and delete it."""
    number = order_number(data)
    async with _at_work(ctx) as desk:

        async def delete() -> int:
            await desk.submit(f"/orders/{number}", "delete")
            return number

        await ctx.once("delete", delete, verify=partial(deleted, desk, number), settle=SETTLE)
    return {"order": number}


@operation("download-ddt-pdf")
async def download_ddt_pdf(ctx: JobContext, data: Data) -> Data:
    """Fetch a delivery note."""
    return await _download(ctx, "ddt", document_number(data))


@operation("download-invoice-pdf")
async def download_invoice_pdf(ctx: JobContext, data: Data) -> Data:
    """Fetch an invoice."""
    return await _download(ctx, "invoices", document_number(data))


async def _download(ctx: JobContext, what: str, number: str) -> Data:
    """Return the PDF in the result, as base64: it is a page, well below the 1 MB that a result may have."""
    async with _at_work(ctx) as desk:
        await desk.open(f"/{what}")
        await ctx.progress(40, "list read")
        content = await desk.pdf(f"/{what}/{number}.pdf")
    return {"number": number, "bytes": len(content), "pdf": base64.b64encode(content).decode()}


@operation("sync-order-articles")
async def sync_order_articles(ctx: JobContext, data: Data) -> Data:
    """Read the lines of one order."""
    number = order_number(data)
    async with _at_work(ctx) as desk:
        await desk.open(f"/orders/{number}")
        rows = sum([len(page.rows) async for page in _pages(ctx, desk, f"/orders/{number}/articles")])
    return {"order": number, "articles": rows}


async def _pages(ctx: JobContext, desk: Desk, path: str) -> AsyncIterator[Page]:
    """Read a list page by page and report progress."""
    async for page in desk.grid(path):
        number, pages = page.position
        await ctx.progress(100 * number // pages, f"page {number} of {pages}")
        yield page


async def _sync(ctx: JobContext, what: str) -> Data:
    """Read a whole list; stopped for a write of its agent, or by a failure, it goes on with the page that it had come to."""
    reached = ctx.state or {"page": f"/{what}", "rows": 0}
    rows = int(reached["rows"])
    async with _at_work(ctx) as desk:
        async for page in _pages(ctx, desk, reached["page"]):
            rows += len(page.rows)
            if page.next:
                await ctx.save({"page": page.next, "rows": rows})
                ctx.raise_if_cancelled()
    return {what: rows}


@operation("sync-customers")
async def sync_customers(ctx: JobContext, data: Data) -> Data:
    """Read all customers."""
    return await _sync(ctx, "customers")


@operation("sync-orders")
async def sync_orders(ctx: JobContext, data: Data) -> Data:
    """Read all orders."""
    return await _sync(ctx, "orders")


@operation("sync-ddt")
async def sync_ddt(ctx: JobContext, data: Data) -> Data:
    """Read all delivery notes."""
    return await _sync(ctx, "ddt")


@operation("sync-invoices")
async def sync_invoices(ctx: JobContext, data: Data) -> Data:
    """Read all invoices."""
    return await _sync(ctx, "invoices")


@operation("sync-products")
async def sync_products(ctx: JobContext, data: Data) -> Data:
    """Read all products."""
    return await _sync(ctx, "products")


@operation("sync-prices")
async def sync_prices(ctx: JobContext, data: Data) -> Data:
    """Read all prices."""
    return await _sync(ctx, "prices")
