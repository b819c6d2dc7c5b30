"""The example ERP over real HTTP: its pages, forms and sessions as a browser gets them."""

from __future__ import annotations

import asyncio
import io
import re
from collections.abc import AsyncIterator
from copy import deepcopy
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import quote

import aiohttp
import pytest
from archibald_pgq.examples.erp.client import Erp
from archibald_pgq.examples.erp.pdf import document
from archibald_pgq.examples.erp.records import PRICES, PRODUCTS, Books
from archibald_pgq.examples.erp.scraper import ErpError
from archibald_pgq.examples.erp.sessions import PASSWORD, SESSION_COOKIE, SESSION_SECONDS, TICKET_COOKIE
from archibald_pgq.examples.erp.site import Site, serving
from archibald_pgq.examples.erp.visit import TOKEN_FIELD
from bs4 import BeautifulSoup
from pypdf import PdfReader

from tests.erp import FAST, browser, gated, get, post, reply, sign_in, signed_in, stats

GRIDS = ("/customers", "/orders", "/orders/1001/articles", "/ddt", "/invoices", "/products", "/prices")
PAGES = (
    *("/", *GRIDS, "/customers/new", "/customers/C-001", "/customers/C-001/edit"),
    *("/orders/new", "/orders/1001", "/orders/1001/edit"),
)
EVIL = """<script>alert("1")</script>'"""


@pytest.fixture
def site() -> Site:
    return Site(FAST)


@pytest.fixture
async def url(site: Site) -> AsyncIterator[str]:
    async with serving(site) as address:
        yield address


@pytest.fixture
async def alice(url: str) -> AsyncIterator[aiohttp.ClientSession]:
    async with signed_in(url, "alice") as http:
        yield http


# --- one thing at a time per login ---


async def test_a_second_simultaneous_request_of_a_login_is_refused_and_counted() -> None:
    async with gated("alice") as (site, gate, [alice]):
        first = asyncio.create_task(get(alice, "/customers"))
        await gate.entered.get()

        refusal = await get(alice, "/orders")
        gate.open.set()

        assert (refusal.status, refusal.page.message) == (409, "alice has another request under way")
        assert (await first).status == 200
        numbers = await stats(alice)
        assert (numbers["simultaneous"], numbers["refused_requests"], numbers["most_per_login"]) == (1, 1, 2)
        assert site.ledger.stats() == numbers


async def test_requests_of_different_logins_are_served_at_once() -> None:
    async with gated("alice", "bruno") as (site, gate, sessions):
        both = [asyncio.create_task(get(session, "/customers")) for session in sessions]
        await gate.entered.get()
        await gate.entered.get()
        gate.open.set()

        assert [answer.status for answer in await asyncio.gather(*both)] == [200, 200]
        numbers = site.ledger.stats()
        assert (numbers["simultaneous"], numbers["most_logins_at_once"], numbers["most_per_login"]) == (0, 2, 1)


async def test_a_request_whose_client_is_gone_is_over_has_done_nothing_and_the_login_is_free_again() -> None:
    async with gated("alice") as (site, gate, [alice]):
        gate.open.set()
        form = (await get(alice, "/orders/1001")).page.form("delete")
        gate.open.clear()
        gate.entered, gate.left = asyncio.Queue(), asyncio.Queue()
        lost = asyncio.create_task(reply(alice, "POST", form.action, form.filled({})))
        await gate.entered.get()
        lost.cancel()
        await gate.left.get()
        gate.open.set()

        assert (await get(alice, "/orders/1001")).status == 200
        assert site.ledger.stats()["simultaneous"] == 0


async def test_a_second_operation_of_a_login_is_refused_and_counted(url: str) -> None:
    erp = Erp(url)
    async with erp.operation("alice", "submit-order of job 1"):
        with pytest.raises(ErpError, match="refused to begin submit-order of job 2 for alice"):
            async with erp.operation("alice", "submit-order of job 2"):
                pass
        async with erp.operation("bruno", "submit-order of job 3"), browser(url) as http:
            numbers = await stats(http)

    assert (numbers["simultaneous"], numbers["refused_operations"]) == (1, 1)
    assert (numbers["most_per_login"], numbers["most_logins_at_once"]) == (2, 2)


async def test_operations_of_a_login_one_after_the_other_are_never_taken_for_simultaneous(url: str) -> None:
    erp = Erp(url)
    for number in range(50):
        async with erp.operation("alice", f"job {number}"):
            pass
    async with browser(url) as http:
        numbers = await stats(http)

    assert (numbers["simultaneous"], numbers["operations"], numbers["most_per_login"], numbers["logins"]) == (
        0,
        50,
        1,
        1,
    )


