"""The client and the handlers on the pages of the example ERP, over real HTTP; and the ERP as a process."""

from __future__ import annotations

import asyncio
import base64
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from archibald_pgq.examples.erp import app, handlers
from archibald_pgq.examples.erp.client import Erp
from archibald_pgq.examples.erp.records import Books
from archibald_pgq.examples.erp.scraper import ErpError
from archibald_pgq.examples.erp.sessions import SESSION_SECONDS
from archibald_pgq.examples.erp.site import Site, serving

from archibald_pgq.domain.operations import CATALOGUE
from tests.erp import FAST
from tests.erp_work import DATA, RESULT, Disturbed, context, handler_of

SERVER = (sys.executable, "-m", "archibald_pgq.examples.erp.server")


@pytest.fixture
def site() -> Site:
    return Site(FAST)


@pytest.fixture
async def url(site: Site) -> AsyncIterator[str]:
    async with serving(site) as address:
        yield address


# --- the client ---


async def test_the_client_keeps_its_sign_in_and_renews_it_when_the_session_has_ended(url: str, site: Site) -> None:
    erp = Erp(url)
    for number in (1, 2):
        async with erp.operation("alice", f"job {number}") as desk:
            await desk.open("/customers")
    assert site.ledger.logins == 1
    async with erp.operation("alice", "job 3") as desk:
        site.sessions.end("alice")
        assert (await desk.open("/orders")).position == (1, 5)
    assert site.ledger.logins == 2
    site.sessions.end("alice")
    async with erp.operation("alice", "job 4"):
        pass
    assert site.ledger.logins == 3


async def test_a_session_that_ran_out_within_an_operation_is_renewed() -> None:
    now = 0.0
    site = Site(FAST, clock=lambda: now)
    async with serving(site) as url, Erp(url).operation("alice", "job 1") as desk:
        await desk.open("/orders/1001")
        now += SESSION_SECONDS + 1
        assert (await desk.submit("/orders/1001", "send")).text("state") == "sent"
    assert site.ledger.logins == 2


async def test_what_the_erp_refuses_is_one_sentence_with_its_status(url: str) -> None:
    async with Erp(url).operation("alice", "job 1") as desk:
        with pytest.raises(ErpError, match=r"GET /orders/999999: there is no order 999999 \(404\)"):
            await desk.open("/orders/999999")
        with pytest.raises(ErpError, match=r"POST /orders/new: an order needs at least one line \(422\)"):
            await desk.submit("/orders/new", "check")
        await desk.submit("/orders/1001", "send")
        with pytest.raises(ErpError, match="order 1001 was sent to Verona and can no longer be changed"):
            await desk.submit("/orders/1001", "delete")
        with pytest.raises(ErpError, match="the ERP sent no PDF for /ddt"):
            await desk.pdf("/ddt")
        with pytest.raises(ErpError, match="the ERP sent no page for /stats"):
            await desk.open("/stats")


async def test_a_page_without_what_is_looked_for_is_one_sentence(url: str) -> None:
    async with Erp(url).operation("alice", "job 1") as desk:
        page = await desk.open("/")
        with pytest.raises(ErpError, match="the page / shows no total"):
            page.text("total")
        with pytest.raises(ErpError, match="the page / has no button save"):
            page.form("save")
        with pytest.raises(ErpError, match="the form for /customers/new has no field colour"):
            await desk.submit("/customers/new", "save", {"colour": "blue"})


async def test_an_erp_that_does_not_answer_is_one_sentence(unused_tcp_port: int) -> None:
    with pytest.raises(ErpError, match="the ERP cannot be reached"):
        async with Erp(f"http://127.0.0.1:{unused_tcp_port}").operation("alice", "job 1"):
            pass


def test_without_erp_url_the_client_serves_an_erp_of_its_own_that_ends_with_the_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("ERP_URL", raising=False)
    erp = Erp()

    async def reachable(url: str) -> bool:
        try:
            async with aiohttp.ClientSession(url) as http, http.get("/stats"):
                return True
        except aiohttp.ClientConnectionError:
            return False

    async def own() -> str:
        first: str
        second: str
        first, second = await asyncio.gather(erp.url(), erp.url())
        assert first == second
        assert await reachable(first)
        return first

    address = asyncio.run(own())

    assert not asyncio.run(reachable(address))
    assert asyncio.run(own())


def test_erp_url_names_the_erp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ERP_URL", "http://127.0.0.1:8080/")

    assert asyncio.run(Erp().url()) == "http://127.0.0.1:8080"


def test_every_kind_of_the_catalogue_has_a_handler() -> None:
    assert app.kinds == sorted(CATALOGUE)


# --- the handlers ---


@pytest.mark.parametrize("kind", sorted(CATALOGUE))
async def test_every_handler_does_its_work_in_the_erp(url: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handlers, "erp", Erp(url))

    result = await handler_of(kind)(context(kind), DATA.get(kind, {}))

    pdf = base64.b64decode(result.pop("pdf", ""))
    assert pdf.startswith(b"%PDF-") == kind.endswith("-pdf")
    assert result == {**RESULT[kind], **({"bytes": len(pdf)} if pdf else {})}


