"""A day of work for 60 agents, as data, told in seconds.

Owns: `ENTRIES`. Guarantees: the same at every start; nothing in it depends on the order in which different agents run.
Must not: enqueue anything; who plays the day decides how fast.

What happens: at the start every agent's app syncs, many of them twice (equal syncs become one); bursts of orders
follow, with edits, customers and downloads; some taps on "submit" come twice with one key (one job); orders go to
Verona some seconds later (delayed jobs); alice, the hot agent, has more than 40 jobs, which go one at a time; and
another program takes bruno's login for itself, so that his jobs are requeued until it lets go. Two jobs fail, as they
should: an order and an invoice do not exist.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any, NamedTuple

AGENTS = (
    *("alice", "bruno", "carla", "dario", "elena", "fabio", "gaia", "hugo", "irene", "jacopo", "katia", "luca"),
    *("marta", "nino", "olga", "paolo", "quinto", "rosa", "sandro", "teresa", "ugo", "vera", "walter", "xenia"),
    *("ylenia", "zeno", "anna", "bice", "ciro", "delia", "ezio", "flora", "gino", "helga", "ivo", "jole"),
    *("kevin", "lidia", "mauro", "nadia", "oscar", "pia", "remo", "silvia", "tito", "ursula", "vito", "wanda"),
    *("adele", "bianca", "cesare", "donato", "emma", "furio", "greta", "ilaria", "lorenzo", "mirko", "noemi", "pietro"),
)
HOT_AGENT = "alice"
LOCKED_AGENT = "bruno"
LOCKED_AT = 4.0
"""The offset at which another program takes `LOCKED_AGENT`'s lock; his first job comes a second later."""
SYNCS = ("sync-customers", "sync-orders", "sync-ddt", "sync-invoices", "sync-products", "sync-prices")


class Entry(NamedTuple):
    """One enqueue of the day.

    Attributes:
        at: the offset in seconds from the start of the day.
        user_id: the agent.
        kind: the operation.
        data: its payload.
        idempotency_key: None, or the key that a second tap repeats.
        delay: seconds from the enqueue until it may run.
    """

    at: float
    user_id: str
    kind: str
    data: dict[str, Any]
    idempotency_key: str | None = None
    delay: float = 0.0


def _syncs(draw: random.Random) -> Iterator[Entry]:
    """Three rounds, every kind in turn; every second sync is asked for twice."""
    for round_, begin in enumerate((0.0, 26.0, 44.0)):
        for place, agent in enumerate(AGENTS):
            if agent == LOCKED_AGENT:
                continue
            entry = Entry(begin + draw.uniform(0.0, 3.0), agent, SYNCS[(place + 2 * round_) % len(SYNCS)], {})
            yield entry
            if place % 2:
                yield entry._replace(at=entry.at + 0.2)


def _lines(draw: random.Random) -> list[dict[str, Any]]:
    count = draw.randint(1, 4)
    return [{"article": f"A-{draw.randint(1, 80):03}", "quantity": draw.randint(1, 9)} for _ in range(count)]


def _order(draw: random.Random, at: float, agent: str, number: int) -> Iterator[Entry]:
    """An order as an agent places it: submitted, perhaps by a double tap, perhaps edited, later sent to Verona."""
    data = {"order": number, "customer": f"C-{draw.randint(1, 40):03}", "lines": _lines(draw)}
    double_tap, then = draw.randrange(3) == 0, draw.choice(("edit", "send", "leave"))
    submit = Entry(at, agent, "submit-order", data, f"order-{number}")
    yield submit
    if double_tap:
        yield submit._replace(at=at + draw.uniform(0.2, 1.0))
    if then == "edit":
        yield Entry(at + 2.0, agent, "edit-order", {"order": number, "lines": _lines(draw)}, f"edit-{number}")
    elif then == "send":
        yield Entry(at + 0.5, agent, "send-to-verona", {"order": number}, f"verona-{number}", delay=7.0)


def _orders(draw: random.Random) -> Iterator[Entry]:
    """Three bursts of orders; a number belongs to one agent, who has ten of them at hand."""
    for burst, begin in enumerate((5.0, 17.0, 36.0)):
        for place, agent in enumerate(AGENTS):
            if agent not in {HOT_AGENT, LOCKED_AGENT} and (place + burst) % 5 < 3:  # three agents of five
                yield from _order(draw, begin + draw.uniform(0.0, 2.0), agent, 10 * place + burst + 1)


def _visits(draw: random.Random) -> Iterator[Entry]:
    """What else an agent does between two orders."""
    for place, agent in enumerate(AGENTS):
        if agent in {HOT_AGENT, LOCKED_AGENT}:
            continue
        at = draw.uniform(8.0, 44.0)
        match place % 6:
            case 0:
                yield Entry(at, agent, "create-customer", {"name": f"Studio {agent}"}, f"customer-{agent}")
            case 1:
                yield Entry(at, agent, "update-customer", {"customer": "C-002", "note": "closed on Mondays"})
            case 2:
                yield Entry(at, agent, "download-ddt-pdf", {"number": f"D-{draw.randint(2001, 2030)}"})
            case 3:
                yield Entry(at, agent, "download-invoice-pdf", {"number": f"I-{draw.randint(3001, 3030)}"})
            case 4:
                yield Entry(at, agent, "sync-order-articles", {"order": draw.randint(1001, 1050)})
            case _:
                yield Entry(at, agent, "delete-order", {"order": draw.randint(1031, 1050)})


def _hot(draw: random.Random) -> Iterator[Entry]:
    """The agent who tidies up a whole list of customers, with a few orders between."""
    for step in range(40):
        customer = {"customer": f"C-{step + 1:03}", "note": f"visited, list {step // 10 + 1}"}
        yield Entry(2.0 + step * 0.5, HOT_AGENT, "update-customer", customer)
    for number in range(1, 6):
        yield from _order(draw, 3.0 + number * 4.0, HOT_AGENT, number)


def _locked() -> Iterator[Entry]:
    """The agent whose login another program uses for a while; his jobs keep their order."""
    begin = LOCKED_AT + 1.0
    for step in range(5):
        yield Entry(begin + step, LOCKED_AGENT, "submit-order", {"order": 11 + step}, f"order-{11 + step}")
    yield Entry(begin + 5.0, LOCKED_AGENT, "download-ddt-pdf", {"number": "D-2001"})
    yield Entry(begin + 6.0, LOCKED_AGENT, "sync-orders", {})


def _mistakes() -> Iterator[Entry]:
    """Two that the ERP refuses: the write fails at once, the read after its second attempt."""
    yield Entry(12.0, "carla", "delete-order", {"order": 999_999})
    yield Entry(12.5, "dario", "download-invoice-pdf", {"number": "I-9999"})


def _day() -> tuple[Entry, ...]:
    draw = random.Random(2)  # noqa: S311  # data of an example, no secret
    parts = (_syncs(draw), _orders(draw), _visits(draw), _hot(draw), _locked(), _mistakes())
    return tuple(sorted((entry for part in parts for entry in part), key=lambda entry: entry.at))


ENTRIES: tuple[Entry, ...] = _day()
