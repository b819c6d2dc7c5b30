"""The example ERP and its client over real HTTP on the loopback interface."""

from __future__ import annotations

import asyncio
import base64
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any

import aiohttp
import pytest
from archibald_pgq.examples.erp import app, handlers
from archibald_pgq.examples.erp.client import Erp, ErpError
from archibald_pgq.examples.erp.pdf import document
from archibald_pgq.examples.erp.site import PASSWORD, SESSION_SECONDS, Site, serving

from archibald_pgq import JobContext
from archibald_pgq.domain.job import ClaimedJob
from archibald_pgq.domain.operations import CATALOGUE

FAST = 1000.0
SERVER = (sys.executable, "-m", "archibald_pgq.examples.erp.server")


class Gate:
    """Stands in for the ERP's delays: a request that comes waits until the gate is opened."""

    def __init__(self) -> None:
        self.entered = asyncio.Queue[float]()
        self.left = asyncio.Queue[bool]()
        self.open = asyncio.Event()

    async def __call__(self, seconds: float) -> None:
        self.entered.put_nowait(seconds)
        try:
            await self.open.wait()
        finally:
            self.left.put_nowait(True)


@pytest.fixture
async def url() -> AsyncIterator[str]:
    async with serving(Site(FAST)) as address:
        yield address


@asynccontextmanager
async def signed_in(url: str, login: str) -> AsyncIterator[aiohttp.ClientSession]:
    """A raw session with the cookie of `login`."""
    async with aiohttp.ClientSession(url, cookie_jar=aiohttp.CookieJar(unsafe=True)) as http:
        async with http.post("/login", data={"login": login, "password": PASSWORD}) as answer:
            assert answer.status == HTTPStatus.OK
        yield http


@asynccontextmanager
async def gated(*logins: str) -> AsyncIterator[tuple[Site, Gate, list[aiohttp.ClientSession]]]:
    """An ERP whose requests wait from now on, and a signed-in session for each login."""
    gate = Gate()
    gate.open.set()
    site = Site(pause=gate)
    async with serving(site) as url:
        sessions = [signed_in(url, login) for login in logins]
        entered = [await session.__aenter__() for session in sessions]
        gate.open.clear()
        gate.entered = asyncio.Queue()
        gate.left = asyncio.Queue()
        try:
            yield site, gate, entered
        finally:
            gate.open.set()
            for session in sessions:
                await session.__aexit__(None, None, None)


async def get(http: aiohttp.ClientSession, path: str) -> tuple[int, Any]:
    async with http.get(path) as answer:
        return answer.status, await answer.json()


async def test_a_second_simultaneous_request_of_a_login_is_refused_and_counted() -> None:
    async with gated("alice") as (site, gate, [alice]):
        first = asyncio.create_task(get(alice, "/customers"))
        await gate.entered.get()

        status, refusal = await get(alice, "/orders")
        gate.open.set()

        assert (status, refusal) == (409, {"error": "alice has another request under way"})
        assert (await first)[0] == 200
        _, stats = await get(alice, "/stats")
        assert (stats["simultaneous"], stats["refused_requests"], stats["most_per_login"]) == (1, 1, 2)
        assert site.ledger.stats() == stats


async def test_requests_of_different_logins_are_served_at_once() -> None:
    async with gated("alice", "bruno") as (site, gate, sessions):
        both = [asyncio.create_task(get(session, "/customers")) for session in sessions]
        await gate.entered.get()
        await gate.entered.get()
        gate.open.set()

        assert [status for status, _ in await asyncio.gather(*both)] == [200, 200]
        stats = site.ledger.stats()
        assert (stats["simultaneous"], stats["most_logins_at_once"], stats["most_per_login"]) == (0, 2, 1)


async def test_a_request_whose_client_is_gone_is_over_and_the_login_free_again() -> None:
    async with gated("alice") as (site, gate, [alice]):
        lost = asyncio.create_task(get(alice, "/customers"))
        await gate.entered.get()
        lost.cancel()
        await gate.left.get()
        gate.open.set()

        assert (await get(alice, "/orders"))[0] == 200
        assert site.ledger.stats()["simultaneous"] == 0


async def test_a_second_operation_of_a_login_is_refused_and_counted(url: str) -> None:
    erp = Erp(url)
    async with erp.operation("alice", "submit-order of job 1"):
        with pytest.raises(ErpError, match="refused to begin submit-order of job 2 for alice"):
            async with erp.operation("alice", "submit-order of job 2"):
                pass
        async with erp.operation("bruno", "submit-order of job 3"), aiohttp.ClientSession(url) as http:
            _, stats = await get(http, "/stats")

    assert (stats["simultaneous"], stats["refused_operations"]) == (1, 1)
    assert (stats["most_per_login"], stats["most_logins_at_once"]) == (2, 2)


async def test_operations_of_a_login_one_after_the_other_are_never_taken_for_simultaneous(url: str) -> None:
    erp = Erp(url)
    for number in range(50):
        async with erp.operation("alice", f"job {number}"):
            pass
    async with aiohttp.ClientSession(url) as http:
        _, stats = await get(http, "/stats")

    assert (stats["simultaneous"], stats["operations"], stats["most_per_login"], stats["logins"]) == (0, 50, 1, 1)


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
        assert (await desk.get("/customers"))["pages"] == 4