async def test_an_order_is_submitted_edited_and_sent_as_its_data_says(
    url: str, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handlers, "erp", Erp(url))
    lines = [{"article": f"A-{number:03}", "quantity": number} for number in range(1, 7)]

    await handlers.submit_order(context("submit-order"), {"order": 7, "customer": "C-003", "lines": lines})
    await handlers.edit_order(context("edit-order"), {"order": 7, "note": "Ring at the\nback"})
    await handlers.edit_order(context("edit-order"), {"order": 7, "lines": lines[:2]})
    await handlers.send_to_verona(context("send-to-verona"), {"order": 7})
    await handlers.update_customer(context("update-customer"), {"customer": "C-003", "note": "visited"})

    order, customer = site.books["alice"].orders[7], site.books["alice"].customers["C-003"]
    assert (order["customer"], order["note"], order["state"]) == ("C-003", "Ring at the\nback", "sent")
    assert [(line["article"], line["quantity"]) for line in order["lines"]] == [("A-001", 1), ("A-002", 2)]
    assert (customer["name"], customer["note"]) == (Books.of("alice").customers["C-003"]["name"], "visited")


@pytest.mark.parametrize("kind", sorted(kind for kind, policy in CATALOGUE.items() if policy.job_class == "sync"))
async def test_a_sync_that_is_stopped_between_two_pages_goes_on_where_it_stopped(
    url: str, site: Site, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handlers, "erp", Erp(url))
    calm = await handler_of(kind)(context(kind), {})
    requests = site.ledger.stats()["requests"]
    stopped = context(kind)
    stopped.asked = True
    with pytest.raises(asyncio.CancelledError):
        await handler_of(kind)(stopped, {})
    assert await handler_of(kind)(context(kind, stopped.state), {}) == calm
    # the same pages, each read once; only the first run had to sign in
    assert site.ledger.stats()["requests"] - requests == requests - 1


@pytest.mark.parametrize("kind", sorted(CATALOGUE))
async def test_wherever_the_session_is_lost_the_operation_is_done_completely_and_once(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calm = Disturbed(lambda _: False)
    wanted = await calm.do(kind, monkeypatch)

    # The first request is the sign-in; a session that ends during the last one is nobody's loss.
    for number in range(2, calm.requests):
        disturbed = Disturbed(lambda request, lost=number: request == lost)  # type: ignore[misc]

        assert await disturbed.do(kind, monkeypatch) == wanted
        assert disturbed.site.books == calm.site.books
        assert disturbed.site.ledger.stats()["logins"] == 2
        assert disturbed.site.ledger.stats()["simultaneous"] == 0


@pytest.mark.parametrize("kind", ["submit-order", "edit-order", "delete-order", "create-customer"])
async def test_where_the_session_is_lost_again_and_again_the_operation_fails_with_one_sentence_and_does_nothing(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    disturbed = Disturbed(lambda request: request > 1)

    with pytest.raises(ErpError, match="the ERP has ended the session of alice"):
        await disturbed.do(kind, monkeypatch)
    assert disturbed.site.books == {"alice": Books.of("alice")}


@pytest.mark.parametrize(
    ("kind", "data", "sentence"),
    [
        ("edit-order", {}, '"order" is None'),
        ("delete-order", {"order": "1001; drop"}, "it must be an order's number"),
        ("send-to-verona", {"order": True}, "it must be an order's number"),
        ("download-ddt-pdf", {"number": "../stats"}, "it must be a document's number"),
        ("update-customer", {"customer": "C-001/../../stats"}, "it must be a customer's code"),
        ("create-customer", {}, "a customer needs a name"),
        ("submit-order", {"lines": [{"article": "nonsense"}]}, "names no article"),
        ("create-customer", {"name": 5}, '"name" is 5; it must be a text'),
        ("submit-order", {"lines": "A-001"}, "it must be a list such as"),
        ("submit-order", {"lines": []}, "an order needs at least one line"),
        ("submit-order", {"lines": [{"article": "A-001", "quantity": True}]}, "must be a whole number from 1"),
        ("submit-order", {"customer": "C-999"}, "there is no customer C-999"),
        ("submit-order", {"order": "seven"}, "an order's number is a whole number"),
    ],
)
async def test_a_wrong_payload_is_one_sentence(
    url: str, kind: str, data: dict[str, Any], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handlers, "erp", Erp(url))

    with pytest.raises(ErpError, match=re.escape(sentence)):
        await handler_of(kind)(context(kind), data)


def test_the_server_process_prints_its_url_and_ends_on_sigterm() -> None:
    with subprocess.Popen([*SERVER, "--port", "0"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        taken = subprocess.run(
            [*SERVER, "--port", url.rsplit(":", 1)[1]], capture_output=True, text=True, check=False, timeout=60
        )
        process.send_signal(signal.SIGTERM)
        code = process.wait(timeout=60)

    assert re.fullmatch(r"http://127\.0\.0\.1:\d+", url)
    assert code == 0
    assert taken.returncode == 2
    assert re.fullmatch(r"the example ERP cannot listen on port \d+: Address already in use\n", taken.stderr)


@pytest.mark.parametrize("argument", ["--port=-1", "--port=70000", "--port=x", "--speed=0", "--speed=nan", "--speed=x"])
def test_a_bad_argument_of_the_server_is_refused(argument: str) -> None:
    done = subprocess.run([*SERVER, argument], capture_output=True, text=True, check=False, timeout=60)

    assert done.returncode == 2
    assert "Traceback" not in done.stderr
