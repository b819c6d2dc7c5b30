"""What stands in a job's `data`, checked: what is wrong with it is one sentence.

Must not: know whether an order, a customer or an article exists; that is for the ERP to say. All of it raises ErpError.
"""

from __future__ import annotations

from typing import Any

from .scraper import ErpError

Data = dict[str, Any]

USUAL_CUSTOMER = "C-001"


def order_number(data: Data) -> int:
    """Return `order`."""
    number = data.get("order")
    if not isinstance(number, int) or isinstance(number, bool):
        raise ErpError(f'"order" is {number!r}; it must be an order\'s number, such as {{"order": 1001}}')
    return number


def document_number(data: Data) -> str:
    """Return `number`."""
    number = data.get("number")
    if not isinstance(number, str) or not number.isascii() or not number.replace("-", "").isalnum():
        raise ErpError(f'"number" is {number!r}; it must be a document\'s number, such as {{"number": "D-2001"}}')
    return number


def customer_code(data: Data) -> str:
    """Return `customer`, or the usual one."""
    code = data.get("customer", USUAL_CUSTOMER)
    if not isinstance(code, str) or not code.isascii() or not code.replace("-", "").isalnum():
        raise ErpError(f'"customer" is {code!r}; it must be a customer\'s code, such as {{"customer": "C-001"}}')
    return code


def text_of(data: Data, name: str) -> str:
    """Return a text, empty if it is not there."""
    text = data.get(name, "")
    if not isinstance(text, str):
        raise ErpError(f'"{name}" is {text!r}; it must be a text')
    return text


def columns_of(lines: object) -> dict[str, list[str]]:
    """Return the columns of an order's form."""
    if not isinstance(lines, list) or not all(isinstance(line, dict) for line in lines):
        raise ErpError(f'"lines" is {lines!r}; it must be a list such as [{{"article": "A-001", "quantity": 1}}]')
    return {
        "article": [str(line.get("article", "")) for line in lines],
        "quantity": [str(line.get("quantity", 1)) for line in lines],
    }
