"""The example ERP going wrong on demand, and what of it can be asked for afterwards; over HTTP."""

from __future__ import annotations

import asyncio
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlencode

import aiohttp
import pytest
from archibald_pgq.examples.erp import handlers
from archibald_pgq.examples.erp.admin import PATH
from archibald_pgq.examples.erp.client import Erp, HttpDesk
from archibald_pgq.examples.erp.faults import SAYS_SO, SILENT, Faults, Saved
from archibald_pgq.examples.erp.lookups import deleted, find_customer, find_order, sent
from archibald_pgq.examples.erp.scraper import ErpError, LoginRefusedError, UnreachableError
from archibald_pgq.examples.erp.site import Site, serving

from archibald_pgq import Archibald
from tests.erp import FAST, browser, get, post, signed_in, stats
from tests.erp_work import context, handler_of
from tests.support import PATIENCE, Look, working

ORDER = {"customer": "C-001", "article": "A-001", "quantity": "1", "reference": "R-7"}


@pytest.fixture
def site() -> Site:
    return Site(FAST, faults_by_post=True)


@pytest.fixture
async def url(site: Site) -> AsyncIterator[str]:
    async with serving(site) as address:
        yield address


# --- orders ---


async def test_an_order_that_was_saved_before_the_connection_broke_is_found(url: str, site: Site) -> None:
    site.faults = Faults(saved=[Saved("alice", "R-7", lost=True)])
    async with Erp(url).operation("alice", "job 1") as desk:
        assert await find_order(desk, "R-7") is None
        with pytest.raises(UnreachableError, match="the ERP did not answer POST /orders/new"):
            await desk.submit("/orders/new", "save", ORDER)
        assert await find_order(desk, " R-7 ") == 1051
        # Neither another order nor another login is concerned.
        await desk.submit("/orders/new", "save", {**ORDER, "reference": "R-8"})
    async with Erp(url).operation("bruno", "job 2") as desk:
        await desk.submit("/orders/new", "save", ORDER)

    assert site.ledger.orders == {("alice", "R-7"): 1, ("alice", "R-8"): 1, ("bruno", "R-7"): 1}
    assert site.ledger.stats()["orders_twice"] == 0


async def test_an_answer_about_a_saved_order_comes_later_by_as_many_seconds_as_was_said() -> None:
    pauses: list[float] = []

    async def pause(seconds: float) -> None:
        pauses.append(seconds)

    site = Site(FAST, pause=pause)
    site.faults = Faults(saved=[Saved(seconds=2.5)])
    async with serving(site) as url, Erp(url).operation("alice", "job 1") as desk:
        await desk.submit("/orders/new", "check", ORDER)
        assert 2.5 not in pauses
        await desk.submit("/orders/new", "save", ORDER)

    assert pauses.count(2.5) == 1


