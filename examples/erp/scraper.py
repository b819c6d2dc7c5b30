"""What a page of the ERP shows, read from its HTML as a person reads it from the screen.

Guarantees: a form is sent back with all its fields, the hidden ones among them; what a page does not have is one
sentence. Must not: speak HTTP.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from bs4 import BeautifulSoup, Tag
from bs4.filter import SoupStrainer


class ErpError(Exception):
    """The ERP refused something or cannot be reached; the text is one sentence."""


class LoginRefusedError(ErpError):
    """The ERP does not take the login's password; trying again does not help."""


class MissingError(ErpError):
    """The ERP has no such document."""


class UnreachableError(ErpError):
    """The ERP cannot be reached, does not answer, or says that it is out of order; later it may be otherwise."""


@dataclass(frozen=True)
class Form:
    """A form: where it is posted, and what stands in its fields; a name may occur several times."""

    action: str
    fields: Mapping[str, Sequence[str]]

    def filled(self, values: Mapping[str, str | Sequence[str]]) -> list[tuple[str, str]]:
        """Return what to post: the form's own fields with `values` typed over them.

        Raises:
            ErpError: the form has no such field.
        """
        self.check(values)
        typed = {name: [value] if isinstance(value, str) else value for name, value in values.items()}
        return [(name, text) for name, texts in {**self.fields, **typed}.items() for text in texts]

    def check(self, names: Iterable[str]) -> None:
        """Raise ErpError if the form lacks a field of those names."""
        if missing := set(names) - self.fields.keys():
            raise ErpError(f"the form for {self.action} has no field {', '.join(sorted(missing))}")


class Page:
    """One page; `path` is where it was found."""

    def __init__(self, path: str, html: str) -> None:
        """Keep the HTML; it is read when something on the page is looked for, which costs some milliseconds."""
        self.path = path
        self._html = html

    @cached_property
    def _soup(self) -> BeautifulSoup:
        return BeautifulSoup(self._html, "html.parser", parse_only=SoupStrainer("main"))

    @property
    def message(self) -> str:
        """The page's sentence about what was done or refused; empty if it has none."""
        found = self._soup.select_one('[role="alert"], [role="status"]')
        return found.get_text(strip=True) if found else ""

    def text(self, name: str) -> str:
        """Return what stands at the place that is called `name`; raises ErpError."""
        found = self._soup.find(id=name)
        if found is None:
            raise ErpError(f"the page {self.path} shows no {name}")
        return found.get_text(strip=True)

    @property
    def rows(self) -> list[dict[str, str]]:
        """The rows of the page's grid, by the titles of its columns; raises ErpError."""
        grid = self._soup.find(id="grid")
        if grid is None:
            raise ErpError(f"the page {self.path} shows no grid")
        titles = [title.get_text(strip=True) for title in grid.find_all("th")]
        rows = [row.find_all("td") for row in grid.find_all("tr")]
        return [dict(zip(titles, (cell.get_text(strip=True) for cell in row), strict=True)) for row in rows if row]

    @property
    def position(self) -> tuple[int, int]:
        """Which page of a grid this is, and of how many; raises ErpError."""
        found = re.search(r"Page (\d+) of (\d+)", self.text("pager"))
        if found is None:
            raise ErpError(f"the page {self.path} does not say which page of its list it is")
        return int(found[1]), int(found[2])

    @property
    def next(self) -> str | None:
        """The address behind "Next"; None on the last page."""
        link = self._soup.select_one('#pager a[rel="next"]')
        return _attribute(link, "href") if link else None

    def form(self, action: str) -> Form:
        """Return the form with the button `action`, as it is sent when that is pressed.

        Raises:
            ErpError: there is no such button; the page's own sentence says why, if it has one.
        """
        button = self._soup.select_one(f'form button[value="{action}"]')
        form = button.find_parent("form") if button else None
        if button is None or form is None:
            raise ErpError(self.message or f"the page {self.path} has no button {action}")
        fields: dict[str, list[str]] = {}
        for field in form.select("input[name], textarea[name]"):
            text = field.get_text() if field.name == "textarea" else _attribute(field, "value")
            fields.setdefault(_attribute(field, "name"), []).append(text)
        fields[_attribute(button, "name")] = [action]
        return Form(_attribute(form, "action"), fields)


def _attribute(tag: Tag, name: str) -> str:
    return str(tag.get(name, ""))