async def test_an_operation_that_is_cancelled_is_over(url: str) -> None:
    erp = Erp(url)
    begun = asyncio.Event()

    async def endless() -> None:
        async with erp.operation("alice", "job 1"):
            begun.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(endless())
    await begun.wait()
    task.cancel()
    await asyncio.wait([task])

    async with erp.operation("alice", "job 2") as desk:
        assert (await desk.open("/customers")).position == (1, 4)


# --- sessions ---


@pytest.mark.parametrize("path", [*PAGES, "/customers?page=2", "/ddt/D-2001.pdf", "/operation", "/operation?name=job"])
async def test_who_is_not_signed_in_is_sent_to_the_login_page_and_from_there_back(url: str, path: str) -> None:
    async with browser(url) as http:
        sent = await get(http, path)
        login = await get(http, sent.to)
        form = login.page.form("sign-in")
        back = await reply(http, "POST", form.action, form.filled({"login": "alice", "password": PASSWORD}))

    assert (sent.status, sent.to) == (302, f"/login?ReturnUrl={quote(path, safe='/')}")
    assert login.status == 200
    assert (back.status, back.to) == (303, path)


async def test_a_form_that_is_posted_without_a_session_does_nothing_and_leads_back_to_its_page(
    url: str, site: Site
) -> None:
    async with signed_in(url, "alice") as http:
        form = (await get(http, "/orders/1001")).page.form("delete")
        site.sessions.end("alice")
        sent = await reply(http, "POST", form.action, form.filled({}))

    assert (sent.status, sent.to) == (302, "/login?ReturnUrl=/orders/1001")
    assert 1001 in site.books["alice"].orders


@pytest.mark.parametrize(
    "typed",
    [{}, {"login": "alice"}, {"login": "alice", "password": "no"}, {"password": PASSWORD}],
    ids=["nothing", "no password", "wrong password", "no login"],
)
async def test_a_wrong_login_is_told_on_the_login_page_and_opens_nothing(url: str, typed: dict[str, str]) -> None:
    async with browser(url) as http:
        refused = await post(http, "/login", "sign-in", typed)
        after = await get(http, "/customers")

    assert (refused.status, refused.page.message) == (422, "the login or its password is wrong")
    assert refused.page.form("sign-in").fields["login"] == [typed.get("login", "")]
    assert refused.page.form("sign-in").fields["password"] == [""]
    assert TICKET_COOKIE not in refused.cookies
    assert after.status == 302


@pytest.mark.parametrize("back", ["//evil.example", "https://evil.example", r"/\evil.example", "/\t/evil.example", ""])
async def test_the_sign_in_never_leads_out_of_the_site(url: str, back: str) -> None:
    async with browser(url) as http:
        form = (await get(http, "/login")).page.form("sign-in")
        typed = {"login": "alice", "password": PASSWORD, "ReturnUrl": back}
        answer = await reply(http, "POST", form.action, form.filled(typed))

    assert (answer.status, answer.to) == (303, "/")


async def test_the_cookies_are_those_of_asp_net_and_every_page_prolongs_the_ticket(url: str) -> None:
    async with browser(url) as http:
        visitor = (await get(http, "/login")).cookies[SESSION_COOKIE]
        signed = (await sign_in(http, "alice")).cookies
        later = (await get(http, "/customers/C-999")).cookies  # also a page that says no

    for cookies in (signed, later):
        session, ticket = cookies[SESSION_COOKIE], cookies[TICKET_COOKIE]
        assert (session["httponly"], session["samesite"], session["max-age"]) == (True, "Lax", "")
        assert (ticket["httponly"], ticket["samesite"], ticket["max-age"]) == (True, "Lax", str(SESSION_SECONDS))
        assert parsedate_to_datetime(ticket["expires"]).tzinfo is not None
        assert session.value != visitor.value  # whoever knew the visitor's name does not know the session's
    assert later[TICKET_COOKIE].value == signed[TICKET_COOKIE].value


@pytest.mark.parametrize("kept", [SESSION_COOKIE, TICKET_COOKIE])
async def test_one_of_the_two_cookies_is_no_session(url: str, kept: str) -> None:
    async with browser(url) as http:
        cookies = (await sign_in(http, "alice")).cookies
    async with aiohttp.ClientSession(url, cookies={kept: cookies[kept].value}) as http:
        assert (await get(http, "/customers")).status == 302


