"""The same handlers and the same desk in real Chromium, on the example ERP's real pages."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import psutil
import pytest
import pytest_asyncio
from archibald_pgq.examples.erp import handlers
from archibald_pgq.examples.erp.client import Erp
from archibald_pgq.examples.erp.desk import Desk
from archibald_pgq.examples.erp.faults import SAYS_SO, SILENT, Faults, Saved
from archibald_pgq.examples.erp.ledger import Ledger
from archibald_pgq.examples.erp.lookups import find_order
from archibald_pgq.examples.erp.scraper import ErpError, LoginRefusedError, UnreachableError
from archibald_pgq.examples.erp.sessions import SESSION_COOKIE, TICKET_COOKIE
from archibald_pgq.examples.erp.site import Site, serving

from archibald_pgq.domain.operations import CATALOGUE
from tests.chromium import CHROMIUM, needs_chromium
from tests.erp import FAST, Gate
from tests.erp_work import DATA, RESULT, Disturbed, context

if TYPE_CHECKING:
    from playwright.async_api import Browser, BrowserContext, Page

pytest.importorskip("playwright.async_api", reason="playwright is not installed, which drives the browser")
pytestmark = [pytest.mark.asyncio(loop_scope="module"), needs_chromium]


@asynccontextmanager
async def launched() -> AsyncIterator[Browser]:
    from playwright.async_api import async_playwright

    async with async_playwright() as playwright:
        # Chromium's sandbox refuses root, as which containers run.
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            await browser.close()


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def chromium() -> AsyncIterator[Browser]:
    async with launched() as browser:
        yield browser


@pytest_asyncio.fixture(loop_scope="module")
async def window(chromium: Browser) -> AsyncIterator[BrowserContext]:
    made = await chromium.new_context()
    yield made
    await made.close()


@pytest_asyncio.fixture(loop_scope="module")
async def page(window: BrowserContext) -> Page:
    return await window.new_page()


@pytest.fixture
def site() -> Site:
    return Site(FAST)


@pytest_asyncio.fixture(loop_scope="module")
async def url(site: Site) -> AsyncIterator[str]:
    async with serving(site) as address:
        yield address


def desk_in(page: Page, url: str, name: str = "job 1", **options: Any) -> AbstractAsyncContextManager[Desk]:
    from archibald_pgq.examples.erp.browser import desk_in

    made: AbstractAsyncContextManager[Desk] = desk_in(page, "alice", url, name, **options)
    return made


class BrowserErp:
    """The ERP for the handlers, in a browser's page instead of over HTTP."""

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self.address = url

    async def url(self) -> str:
        return self.address

    def operation(self, login: str, name: str) -> AbstractAsyncContextManager[Desk]:
        assert login == "alice"
        return desk_in(self.page, self.address, name)


class WatchedLedger(Ledger):  # type: ignore[misc]  # mypy does not see the example's types here
    """Tells when an operation was counted out."""

    def __init__(self) -> None:
        super().__init__()
        self.over = asyncio.Queue[str]()

    @contextmanager
    def operation(self, login: str, name: str) -> Iterator[None]:
        try:
            with super().operation(login, name):
                yield
        finally:
            self.over.put_nowait(name)


# --- the handlers ---


