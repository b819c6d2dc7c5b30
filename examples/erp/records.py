"""What the example ERP knows: each login's customers, orders, DDT and invoices, and everybody's products.

Owns: the documents, their numbering and the rules of the ERP (an order that was sent can no longer be changed).
Guarantees: a login has the same documents at every start; each refusal is one sentence. Must not: know of HTTP,
sessions or delays.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypedDict

Document = dict[str, Any]
"""One document: the names of its fields and what stands there."""

PAGE = 10
PRODUCTS: list[Document] = [
    {"article": f"A-{number:03}", "name": f"Drill {number}", "stock": 40 + number * 7 % 60} for number in range(1, 81)
]
PRICES: list[Document] = [
    {"article": product["article"], "euro": 5 + place * 13 % 90} for place, product in enumerate(PRODUCTS)
]
_EURO: dict[str, int] = {price["article"]: price["euro"] for price in PRICES}


class MissingError(Exception):
    """No such document; the text says which."""


class RefusedError(Exception):
    """The ERP does not do this; the text says why."""


class Line(TypedDict):
    """One line of an order; `euro` is for the whole quantity."""

    article: str
    quantity: int
    euro: int


@dataclass(frozen=True)
class PageOf:
    """Ten documents of a list; `page` counts from 1."""

    page: int
    pages: int
    documents: Sequence[Document]


def page_of(documents: Sequence[Document], page: int) -> PageOf:
    """Return one page of ten of the documents; one behind the last is empty."""
    pages = max(1, -(-len(documents) // PAGE))
    return PageOf(page, pages, documents[(page - 1) * PAGE : page * PAGE])


def priced(lines: Sequence[tuple[str, int]]) -> list[Line]:
    """Return lines of article and quantity with their prices, or raise RefusedError."""
    if not lines:
        raise RefusedError("an order needs at least one line")
    found: list[Line] = []
    for article, quantity in lines:
        if article not in _EURO:
            raise RefusedError(f"{article!r} names no article of the list")
        if quantity < 1:
            raise RefusedError(f"the quantity of {article} must be a whole number from 1")
        found.append({"article": article, "quantity": quantity, "euro": _EURO[article] * quantity})
    return found


@dataclass
class Books:
    """The documents of one login.

    Attributes:
        customers: by code, such as "C-001".
        orders: by number; those from 1001 on were there from the start.
        ddt: delivery notes by number, such as "D-2001".
        invoices: by number, such as "I-3001".
        unique_numbers: an order's number may not be typed again; else the second order gets the next free one.
    """

    customers: dict[str, Document] = field(default_factory=dict)
    orders: dict[int, Document] = field(default_factory=dict)
    ddt: dict[str, Document] = field(default_factory=dict)
    invoices: dict[str, Document] = field(default_factory=dict)
    unique_numbers: bool = True

    @classmethod
    def of(cls, login: str, *, unique_numbers: bool = True) -> Books:
        """Return the documents that `login` has when the ERP starts."""
        # crc32, because Python's hash of a text differs from process to process.
        draw = random.Random(zlib.crc32(login.encode()))  # noqa: S311  # data of an example, no secret
        books = cls(unique_numbers=unique_numbers)
        for number in range(1, 41):
            code = f"C-{number:03}"
            name = f"Studio {draw.choice('ABCDEFGHILMNOPRSTUVZ')}{number}"
            books.customers[code] = {"code": code, "name": name, "note": ""}
        for number in range(1001, 1051):
            lines = priced([(draw.choice(PRODUCTS)["article"], draw.randint(1, 5)) for _ in range(3)])
            books.add_order(number, draw.choice(list(books.customers)), lines)
        for place, order in enumerate(list(books.orders)[:30], start=1):
            books.ddt[f"D-{2000 + place}"] = {"number": f"D-{2000 + place}", "order": order}
            books.invoices[f"I-{3000 + place}"] = {"number": f"I-{3000 + place}", "order": order}
        return books

    def customer(self, code: str) -> Document:
        """Return a customer, or raise MissingError."""
        if code not in self.customers:
            raise MissingError(f"there is no customer {code}")
        return self.customers[code]

    def add_customer(self, name: str, note: str = "") -> Document:
        """Create a customer under the next free code, or raise RefusedError."""
        code = f"C-{len(self.customers) + 1:03}"
        self.customers[code] = {"code": code, "name": _named(name), "note": note}
        return self.customers[code]

    def change_customer(self, code: str, name: str, note: str) -> None:
        """Save a customer, or raise MissingError or RefusedError."""
        self.customer(code).update(name=_named(name), note=note)

    def order(self, number: int) -> Document:
        """Return an order, or raise MissingError."""
        if number not in self.orders:
            raise MissingError(f"there is no order {number}")
        return self.orders[number]

    def add_order(
        self, number: int | None, customer: str, lines: Sequence[Line], note: str = "", reference: str = ""
    ) -> Document:
        """Create an order; without a number it gets the next one. A second one with the same reference is another order.

        Raises:
            MissingError: the customer does not exist.
            RefusedError: the number is taken.
        """
        if number in self.orders and self.unique_numbers:
            raise RefusedError(f"order {number} exists already")
        if number is None or number in self.orders:
            number = max(self.orders, default=0) + 1
        order = {"number": number, "customer": self.customer(customer)["code"], "state": "open", "note": note}
        self.orders[number] = {**order, "reference": reference, "lines": list(lines)}
        return self.orders[number]

    def open_order(self, number: int) -> Document:
        """Return an order that may still be changed, or raise MissingError or RefusedError."""
        order = self.order(number)
        if order["state"] != "open":
            raise RefusedError(f"order {number} was sent to Verona and can no longer be changed")
        return order


def _named(name: str) -> str:
    if not name:
        raise RefusedError("a customer needs a name")
    return name
