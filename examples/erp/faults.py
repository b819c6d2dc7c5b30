"""What is wrong with the example ERP at this moment, for tests of what is around it.

Owns: the faults and their JSON. Guarantees: nothing is wrong at the start; a document that says something unknown is
refused with one sentence and changes nothing. Must not: do anything; the site acts.

As JSON, with all that may stand there:

    {"down": "says so", "refused": ["alice"],
     "saved": [{"login": "alice", "reference": "R-7", "seconds": 2.5, "lost": true}]}
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

SAYS_SO, SILENT = "says so", "silent"


@dataclass(frozen=True)
class Saved:
    """What happens to the answer when an order has been saved, and only then.

    Attributes:
        login: whose orders; everybody's if empty.
        reference: the order with this reference; every order if empty.
        seconds: the answer comes so much later, whatever the ERP's speed.
        lost: no answer comes; the connection is closed instead.
    """

    login: str = ""
    reference: str = ""
    seconds: float = 0.0
    lost: bool = False


@dataclass(frozen=True)
class Faults:
    """All that is wrong.

    Attributes:
        down: empty; or what comes instead of each page, `SAYS_SO` (503) or `SILENT` (the connection is closed).
        refused: logins whose password the ERP refuses; who is signed in stays so.
        saved: for the answers to saved orders; the first that fits counts.
    """

    down: str = ""
    refused: frozenset[str] = frozenset()
    saved: Sequence[Saved] = ()

    def of_saved(self, login: str, reference: str) -> Saved:
        """Return what happens to the answer about an order that was just saved."""
        fitting = (one for one in self.saved if one.login in ("", login) and one.reference in ("", reference))
        return next(fitting, Saved())

    @classmethod
    def read(cls, document: object) -> Faults:
        """Return the faults that a JSON document names; what it does not name is as usual.

        Raises:
            ValueError: it says something unknown; the text is one sentence.
        """
        given = _named(document, {"down": str, "refused": list, "saved": list})
        if given.get("down", "") not in ("", SAYS_SO, SILENT):
            raise ValueError(f'"down" is {given["down"]!r}; it must be "", "{SAYS_SO}" or "{SILENT}"')
        refused = given.get("refused", [])
        if not all(isinstance(login, str) for login in refused):
            raise ValueError(f'"refused" is {refused!r}; it must be a list of logins')
        types = {"login": str, "reference": str, "seconds": (int, float), "lost": bool}
        saved = tuple(Saved(**_named(one, types)) for one in given.get("saved", []))
        if not all(0 <= one.seconds < 3600 for one in saved):
            raise ValueError('"seconds" must be from 0 to below 3600')
        return cls(given.get("down", ""), frozenset(refused), saved)


def _named(document: object, types: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(document, dict) or not document.keys() <= types.keys():
        raise ValueError(f"{document!r} must be an object with no other names than {', '.join(types)}")
    for name, value in document.items():
        if not isinstance(value, types[name]):
            raise ValueError(f'"{name}" is {value!r}, which is of the wrong type')
    return document