@pytest.mark.parametrize("kind", sorted(CATALOGUE))
async def test_every_handler_does_the_same_in_a_browser_as_over_http(
    page: Page, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    over_http, in_browser = Disturbed(lambda _: False), Disturbed(lambda _: False)

    wanted = await over_http.do(kind, monkeypatch)
    result = await in_browser.do(kind, monkeypatch, partial(BrowserErp, page))

    assert result == wanted
    assert result.items() >= RESULT[kind].items()
    assert in_browser.site.books == over_http.site.books
    numbers = in_browser.site.ledger.stats()
    assert (numbers["simultaneous"], numbers["most_per_login"], numbers["operations"]) == (0, 1, 1)


async def test_an_order_may_have_more_lines_than_its_form_and_fewer_than_before(
    page: Page, url: str, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handlers, "erp", BrowserErp(page, url))
    lines = [{"article": f"A-{number:03}", "quantity": number} for number in range(1, 18)]

    await handlers.submit_order(context("submit-order"), {"order": 7, "customer": "C-003", "lines": lines})
    seventeen = list(site.books["alice"].orders[7]["lines"])
    await handlers.edit_order(context("edit-order"), {"order": 7, "note": "Ring at the\nback", "lines": lines[:2]})

    order = site.books["alice"].orders[7]
    assert [(line["article"], line["quantity"]) for line in seventeen] == [(f"A-{n:03}", n) for n in range(1, 18)]
    assert [(line["article"], line["quantity"]) for line in order["lines"]] == [("A-001", 1), ("A-002", 2)]
    assert (order["customer"], order["note"], order["reference"]) == ("C-003", "Ring at the\nback", "7")


MANY_LINES = {"lines": [{"article": "A-001", "quantity": 1}] * 5, "reference": "R-7"}


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("submit-order", MANY_LINES),
        ("edit-order", DATA["edit-order"]),
        ("delete-order", DATA["delete-order"]),
        ("download-ddt-pdf", DATA["download-ddt-pdf"]),
        ("sync-ddt", {}),
    ],
)
async def test_wherever_the_session_is_lost_the_operation_is_done_completely_and_once(
    page: Page, kind: str, data: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    erp = partial(BrowserErp, page)
    calm = Disturbed(lambda _: False)
    wanted = await calm.do(kind, monkeypatch, erp, data)

    # The first three requests are the sign-in, the menu to which it leads, and the announcement that asked for it.
    for number in range(4, calm.requests):
        disturbed = Disturbed(lambda request, lost=number: request == lost)  # type: ignore[misc]

        assert await disturbed.do(kind, monkeypatch, erp, data) == wanted
        assert disturbed.site.books == calm.site.books
        assert disturbed.site.ledger.orders == calm.site.ledger.orders
        assert disturbed.site.ledger.stats()["logins"] == 2
        assert disturbed.site.ledger.stats()["simultaneous"] == 0


async def test_a_session_that_is_lost_while_the_operation_is_announced_is_renewed(
    page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = Disturbed(lambda request: request == 3).site
    async with serving(site) as url:
        monkeypatch.setattr(handlers, "erp", BrowserErp(page, url))
        await handlers.login("alice", page)  # two requests
        async with desk_in(page, url) as desk:
            assert (await desk.open("/customers")).position == (1, 4)

    numbers = site.ledger.stats()
    assert (numbers["logins"], numbers["operations"], numbers["simultaneous"]) == (2, 1, 0)


async def test_a_session_that_ends_right_after_its_sign_in_is_not_taken_for_a_form_that_was_done(
    page: Page, url: str, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = site.sessions.begin

    def lost_at_once(login: str) -> Any:
        session = begin(login)
        site.sessions.end(login)
        monkeypatch.setattr(site.sessions, "begin", begin)
        return session

    async with desk_in(page, url) as desk:
        shown = await desk.open("/orders/1001")
        monkeypatch.setattr(site.sessions, "begin", lost_at_once)
        site.sessions.end("alice")
        assert (await desk.submit("/orders/1001", "delete", shown=shown)).message == "Order 1001 was deleted."

    assert 1001 not in site.books["alice"].orders


@pytest.mark.parametrize("kind", ["submit-order", "delete-order"])
async def test_where_the_session_is_lost_again_and_again_the_operation_fails_with_one_sentence_and_does_nothing(
    page: Page, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    disturbed = Disturbed(lambda request: request > 3)

    with pytest.raises(ErpError, match="the ERP has ended the session of alice"):
        await disturbed.do(kind, monkeypatch, partial(BrowserErp, page))
    assert len(disturbed.site.books["alice"].orders) == 50


# --- signing in ---


async def test_a_login_in_the_browser_leaves_asp_net_cookies_and_is_good_for_the_operations_that_follow(
    page: Page, window: BrowserContext, url: str, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handlers, "erp", BrowserErp(page, url))

    await handlers.login("alice", page)
    cookies = {cookie["name"]: cookie for cookie in await window.cookies()}
    for number in (1, 2):
        async with desk_in(page, url, f"job {number}") as desk:
            assert (await desk.open("/customers")).position == (1, 4)

    assert cookies.keys() == {SESSION_COOKIE, TICKET_COOKIE}
    assert cookies[SESSION_COOKIE]["expires"] == -1
    assert cookies[TICKET_COOKIE]["expires"] > 0
    assert site.ledger.logins == 1


async def test_a_password_that_the_erp_refuses_is_told_from_an_erp_that_is_down(
    page: Page, window: BrowserContext, url: str, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handlers, "erp", BrowserErp(page, url))
    site.faults = Faults(refused=frozenset({"alice"}))
    with pytest.raises(LoginRefusedError, match=r"POST /login: the login or its password is wrong \(422\)"):
        await handlers.login("alice", page)
    with pytest.raises(LoginRefusedError):
        async with desk_in(page, url):
            pass
    with pytest.raises(LoginRefusedError, match=r"POST /login: the login or its password is wrong \(422\)"):
        async with Erp(url).operation("alice", "job 1"):
            pass
    site.faults = Faults(down=SAYS_SO)
    with pytest.raises(UnreachableError, match=r"refused GET /login: the ERP is out of order \(503\)"):
        await handlers.login("alice", page)
    site.faults = Faults(down=SILENT)
    with pytest.raises(UnreachableError, match="did not answer GET /login: ERR_EMPTY_RESPONSE"):
        await handlers.login("alice", page)
    site.faults = Faults()
    await handlers.login("alice", await window.new_page())


async def test_an_erp_that_is_not_there_is_one_sentence(
    page: Page, unused_tcp_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = f"http://127.0.0.1:{unused_tcp_port}"
    monkeypatch.setattr(handlers, "erp", BrowserErp(page, address))
    with pytest.raises(UnreachableError, match=r"did not answer GET /login: ERR_CONNECTION_REFUSED$"):
        await handlers.login("alice", page)
    with pytest.raises(UnreachableError, match=r"did not answer GET /operation\?name=job%201: ERR_CONNECTION_REFUSED$"):
        async with desk_in(page, address):
            pass


# --- what the ERP refuses ---


async def test_what_the_erp_refuses_is_the_same_sentence_as_over_http(page: Page, url: str) -> None:
    async def sentences(desk: Desk) -> list[str]:
        await desk.submit("/orders/1001", "send")
        attempts: list[Callable[[], Awaitable[object]]] = [
            lambda: desk.open("/orders/999999"),
            lambda: desk.open("/stats"),
            lambda: desk.submit("/orders/new", "check"),
            lambda: desk.submit("/orders/new", "save", {"customer": "C-999", "article": "A-001", "quantity": "1"}),
            lambda: desk.submit("/orders/1001", "delete"),
            lambda: desk.submit("/customers/new", "save", {"colour": "blue"}),
            lambda: desk.submit("/", "save"),
            lambda: desk.pdf("/ddt"),
            lambda: desk.pdf("/ddt/D-9999.pdf"),
        ]
        said = []
        for attempt in attempts:
            with pytest.raises(ErpError) as caught:
                await attempt()
            said.append(f"{type(caught.value).__name__}: {caught.value}")
        return said

    async with Erp(url).operation("alice", "job 1") as desk:
        wanted = await sentences(desk)
    async with serving(Site(FAST)) as another, desk_in(page, another) as desk:
        assert await sentences(desk) == wanted


async def test_an_answer_that_takes_too_long_is_one_sentence(page: Page) -> None:
    gate = Gate()
    gate.open.set()
    async with serving(Site(pause=gate)) as url, desk_in(page, url, patience=3) as desk:
        gate.open.clear()
        with pytest.raises(UnreachableError, match="did not answer GET /customers: it took too long"):
            await desk.open("/customers")
        gate.open.set()


# --- an order that may be there already ---

ORDER = {"customer": "C-001", "article": "A-001", "quantity": "1", "reference": "R-7"}


async def test_an_order_that_was_saved_before_the_connection_broke_was_sent_once_and_is_found(
    page: Page, url: str, site: Site
) -> None:
    site.faults = Faults(saved=[Saved("alice", "R-7", lost=True)])
    async with desk_in(page, url) as desk:
        assert await find_order(desk, "R-7") is None
        with pytest.raises(UnreachableError, match="did not answer POST /orders/new: "):
            await desk.submit("/orders/new", "save", ORDER)
        number = await find_order(desk, "R-7")

    assert number == 1051
    assert site.ledger.orders == {("alice", "R-7"): 1}


async def test_an_order_that_was_saved_while_its_answer_took_too_long_is_found(page: Page) -> None:
    late, gone = 3599, asyncio.Event()

    async def pause(seconds: float) -> None:
        if seconds == late:
            try:
                await asyncio.Event().wait()
            finally:
                gone.set()

    site = Site(pause=pause)
    site.faults = Faults(saved=[Saved(seconds=late)])
    async with serving(site) as url, desk_in(page, url, patience=3) as desk:
        with pytest.raises(UnreachableError, match="did not answer POST /orders/new: it took too long"):
            await desk.submit("/orders/new", "save", ORDER)
        await gone.wait()
        assert await find_order(desk, "R-7") == 1051

    assert site.ledger.orders == {("alice", "R-7"): 1}


async def test_the_erp_creates_an_order_twice_if_it_is_sent_twice_and_counts_it(
    page: Page, url: str, site: Site
) -> None:
    async with desk_in(page, url) as desk:
        for _ in range(2):
            await desk.submit("/orders/new", "save", ORDER)
        assert await find_order(desk, "R-7") == 1051
        assert await find_order(desk, "R") is None

    assert site.ledger.orders == {("alice", "R-7"): 2}
    assert site.ledger.stats()["orders_twice"] == 1


# --- one operation at a time ---


async def test_a_second_operation_of_a_login_is_refused_and_counted(
    page: Page, window: BrowserContext, url: str, site: Site
) -> None:
    async with desk_in(page, url, "job 1"):
        with pytest.raises(ErpError, match="refused to begin job 2 for alice"):
            async with desk_in(await window.new_page(), url, "job 2"):
                pass

    numbers = site.ledger.stats()
    assert (numbers["simultaneous"], numbers["refused_operations"], numbers["most_per_login"]) == (1, 1, 2)


async def test_operations_one_after_the_other_are_never_taken_for_simultaneous_and_leave_no_page(
    page: Page, window: BrowserContext, url: str, site: Site
) -> None:
    ledger = site.ledger = WatchedLedger()
    for number in range(10):
        async with desk_in(page, url, f"job {number}"):
            pass
        assert ledger.over.get_nowait() == f"job {number}"  # not some time later, when the next one may have begun

    numbers = site.ledger.stats()
    assert (numbers["simultaneous"], numbers["operations"], numbers["most_per_login"]) == (0, 10, 1)
    assert window.pages == [page]


async def test_the_operation_is_over_in_the_erp_when_the_context_is_closed(
    chromium: Browser, url: str, site: Site
) -> None:
    from playwright.async_api import Error

    ledger = site.ledger = WatchedLedger()
    context = await chromium.new_context()
    async with desk_in(await context.new_page(), url, "job 1") as desk:
        await context.close()
        assert await ledger.over.get() == "job 1"
        with pytest.raises(Error, match="closed"):
            await desk.open("/customers")


async def test_the_operation_is_over_in_the_erp_when_the_browser_is_killed(url: str, site: Site) -> None:
    from playwright.async_api import Error

    ledger = site.ledger = WatchedLedger()
    before = chromiums()
    async with launched() as browser:
        context = await browser.new_context()
        async with desk_in(await context.new_page(), url, "job 1") as desk:
            for process in chromiums() - before:
                with suppress(psutil.NoSuchProcess):  # it ended with one that was killed before
                    process.kill()
            assert await ledger.over.get() == "job 1"
            # The browser's end is not one of the ERP's errors.
            with pytest.raises(Error, match="closed"):
                await desk.open("/customers")


WORKER = """
import asyncio, sys
from playwright.async_api import async_playwright
from archibald_pgq.examples.erp.browser import desk_in

async def work():
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=sys.argv[1], args=["--no-sandbox"])
        context = await browser.new_context()
        async with desk_in(await context.new_page(), "alice", sys.argv[2], "job 1"):
            print("at work", flush=True)
            await asyncio.Event().wait()

asyncio.run(work())
"""


async def test_the_operation_is_over_in_the_erp_when_the_worker_is_killed(url: str, site: Site) -> None:
    ledger = site.ledger = WatchedLedger()
    worker = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", WORKER, str(CHROMIUM), url), stdout=asyncio.subprocess.PIPE
    )
    assert worker.stdout is not None
    assert await worker.stdout.readline() == b"at work\n"
    left = psutil.Process(worker.pid).children(recursive=True)
    try:
        worker.kill()
        await worker.wait()
        assert await ledger.over.get() == "job 1"
    finally:
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()


def chromiums() -> set[psutil.Process]:
    """The browsers that this process has started, without their own children."""
    found = set()
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            line = " ".join(process.cmdline())
            if "--user-data-dir=" in line and "--type=" not in line:
                found.add(process)
    return found