async def test_signing_in_again_ends_the_session_before(url: str) -> None:
    async with signed_in(url, "alice") as first, signed_in(url, "alice") as second:
        assert (await get(first, "/customers")).status == 302
        assert (await get(second, "/customers")).status == 200


async def test_a_session_ends_after_silence_and_not_before() -> None:
    now = 0.0
    async with serving(Site(FAST, clock=lambda: now)) as url, signed_in(url, "alice") as http:
        for _ in range(3):
            now += SESSION_SECONDS
            assert (await get(http, "/customers")).status == 200
        now += SESSION_SECONDS + 1
        assert (await get(http, "/customers")).status == 302


# --- forms ---


async def token_of(http: aiohttp.ClientSession) -> str:
    token: str = (await get(http, "/customers/new")).page.form("save").fields[TOKEN_FIELD][0]
    return token


@pytest.mark.parametrize("path", ["/customers/new", "/customers/C-001/edit", "/orders/new", "/orders/1001"])
async def test_a_form_is_refused_without_the_token_of_this_session(
    url: str, site: Site, alice: aiohttp.ClientSession, path: str
) -> None:
    before = await token_of(alice)
    async with signed_in(url, "bruno") as bruno:
        of_another = await token_of(bruno)
    await sign_in(alice, "alice")
    action = "delete" if path == "/orders/1001" else "save"
    fields = dict((await get(alice, path)).page.form(action).fields)
    fields.pop(TOKEN_FIELD)
    books = deepcopy(site.books)

    for wrong in ({}, {TOKEN_FIELD: ""}, {TOKEN_FIELD: "x"}, {TOKEN_FIELD: before}, {TOKEN_FIELD: of_another}):
        data = [(name, text) for name, texts in fields.items() for text in texts] + list(wrong.items())
        answer = await reply(alice, "POST", path, data)
        assert (answer.status, "not from your session" in answer.page.message) == (400, True)
    assert site.books == books


async def test_the_login_form_needs_its_token_too(url: str) -> None:
    async with browser(url) as http:
        await get(http, "/login")
        typed = {"login": "alice", "password": PASSWORD, TOKEN_FIELD: "x"}
        assert (await reply(http, "POST", "/login", typed)).status == 400


LINES = {"article": ["A-001", "A-002"], "quantity": ["2", "1"]}


@pytest.mark.parametrize(
    ("path", "action", "values", "to", "shown"),
    [
        ("/customers/new", "save", {"name": "Studio Rossi"}, "/customers/C-041", "Studio Rossi"),
        ("/customers/C-001/edit", "save", {"name": "Studio Bianchi"}, "/customers/C-001", "Studio Bianchi"),
        ("/orders/new", "save", {"customer": "C-001", "number": "7", **LINES}, "/orders/7", "Order 7"),
        ("/orders/new", "save", {"customer": "C-001", **LINES}, "/orders/1051", "Order 1051"),
        ("/orders/1001/edit", "save", {"note": "call first"}, "/orders/1001", "call first"),
        ("/orders/1001", "send", {}, "/orders/1001", "was sent to Verona"),
        ("/orders/1001", "delete", {}, "/orders?deleted=1001", "Order 1001 was deleted"),
    ],
)
async def test_a_form_that_is_done_leads_to_the_page_that_shows_the_result(
    alice: aiohttp.ClientSession, *, path: str, action: str, values: dict[str, Any], to: str, shown: str
) -> None:
    done = await post(alice, path, action, values)

    assert (done.status, done.to) == (303, to)
    assert shown in (await get(alice, done.to)).html


ORDER = {"customer": "C-001", **LINES}


