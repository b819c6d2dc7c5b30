"""What can be looked at in the example ERP: the menu, the grids, the details, the PDFs.

Guarantees: a page changes nothing. Must not: wait, or handle a posted form.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple
from urllib.parse import urlencode

from aiohttp import web

from . import pdf
from .records import PRICES, PRODUCTS, Document, MissingError, page_of
from .visit import Visit

NUMBERS = {"Quantity", "Stock", "Euro"}
"""Columns whose cells stand at the right."""


class Cell(NamedTuple):
    """What a grid shows at one place, perhaps as a link."""

    text: object
    link: str = ""


def operation(visit: Visit) -> web.Response:
    """Show a page that keeps an operation open as long as it is on the screen; its script does so by the WebSocket."""
    return visit.show("operation.html", name=visit.request.query.get("name", "an operation"))


def menu(visit: Visit) -> web.Response:
    """Show where one can go."""
    return visit.show("menu.html")


def customers(visit: Visit) -> web.Response:
    """Show a page of the customers."""

    def row(customer: Document) -> Iterable[Cell]:
        code = customer["code"]
        return Cell(code, f"/customers/{code}"), Cell(customer["name"]), Cell(customer["note"])

    new = Cell("New customer", "/customers/new")
    return _grid(visit, "Customers", ["Code", "Name", "Note"], list(visit.books.customers.values()), row, new=new)


def customer(visit: Visit) -> web.Response:
    """Show one customer."""
    return visit.show("customer.html", customer=visit.books.customer(visit.request.match_info["code"]))


def orders(visit: Visit) -> web.Response:
    """Show a page of the orders, perhaps only of those with a reference; after one was deleted it says so."""

    def row(order: Document) -> Iterable[Cell]:
        number, customer = order["number"], order["customer"]
        yield Cell(number, f"/orders/{number}")
        yield Cell(customer, f"/customers/{customer}")
        yield from (Cell(order["state"]), Cell(order["reference"]), Cell(_euro(order)))

    reference = visit.request.query.get("reference", "").strip()
    found = [order for order in visit.books.orders.values() if reference in ("", order["reference"])]
    deleted = visit.request.query.get("deleted", "")
    gone = deleted.isdigit() and deleted not in map(str, visit.books.orders)
    return _grid(
        visit,
        "Orders",
        ["Number", "Customer", "State", "Reference", "Euro"],
        found,
        row,
        new=Cell("New order", "/orders/new"),
        searched={"reference": reference},
        notice=f"Order {deleted} was deleted." if gone else "",
    )


def order(visit: Visit) -> web.Response:
    """Show one order."""
    return show_order(visit, visit.books.order(visit.order_number))


def show_order(visit: Visit, order: Document, status: int = 200, error: str = "") -> web.Response:
    """Show an order, perhaps with the reason why something was not done with it."""
    customer = visit.books.customer(order["customer"])
    return visit.show("order.html", status, order=order, customer=customer, euro=_euro(order), error=error)


def articles(visit: Visit) -> web.Response:
    """Show a page of an order's lines."""

    def row(line: Document) -> Iterable[Cell]:
        return map(Cell, (line["article"], line["quantity"], line["euro"]))

    number = visit.order_number
    lines = visit.books.order(number)["lines"]
    return _grid(visit, f"Articles of order {number}", ["Article", "Quantity", "Euro"], lines, row)


def ddt(visit: Visit) -> web.Response:
    """Show a page of the delivery notes."""
    return _printable(visit, "DDT", visit.books.ddt)


def ddt_pdf(visit: Visit) -> web.Response:
    """Return a delivery note as a file."""
    return _printed(visit, "DDT", visit.books.ddt)


def invoices(visit: Visit) -> web.Response:
    """Show a page of the invoices."""
    return _printable(visit, "Invoices", visit.books.invoices)


def invoice_pdf(visit: Visit) -> web.Response:
    """Return an invoice as a file."""
    return _printed(visit, "Invoice", visit.books.invoices)


def products(visit: Visit) -> web.Response:
    """Show a page of the products."""

    def row(product: Document) -> Iterable[Cell]:
        return map(Cell, (product["article"], product["name"], product["stock"]))

    return _grid(visit, "Products", ["Article", "Name", "Stock"], PRODUCTS, row)


def prices(visit: Visit) -> web.Response:
    """Show a page of the prices."""

    def row(price: Document) -> Iterable[Cell]:
        return map(Cell, (price["article"], price["euro"]))

    return _grid(visit, "Prices", ["Article", "Euro"], PRICES, row)


def _grid(
    visit: Visit,
    title: str,
    columns: Sequence[str],
    documents: Sequence[Document],
    row: Callable[[Document], Iterable[Cell]],
    *,
    new: Cell | None = None,
    searched: Mapping[str, str] | None = None,
    notice: str = "",
) -> web.Response:
    """Show a page of the documents; `searched` are the fields of the search above it, and what was looked for."""
    shown = page_of(documents, visit.page_number)
    query = urlencode({name: text for name, text in (searched or {}).items() if text})
    return visit.show(
        "grid.html",
        title=title,
        columns=columns,
        numbers=NUMBERS,
        rows=[tuple(row(document)) for document in shown.documents],
        page=shown.page,
        pages=shown.pages,
        path=visit.request.path,
        page_path=f"{visit.request.path}?{query}{'&' if query else ''}page=",
        searched=searched or {},
        new=new,
        notice=notice,
    )


def _printable(visit: Visit, title: str, documents: dict[str, Document]) -> web.Response:
    """Show a page of documents that can be had as PDF."""

    def row(document: Document) -> Iterable[Cell]:
        number, order = document["number"], document["order"]
        yield Cell(number)
        # A document outlives its order, which may be deleted.
        yield Cell(order, f"/orders/{order}" if order in visit.books.orders else "")
        yield Cell("PDF", f"{visit.request.path}/{number}.pdf")

    return _grid(visit, title, ["Number", "Order", "File"], list(documents.values()), row)


def _printed(visit: Visit, title: str, documents: dict[str, Document]) -> web.Response:
    number = visit.request.match_info["number"]
    if number not in documents:
        raise MissingError(f"there is no {title} {number}")
    order = documents[number]["order"]
    lines = visit.books.orders.get(order, {"lines": []})["lines"]
    text = [f"{title} {number}", f"Order {order}", ""]
    text += [f"{line['quantity']} x {line['article']}: {line['euro']} euro" for line in lines]
    headers = {"Content-Disposition": f'inline; filename="{number}.pdf"', "Cache-Control": "no-store"}
    return web.Response(body=pdf.document(text), content_type="application/pdf", headers=headers)


def _euro(order: Document) -> int:
    return sum(line["euro"] for line in order["lines"])