@pytest.mark.parametrize("unique", [True, False])
async def test_a_number_that_is_taken_is_refused_or_the_order_gets_the_next_one_as_the_erp_was_started(
    unique: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = Site(FAST, unique_numbers=unique)
    async with serving(site) as url:
        monkeypatch.setattr(handlers, "erp", Erp(url))
        await handlers.submit_order(context("submit-order"), {"order": 7})
        if unique:
            with pytest.raises(ErpError, match="order 7 exists already"):
                await handlers.submit_order(context("submit-order"), {"order": 7})
        else:
            result = await handlers.submit_order(context("submit-order"), {"order": 7})
            assert result["order"] == 1051

    assert site.ledger.orders == {("alice", "7"): 1 if unique else 2}


async def test_each_effect_can_be_looked_up_before_and_after_it_happened(url: str) -> None:
    async with Erp(url).operation("alice", "job 1") as desk:
        placed = await desk.submit("/orders/new", "save", ORDER)
        number = int(placed.text("number"))
        assert await find_customer(desk, "Studio Rossi") is None
        assert (await sent(desk, number), await deleted(desk, number)) == (None, None)

        customer = await desk.submit("/customers/new", "save", {"name": "Studio Rossi"})
        await desk.submit(f"/orders/{number}", "send")
        other = int((await desk.submit("/orders/new", "save", {**ORDER, "reference": "R-8"})).text("number"))
        await desk.submit(f"/orders/{other}", "delete")

        assert await find_customer(desk, " Studio Rossi ") == customer.text("code")
        assert await sent(desk, number) == "sent"
        assert await deleted(desk, other) == other


@pytest.mark.parametrize(
    "asked",
    [
        ("create-customer", {"name": "Studio Rossi"}),
        ("send-to-verona", {"order": 1001}),
        ("delete-order", {"order": 1001}),
    ],
)
async def test_an_effect_whose_answer_was_lost_is_not_asked_of_the_erp_again(
    app: Archibald, look: Look, url: str, monkeypatch: pytest.MonkeyPatch, asked: tuple[str, dict[str, Any]]
) -> None:
    kind, data = asked
    posted: list[str] = []
    submit = HttpDesk.submit

    async def lost(self: HttpDesk, path: str, action: str, values: Any = None, shown: Any = None) -> Any:
        posted.append(action)
        await submit(self, path, action, values, shown)
        raise UnreachableError("the answer was lost")

    monkeypatch.setattr(HttpDesk, "submit", lost)
    monkeypatch.setattr(handlers, "erp", Erp(url))
    monkeypatch.setattr(handlers, "SETTLE", 0.0)
    app.operation(kind)(handler_of(kind))
    async with working(app):
        await (await app.enqueue(kind, user_id="alice", data=data)).wait(PATIENCE)
    assert len(posted) == 1
    assert await look.rows("SELECT state, attempt FROM archibald.job_history") == [("completed", 1)]


async def test_an_order_without_a_reference_is_never_one_that_was_placed_twice(url: str, site: Site) -> None:
    async with Erp(url).operation("alice", "job 1") as desk:
        for _ in range(2):
            await desk.submit("/orders/new", "save", {**ORDER, "reference": ""})
        with pytest.raises(ErpError, match="without a reference cannot be looked up"):
            await find_order(desk, " ")

    assert (site.ledger.stats()["orders"], site.ledger.stats()["orders_twice"]) == (2, 0)


@pytest.mark.parametrize("reference", ["R 7/ä&page=2", "100%", "<b>"])
async def test_orders_are_found_by_their_reference_page_by_page(url: str, site: Site, reference: str) -> None:
    async with Erp(url).operation("alice", "job 1") as desk:
        for _ in range(11):
            placed = await desk.submit("/orders/new", "save", {**ORDER, "reference": reference})
            assert placed.text("reference") == reference
        assert await find_order(desk, reference) == 1051
        first = await desk.open(f"/orders?{urlencode({'reference': reference})}")
        assert first.next is not None
        second = await desk.open(first.next)

    assert (first.position, second.position) == ((1, 2), (2, 2))
    assert [row["Reference"] for row in first.rows + second.rows] == [reference] * 11


async def test_more_lines_changes_nothing_and_keeps_what_was_typed(url: str, site: Site) -> None:
    async with signed_in(url, "alice") as http:
        new: dict[str, str | list[str]] = {
            **ORDER,
            "number": "no number",
            "article": ["A-001", "", ""],
            "quantity": ["", "", "x"],
        }
        edited: dict[str, str | list[str]] = {"note": "x"}
        for path, typed in [("/orders/new", new), ("/orders/1001/edit", edited)]:
            before = (await get(http, path)).page.form("save").fields
            more = await post(http, path, "more", typed)
            shown = more.page.form("save").fields
            assert more.status == 200
            assert len(shown["article"]) == len(before["article"]) + 10
            for name, value in typed.items():
                wanted = [value] if isinstance(value, str) else value
                assert [text for text in shown[name] if text] == [text for text in wanted if text]

    assert len(site.books["alice"].orders) == 50


# --- the whole ERP ---


@pytest.mark.parametrize("down", [SAYS_SO, SILENT])
async def test_an_erp_that_is_down_answers_no_page_and_is_as_before_when_it_is_up_again(
    url: str, site: Site, down: str
) -> None:
    erp = Erp(url)
    async with erp.operation("alice", "job 1") as desk:
        site.faults = Faults(down=down)
        with pytest.raises(UnreachableError):
            await desk.open("/customers")
        with pytest.raises(UnreachableError):
            await desk.submit("/customers/new", "save", {"name": "Studio Rossi"})
    with pytest.raises(UnreachableError):
        async with erp.operation("alice", "job 2"):
            pass
    async with browser(url) as http:
        assert (await stats(http))["logins"] == 1
    site.faults = Faults()
    async with erp.operation("alice", "job 3") as desk:
        await desk.open("/customers")

    assert site.ledger.logins == 1
    assert len(site.books["alice"].customers) == 40


async def test_a_password_is_refused_of_one_agent_only_and_who_is_signed_in_stays_so(url: str, site: Site) -> None:
    erp = Erp(url)
    async with erp.operation("alice", "job 1") as desk:
        site.faults = Faults(refused=frozenset({"alice"}))
        await desk.open("/customers")
        site.sessions.end("alice")
        with pytest.raises(LoginRefusedError):
            await desk.open("/customers")
    async with erp.operation("bruno", "job 2") as desk:
        await desk.open("/customers")


# --- from another process ---


async def test_faults_can_be_posted_and_taken_back(url: str, site: Site) -> None:
    wrong = {
        "down": SAYS_SO,
        "refused": ["alice"],
        "saved": [{"login": "alice", "reference": "R-7", "seconds": 2.5, "lost": True}],
    }
    async with aiohttp.ClientSession(url) as http:
        async with http.post(PATH, json=wrong) as answer:
            assert answer.status == 204
        assert site.faults == Faults(SAYS_SO, frozenset({"alice"}), (Saved("alice", "R-7", 2.5, True),))
        async with http.post(PATH, json={}) as answer:
            assert answer.status == 204
    assert site.faults == Faults()


@pytest.mark.parametrize(
    "document",
    [
        *([], "down", 7, {"up": True}, {"down": "x"}, {"down": 1}, {"refused": "alice"}, {"refused": [1]}),
        *({"saved": {}}, {"saved": ["x"]}, {"saved": [{"login": 1}]}, {"saved": [{"seconds": -1}]}),
        *({"saved": [{"seconds": 1e9}]}, {"saved": [{"when": 1}]}, {"saved": [{"lost": "yes"}]}),
    ],
)
async def test_what_are_no_faults_is_refused_with_one_sentence_and_changes_nothing(
    url: str, site: Site, document: Any
) -> None:
    site.faults = before = Faults(refused=frozenset({"bruno"}))
    async with aiohttp.ClientSession(url) as http, http.post(PATH, json=document) as answer:
        assert (answer.status, "these are no faults" in await answer.text()) == (400, True)
    assert site.faults is before


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [("{", "application/json", 400), ("{}", "text/plain", 415), ("{}", "application/json; charset=no", 400)],
)
async def test_a_body_that_is_no_json_is_refused(url: str, site: Site, body: str, kind: str, status: int) -> None:
    before = site.faults
    async with aiohttp.ClientSession(url) as http, http.post(PATH, data=body, headers={"Content-Type": kind}) as answer:
        assert answer.status == status
    assert site.faults is before


async def test_faults_cannot_be_posted_where_the_erp_was_not_started_so() -> None:
    async with (
        serving(Site(FAST)) as url,
        aiohttp.ClientSession(url) as http,
        http.post(PATH, json={"down": SAYS_SO}) as answer,
    ):
        assert answer.status == 404


def test_the_server_process_takes_faults_if_it_was_started_so() -> None:
    async def status_when_down(url: str) -> int:
        async with aiohttp.ClientSession(url) as http:
            async with http.post(PATH, json={"down": SAYS_SO}) as answer:
                assert answer.status == 204
            return (await get(http, "/login")).status

    server = (sys.executable, "-m", "archibald_pgq.examples.erp.server", "--faults", "--repeatable-numbers")
    with subprocess.Popen(server, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert asyncio.run(status_when_down(process.stdout.readline().strip())) == 503
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0


def test_the_handlers_need_no_playwright() -> None:
    code = "import sys; sys.modules['playwright'] = None; import archibald_pgq.examples.erp as erp; print(len(erp.app.kinds))"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)

    assert (done.returncode, re.findall(r"\d+", done.stdout)) == (0, ["15"]), done.stderr