@pytest.mark.parametrize(
    ("path", "typed", "sentence"),
    [
        ("/customers/new", {"name": "  ", "note": "x"}, "a customer needs a name"),
        ("/customers/C-001/edit", {"name": "", "note": "x"}, "a customer needs a name"),
        ("/orders/new", {**ORDER, "number": "seven"}, "an order's number is a whole number from 1, not 'seven'"),
        ("/orders/new", {**ORDER, "number": "0"}, "an order's number is a whole number from 1, not '0'"),
        ("/orders/new", {**ORDER, "number": "9" * 5000}, "an order's number is a whole number from 1"),
        ("/orders/new", {**ORDER, "number": "1001"}, "order 1001 exists already"),
        ("/orders/new", {**ORDER, "customer": "C-999"}, "there is no customer C-999"),
        ("/orders/new", {**ORDER, "article": [], "quantity": []}, "an order needs at least one line"),
        ("/orders/new", {**ORDER, "article": ["A-001", "Z"]}, "'Z' names no article of the list"),
        ("/orders/1001/edit", {"quantity": ["1", "-1", "1"]}, "the quantity of A-"),
        ("/orders/1001/edit", {"quantity": ["1", "1.5", "1"]}, "must be a whole number from 1"),
    ],
)
async def test_a_form_that_is_refused_is_shown_again_with_the_reason_and_all_that_was_typed(
    site: Site, alice: aiohttp.ClientSession, path: str, typed: dict[str, Any], sentence: str
) -> None:
    books = deepcopy(site.books)

    refused = await post(alice, path, "save", typed)

    assert refused.status == 422
    assert sentence in refused.page.message
    shown = refused.page.form("save")
    assert shown.action == path
    for name, value in typed.items():
        wanted = [value.strip()] if isinstance(value, str) else [text for text in value if text]
        assert [text for text in shown.fields[name] if text] == [text for text in wanted if text]
    assert site.books == books


async def test_check_prices_tells_the_total_changes_nothing_and_leaves_room_for_more_lines(
    site: Site, alice: aiohttp.ClientSession
) -> None:
    books = deepcopy(site.books)
    many = {"article": ["A-001"] * 12, "quantity": ["1"] * 12}

    checked = await post(alice, "/orders/new", "check", {"customer": "C-001", **many})

    assert checked.status == 200
    assert int(checked.page.text("total")) == 12 * PRICES[0]["euro"]
    assert len(checked.page.form("save").fields["article"]) > 12
    assert site.books == books


@pytest.mark.parametrize("action", ["send", "delete"])
async def test_an_order_that_was_sent_meanwhile_stays_and_its_page_says_why(
    site: Site, alice: aiohttp.ClientSession, action: str
) -> None:
    form = (await get(alice, "/orders/1001")).page.form(action)
    await post(alice, "/orders/1001", "send")

    refused = await reply(alice, "POST", form.action, form.filled({}))

    assert refused.status == 422
    assert refused.page.message == "order 1001 was sent to Verona and can no longer be changed"
    assert 1001 in site.books["alice"].orders
    assert (await get(alice, "/orders/1001/edit")).status == 422


async def test_a_form_that_cannot_be_read_is_a_refusal(alice: aiohttp.ClientSession) -> None:
    for kind, body in [("application/x-www-form-urlencoded; charset=no", b"a=b"), ("text/plain", b"\xff"), ("", b"")]:
        async with alice.post("/customers/new", data=body, headers={"Content-Type": kind}) as answer:
            assert answer.status == 400
    async with alice.post("/customers/new", data=b"x=%ff\xff") as answer:
        assert answer.status == 400


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/nothing", 404), ("GET", "/orders/999999", 404), ("POST", "/stats", 405), ("GET", "/customers/X", 404)],
)
async def test_a_wrong_address_is_a_page_with_one_sentence(
    alice: aiohttp.ClientSession, method: str, path: str, status: int
) -> None:
    answer = await reply(alice, method, path)

    assert (answer.status, bool(answer.page.message)) == (status, True)


# --- pages ---


@pytest.mark.parametrize("path", GRIDS)
async def test_the_pages_of_a_grid_hold_ten_rows_each_and_together_all_of_them_once(url: str, path: str) -> None:
    books = Books.of("alice")
    wanted: list[Any] = {
        "/customers": list(books.customers),
        "/orders": list(books.orders),
        "/orders/1001/articles": [line["article"] for line in books.orders[1001]["lines"]],
        "/ddt": list(books.ddt),
        "/invoices": list(books.invoices),
        "/products": [product["article"] for product in PRODUCTS],
        "/prices": [price["article"] for price in PRICES],
    }[path]
    async with Erp(url).operation("alice", "job 1") as desk:
        pages = [page async for page in desk.grid(path)]

    assert [next(iter(row.values())) for page in pages for row in page.rows] == [str(name) for name in wanted]
    assert [page.position for page in pages] == [(number, len(pages)) for number in range(1, len(pages) + 1)]
    assert [len(page.rows) for page in pages[:-1]] == [10] * (len(pages) - 1)


async def test_a_page_behind_the_last_is_empty_and_leads_back(alice: aiohttp.ClientSession) -> None:
    answer = await get(alice, "/customers?page=99")

    assert (answer.status, answer.page.rows, answer.page.next) == (200, [], None)
    assert 'href="/customers?page=4"' in answer.html


