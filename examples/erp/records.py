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
from typing import Any

Document = dict[str, Any]
"""One document as JSON."""

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


def page_of(documents: Sequence[Document], page: int) -> Document:
    """Return one page of ten of the documents, as JSON; `page` counts from 1."""
    pages = max(1, -(-len(documents) // PAGE))
    return {"page": page, "pages": pages, "rows": list(documents[(page - 1) * PAGE : page * PAGE])}


def check_lines(lines: object) -> list[Document]:
    """Return the lines of an order with their prices, or raise RefusedError."""
    if not isinstance(lines, list) or not lines:
        raise RefusedError("an order needs at least one line")
    priced: list[Document] = []
    for line in lines:
        if not isinstance(line, dict) or line.get("article") not in _EURO:
            raise RefusedError(f"{line!r} names no article of the list")
        quantity = line.get("quantity", 1)
        if not isinstance(quantity, int) or isinstance(quantity, bool) or quantity < 1:
            raise RefusedError(f"the quantity of {line['article']} must be a whole number from 1")
        priced.append({"article": line["article"], "quantity": quantity, "euro": _EURO[line["article"]] * quantity})
    return priced


@dataclass
class Books:
    """The documents of one login.

    Attributes:
        customers: by code, such as "C-001".
        orders: by number; those from 1001 on were there from the start.
        ddt: delivery notes by number, such as "D-2001".
        invoices: by number, such as "I-3001".
    """

    customers: dict[str, Document] = field(default_factory=dict)
    orders: dict[int, Document] = field(default_factory=dict)
    ddt: dict[str, Document] = field(default_factory=dict)
    invoices: dict[str, Document] = field(default_factory=dict)

    @classmethod
    def of(cls, login: str) -> Books:
        """Return the documents that `login` has when the ERP starts."""
        # crc32, because Python's hash of a text differs from process to process.
        draw = random.Random(zlib.crc32(login.encode()))  # noqa: S311  # data of an example, no secret
        books = cls()
        for number in range(1, 41):
            code = f"C-{number:03}"
            books.customers[code] = {"code": code, "name": f"Studio {draw.choice('ABCDEFGHILMNOPRSTUVZ')}{number}"}
        for number in range(1001, 1051):
            lines = [{"article": draw.choice(PRODUCTS)["article"], "quantity": draw.randint(1, 5)} for _ in range(3)]
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

    def add_customer(self, name: object) -> Document:
        """Create a customer under the next free code, or raise RefusedError."""
        if not isinstance(name, str) or not name.strip():
            raise RefusedError("a customer needs a name")
        code = f"C-{len(self.customers) + 1:03}"
        self.customers[code] = {"code": code, "name": name}
        return self.customers[code]

    def order(self, number: int) -> Document:
        """Return an order, or raise MissingError."""
        if number not in self.orders:
            raise MissingError(f"there is no order {number}")
        return self.orders[number]

    def add_order(self, number: object, customer: str, lines: object) -> Document:
        """Create an order; without a number it gets the next one.

        Raises:
            MissingError: the customer does not exist.
            RefusedError: the number is taken or no number, or a line is wrong.
        """
        if number is None:
            number = max(self.orders, default=0) + 1
        if not isinstance(number, int) or isinstance(number, bool) or number < 1:
            raise RefusedError(f"an order's number is a whole number from 1, not {number!r}")
        if number in self.orders:
            raise RefusedError(f"order {number} exists already")
        self.customer(customer)
        self.orders[number] = {"number": number, "customer": customer, "state": "open", "lines": check_lines(lines)}
        return self.orders[number]

    def open_order(self, number: int) -> Document:
        """Return an order that may still be changed, or raise MissingError or RefusedError."""
        order = self.order(number)
        if order["state"] != "open":
            raise RefusedError(f"order {number} was sent to Verona and can no longer be changed")
        return order
