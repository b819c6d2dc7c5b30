"""What can be changed in the example ERP: the forms for customers and orders, and what happens when they are posted.

Guarantees: a form that is refused is shown again, with all that was typed and the reason, and has changed nothing; one
that is accepted leads to the page that shows the result. Must not: wait, so that nothing is ever half done.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from itertools import zip_longest

from aiohttp import web

from .pages import show_order
from .records import Document, Line, MissingError, RefusedError, priced
from .visit import ACTION_FIELD, Visit, see

BLANK_LINES = 3
"""Free lines below those that are filled; "Check prices" adds as many again."""
MORE_LINES = 10
"""The button "More lines" adds so many."""


def new_customer(visit: Visit) -> web.Response:
    """Show the empty form."""
    return _customer_form(visit, "", "", "")


def add_customer(visit: Visit) -> web.Response:
    """Create a customer."""
    name, note = visit.typed("name"), visit.typed("note")
    try:
        customer = visit.books.add_customer(name, note)
    except RefusedError as error:
        return _customer_form(visit, "", name, note, str(error))
    return see(f"/customers/{customer['code']}")


def edit_customer(visit: Visit) -> web.Response:
    """Show the form with what is known of the customer."""
    customer = visit.books.customer(visit.request.match_info["code"])
    return _customer_form(visit, customer["code"], customer["name"], customer["note"])


def change_customer(visit: Visit) -> web.Response:
    """Save a customer."""
    code = visit.request.match_info["code"]
    name, note = visit.typed("name"), visit.typed("note")
    try:
        visit.books.change_customer(code, name, note)
    except RefusedError as error:
        return _customer_form(visit, code, name, note, str(error))
    return see(f"/customers/{code}")


def _customer_form(visit: Visit, code: str, name: str, note: str, error: str = "") -> web.Response:
    status = HTTPStatus.UNPROCESSABLE_ENTITY if error else HTTPStatus.OK
    return visit.show("customer_form.html", status, code=code, name=name, note=note, error=error)


@dataclass
class TypedOrder:
    """An order as it stands in the form, right or wrong; `lines` are pairs of article and quantity."""

    customer: str
    lines: Sequence[tuple[str, str]]
    number: str = ""
    reference: str = ""
    note: str = ""

    @classmethod
    def of(cls, visit: Visit) -> TypedOrder:
        """Return what was posted."""
        lines = zip_longest(visit.typed_lines("article"), visit.typed_lines("quantity"), fillvalue="")
        filled = [line for line in lines if any(line)]
        number, reference = visit.typed("number"), visit.typed("reference")
        return cls(visit.typed("customer"), filled, number, reference, visit.typed("note"))

    def read_number(self) -> int | None:
        """Return the number, None if it was left free, or raise RefusedError."""
        if not self.number:
            return None
        number = _whole(self.number)
        if not number:
            raise RefusedError(f"an order's number is a whole number from 1, not {self.number!r}")
        return number

    def read_lines(self) -> list[Line]:
        """Return the lines with their prices, or raise RefusedError."""
        return priced([(article, _whole(quantity)) for article, quantity in self.lines])


def new_order(visit: Visit) -> web.Response:
    """Show the empty form."""
    return _order_form(visit, None, TypedOrder("", []))


def add_order(visit: Visit) -> web.Response:
    """Create an order, or only say what it would cost."""
    typed = TypedOrder.of(visit)
    if visit.typed(ACTION_FIELD) == "more":
        return _order_form(visit, None, typed)
    try:
        number, lines = typed.read_number(), typed.read_lines()
        if visit.typed(ACTION_FIELD) != "save":
            return _order_form(visit, None, typed, lines)
        order = visit.books.add_order(number, typed.customer, lines, typed.note, typed.reference)
    except (MissingError, RefusedError) as error:
        return _order_form(visit, None, typed, error=str(error))
    visit.placed.append(typed.reference)
    return see(f"/orders/{order['number']}")


def edit_order(visit: Visit) -> web.Response:
    """Show the form with what the order holds; raises RefusedError for one that was sent."""
    order = visit.books.open_order(visit.order_number)
    lines = [(line["article"], str(line["quantity"])) for line in order["lines"]]
    return _order_form(visit, order, TypedOrder(order["customer"], lines, note=order["note"]), order["lines"])


def change_order(visit: Visit) -> web.Response:
    """Save an order, or only say what it would cost."""
    order, typed = visit.books.open_order(visit.order_number), TypedOrder.of(visit)
    if visit.typed(ACTION_FIELD) == "more":
        return _order_form(visit, order, typed)
    try:
        lines = typed.read_lines()
    except RefusedError as error:
        return _order_form(visit, order, typed, error=str(error))
    if visit.typed(ACTION_FIELD) != "save":
        return _order_form(visit, order, typed, lines)
    order.update(lines=lines, note=typed.note)
    return see(f"/orders/{order['number']}")


def _order_form(
    visit: Visit, order: Document | None, typed: TypedOrder, lines: Sequence[Line] = (), error: str = ""
) -> web.Response:
    """Show the form; `lines` are those whose prices are known, in the order of the typed ones."""
    prices = [str(line["euro"]) for line in lines] + [""] * (len(typed.lines) - len(lines))
    rows = [(*line, price) for line, price in zip(typed.lines, prices, strict=True)]
    blank = BLANK_LINES
    if visit.typed(ACTION_FIELD) == "more":
        blank = len(visit.typed_lines("article")) + MORE_LINES - len(rows)
    return visit.show(
        "order_form.html",
        HTTPStatus.UNPROCESSABLE_ENTITY if error else HTTPStatus.OK,
        order=order,
        typed=typed,
        rows=rows + [("", "", "")] * blank,
        euro=sum(line["euro"] for line in lines) if lines else None,
        error=error,
        customers=visit.books.customers.values(),
    )


def act_on_order(visit: Visit) -> web.Response:
    """Send an order to Verona or delete it, whichever button was pressed."""
    order = visit.books.order(visit.order_number)
    number = order["number"]
    try:
        visit.books.open_order(number)
        match visit.typed(ACTION_FIELD):
            case "send":
                order["state"] = "sent"
                return see(f"/orders/{number}")
            case "delete":
                del visit.books.orders[number]
                return see(f"/orders?deleted={number}")
        raise RefusedError("press one of the buttons")
    except RefusedError as error:
        return show_order(visit, order, HTTPStatus.UNPROCESSABLE_ENTITY, str(error))


def _whole(text: str) -> int:
    """Return the whole number from 1 that stands there, 0 if none does."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 9 else 0