@pytest.mark.parametrize("path", ["/customers", "/orders", "/ddt", "/invoices", "/products", "/prices", "/operation"])
async def test_without_a_session_every_page_asks_to_sign_in(url: str, path: str) -> None:
    async with aiohttp.ClientSession(url) as http:
        status, answer = await get(http, path)

    assert (status, "sign in" in answer["error"]) == (401, True)


@pytest.mark.parametrize("form", [{}, {"login": "alice"}, {"login": "alice", "password": "no"}, {"password": PASSWORD}])
async def test_a_wrong_login_is_refused(url: str, form: dict[str, str]) -> None:
    async with aiohttp.ClientSession(url) as http, http.post("/login", data=form) as answer:
        assert answer.status == HTTPStatus.FORBIDDEN


async def test_signing_in_again_ends_the_session_before(url: str) -> None:
    async with signed_in(url, "alice") as first, signed_in(url, "alice") as second:
        assert (await get(first, "/customers"))[0] == 401
        assert (await get(second, "/customers"))[0] == 200


async def test_a_session_ends_after_silence_and_not_before() -> None:
    now = 0.0
    async with serving(Site(FAST, clock=lambda: now)) as url, signed_in(url, "alice") as http:
        for _ in range(3):
            now += SESSION_SECONDS
            assert (await get(http, "/customers"))[0] == 200
        now += SESSION_SECONDS + 1
        assert (await get(http, "/customers"))[0] == 401


async def test_the_client_keeps_its_sign_in_and_renews_it_when_the_session_has_ended(url: str) -> None:
    erp = Erp(url)
    async with erp.operation("alice", "job 1") as desk:
        await desk.get("/customers")
    async with erp.operation("alice", "job 2") as desk:
        await desk.get("/customers")
        async with signed_in(url, "alice"):
            assert (await desk.get("/orders"))["page"] == 1
    async with signed_in(url, "alice") as http:
        async with erp.operation("alice", "job 3"):
            pass
        _, stats = await get(http, "/stats")

    # Two of these tests' own, and the client's: the first, one after each of them.
    assert stats["logins"] == 5


async def test_what_the_erp_refuses_is_one_sentence_with_its_status(url: str) -> None:
    async with Erp(url).operation("alice", "job 1") as desk:
        with pytest.raises(ErpError, match=r"there is no order 999999 \(404\)"):
            await desk.get("/orders/999999")
        with pytest.raises(ErpError, match=r"an order needs at least one line \(422\)"):
            await desk.post("/orders/check", {"lines": []})
        await desk.post("/orders/1001/send", {})
        with pytest.raises(ErpError, match=r"order 1001 was sent to Verona and can no longer be changed \(422\)"):
            await desk.delete("/orders/1001")


async def test_an_erp_that_does_not_answer_is_one_sentence(unused_tcp_port: int) -> None:
    with pytest.raises(ErpError, match="the ERP cannot be reached"):
        async with Erp(f"http://127.0.0.1:{unused_tcp_port}").operation("alice", "job 1"):
            pass


@pytest.mark.parametrize("path", ["/ddt/D-2001.pdf", "/invoices/I-3001.pdf"])
async def test_a_download_is_a_pdf(url: str, path: str) -> None:
    async with Erp(url).operation("alice", "job 1") as desk:
        content = await desk.pdf(path)

    assert content.startswith(b"%PDF-1.4\n")
    assert content.endswith(b"%%EOF\n")
    assert path.rsplit("/", maxsplit=1)[-1].removesuffix(".pdf").encode() in content


def test_the_table_of_a_pdf_points_at_its_objects() -> None:
    content = document(["A (round) \\ line", "Münster, 5 €"])

    (start,) = re.findall(rb"startxref\n(\d+)\n", content)
    assert content[int(start) :].startswith(b"xref\n0 6\n")
    places = [int(place) for place in re.findall(rb"(\d{10}) 00000 n ", content)]
    assert [content[place:].split(b"\n")[0] for place in places] == [b"%d 0 obj" % number for number in range(1, 6)]


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


def handler_of(kind: str) -> Callable[[JobContext, dict[str, Any]], Awaitable[Any]]:
    handler: Callable[[JobContext, dict[str, Any]], Awaitable[Any]] = getattr(handlers, kind.replace("-", "_"))
    return handler


def context(kind: str) -> JobContext:
    async def write(job_id: int, percent: int, label: str | None) -> None:
        assert 0 <= percent <= 100

    policy = CATALOGUE[kind]
    job = ClaimedJob(
        lane=1, epoch=1, job_id=1, user_id="alice", kind=kind, attempt=1, max_attempts=1, payload={}, policy=policy
    )

    async def save(state: str) -> None:
        raise AssertionError("no handler of the example saves a state")

    return JobContext(job, write, save)


DATA: dict[str, dict[str, Any]] = {
    "create-customer": {"name": "Studio Rossi"},
    "send-to-verona": {"order": 1001},
    "edit-order": {"order": 1002, "note": "call first"},
    "delete-order": {"order": 1003},
    "download-ddt-pdf": {"number": "D-2001"},
    "download-invoice-pdf": {"number": "I-3001"},
    "sync-order-articles": {"order": 1004},
}


@pytest.mark.parametrize("kind", sorted(CATALOGUE))
async def test_every_handler_does_its_work_in_the_erp(url: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handlers, "erp", Erp(url))

    result = await handler_of(kind)(context(kind), DATA.get(kind, {}))

    assert result
    if "pdf" in result:
        assert base64.b64decode(result["pdf"]).startswith(b"%PDF-")


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