@pytest.mark.parametrize("page", ["0", "-1", "x", "", "1e3", "9" * 5000])
async def test_a_page_number_that_is_none_is_refused(alice: aiohttp.ClientSession, page: str) -> None:
    answer = await get(alice, f"/customers?page={page}")

    assert (answer.status, "must be a whole number from 1" in answer.page.message) == (422, True)


async def test_what_people_typed_is_shown_as_text_and_never_as_html(url: str) -> None:
    async with signed_in(url, EVIL) as http:
        await post(http, "/customers/new", "save", {"name": EVIL, "note": EVIL})
        await post(http, "/orders/new", "save", {**ORDER, "customer": "C-041", "number": "7", "note": EVIL})
        answers = [
            *[
                await get(http, path)
                for path in ("/", "/customers?page=5", "/customers/C-041", "/customers/C-041/edit")
            ],
            *[await get(http, path) for path in ("/orders/7", "/orders/7/edit", "/orders/new", "/orders/7?page=1")],
            *[
                await get(http, f"/{page}{quote(EVIL)}")
                for page in ("customers?page=", "orders?deleted=", "login?ReturnUrl=")
            ],
            await post(
                http, "/orders/new", "save", {**ORDER, "number": EVIL, "customer": EVIL, "article": [EVIL, EVIL]}
            ),
            await post(http, "/login", "sign-in", {"login": EVIL}),
        ]

    for answer in answers:
        soup = BeautifulSoup(answer.html, "html.parser")
        assert not soup.find_all("script")
        assert not [name for tag in soup.find_all() for name in tag.attrs if name.startswith("alert") or "'" in name]
    assert all(EVIL.split(">", maxsplit=1)[0] not in answer.html for answer in answers)
    customer, form = answers[2].page, answers[3].page.form("save")
    assert (customer.text("name"), customer.text("note")) == (EVIL, EVIL)
    assert (form.fields["name"], form.fields["note"]) == ([EVIL], [EVIL])


@pytest.mark.parametrize("path", [*PAGES, "/login", "/nothing"])
async def test_a_page_has_no_scripts_and_loads_nothing(alice: aiohttp.ClientSession, path: str) -> None:
    answer = await get(alice, path)
    soup = BeautifulSoup(answer.html, "html.parser")

    assert not soup.select("script, img, iframe, [src], [onclick], [style]")
    assert [link["href"] for link in soup.select("link")] == ["data:,"]  # nor does a browser ask for an icon
    assert all(str(link["href"]).startswith("/") for link in soup.select("a"))


@pytest.mark.parametrize("path", ["/ddt/D-2001.pdf", "/invoices/I-3001.pdf"])
async def test_a_download_is_a_pdf_that_tells_the_document_and_its_lines(url: str, path: str) -> None:
    async with Erp(url).operation("alice", "job 1") as desk:
        content = await desk.pdf(path)

    (page,) = PdfReader(io.BytesIO(content), strict=True).pages
    text = page.extract_text()
    order = Books.of("alice").orders[1001]
    assert path.rsplit("/", maxsplit=1)[-1].removesuffix(".pdf") in text
    assert "Order 1001" in text
    for line in order["lines"]:
        assert f"{line['quantity']} x {line['article']}: {line['euro']} euro" in text


async def test_the_papers_of_an_order_that_was_deleted_stay_and_lead_to_no_order(
    alice: aiohttp.ClientSession, url: str
) -> None:
    assert 'href="/orders/1001"' in (await get(alice, "/ddt")).html
    await post(alice, "/orders/1001", "delete")
    listed = await get(alice, "/ddt")
    async with Erp(url).operation("alice", "job 1") as desk:
        content = await desk.pdf("/ddt/D-2001.pdf")

    assert listed.page.rows[0] == {"Number": "D-2001", "Order": "1001", "File": "PDF"}
    assert 'href="/orders/1001"' not in listed.html
    assert b"D-2001" in content


def test_the_table_of_a_pdf_points_at_its_objects() -> None:
    content = document(["A (round) \\ line", "Münster, 5 €"])

    (start,) = re.findall(rb"startxref\n(\d+)\n", content)
    assert content[int(start) :].startswith(b"xref\n0 6\n")
    places = [int(place) for place in re.findall(rb"(\d{10}) 00000 n ", content)]
    assert [content[place:].split(b"\n")[0] for place in places] == [b"%d 0 obj" % number for number in range(1, 6)]
