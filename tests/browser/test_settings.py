"""The bounds of a pool, the margin at start, the rule for sessions, and where Chromium is looked for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from archibald_pgq.browser import PoolSettings, check_margin
from archibald_pgq.browser.chromium import find_chromium
from archibald_pgq.browser.session import AspNetSession, live_sessions
from archibald_pgq.errors import ConfigError


@pytest.mark.parametrize(
    ("concurrency", "browsers", "contexts"), [(10, 3, 5), (1, 3, 5), (5, 2, 5), (4, 1, 5), (1, 1, 2)]
)
def test_a_worker_may_have_as_many_jobs_as_there_are_contexts_with_one_browser_down(
    concurrency: int, browsers: int, contexts: int
) -> None:
    check_margin(concurrency, browsers, contexts)


@pytest.mark.parametrize(
    ("concurrency", "browsers", "contexts", "text"),
    [
        (
            11,
            3,
            5,
            "WORKER_CONCURRENCY is 11, but with one of 3 browsers down there are 10 contexts; "
            "lower it to 10, or raise ARCHIBALD_BROWSERS or ARCHIBALD_BROWSER_CONTEXTS",
        ),
        (
            5,
            1,
            5,
            "WORKER_CONCURRENCY is 5, but one browser of 5 contexts serves 4, for one is the margin; "
            "lower it to 4, or raise ARCHIBALD_BROWSERS or ARCHIBALD_BROWSER_CONTEXTS",
        ),
        (
            1,
            1,
            1,
            "WORKER_CONCURRENCY is 1, but one browser of 1 contexts serves 0, for one is the margin; "
            "raise ARCHIBALD_BROWSERS or ARCHIBALD_BROWSER_CONTEXTS",
        ),
    ],
)
def test_a_worker_with_more_jobs_than_that_is_refused_with_one_sentence(
    concurrency: int, browsers: int, contexts: int, text: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        check_margin(concurrency, browsers, contexts)
    assert str(caught.value) == text


@pytest.mark.parametrize("name", ["browsers", "contexts", "login_budget"])
def test_a_pool_of_nothing_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"^{name} of the browser pool is 0; it must be at least 1$"):
        PoolSettings(**{name: 0})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("cookies", "names"),
    [
        ([], set()),
        ([{"name": "theme", "expires": -1}], set()),
        ([{"name": "ASP.NET_SessionId", "expires": -1}], {"ASP.NET_SessionId"}),
        ([{"name": "ASP.NET_SessionId"}], {"ASP.NET_SessionId"}),
        ([{"name": ".ASPXAUTH", "expires": 1001}], {".ASPXAUTH"}),
        ([{"name": ".ASPXAUTH", "expires": 1000}], set()),
        ([{"name": ".AspNetCore.Cookies", "expires": 2000}], {".AspNetCore.Cookies"}),
        ([{"name": "MY_ASP.NET_SessionId_COPY", "expires": -1}], set()),
    ],
)
def test_a_session_is_live_while_its_cookie_is_there_and_has_not_expired(
    cookies: list[dict[str, object]], names: set[str]
) -> None:
    assert live_sessions(cookies, 1000.0) == names


class Cookies:
    """What the rule looks at of a context."""

    def __init__(self, *names: str) -> None:
        self.names = names

    async def cookies(self) -> list[dict[str, object]]:
        return [{"name": name, "expires": -1} for name in self.names]


async def test_a_session_is_over_once_one_of_its_cookies_is_gone_though_others_are_left() -> None:
    valid, context = AspNetSession(), Cookies("ASP.NET_SessionId", ".ASPXAUTH")
    assert await valid(context)  # type: ignore[arg-type]
    assert await valid(context)  # type: ignore[arg-type]
    context.names = ("ASP.NET_SessionId",)
    assert not await valid(context)  # type: ignore[arg-type]
    other = Cookies("ASP.NET_SessionId")
    assert await valid(other)  # type: ignore[arg-type]


def _program(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o755)
    return path


def test_chromium_is_found_where_debian_playwright_and_google_put_it_in_this_order(tmp_path: Path) -> None:
    root, home = tmp_path / "root", tmp_path / "home"
    environ = {"HOME": str(home)}
    downloads = home / ".cache/ms-playwright"
    for path in (
        root / "opt/google/chrome/chrome",
        root / "usr/bin/google-chrome-stable",
        downloads / "chromium-99/chrome-linux/chrome",
        downloads / "chromium-1200/chrome-linux64/chrome",
        downloads / "chromium_headless_shell-1200/chrome-headless-shell-linux64/chrome-headless-shell",
        root / "usr/bin/chromium",
        root / "usr/bin/chromium-headless-shell",
    ):
        _program(path)
        assert find_chromium(None, environ, root) == path


def test_playwrights_folder_may_be_elsewhere(tmp_path: Path) -> None:
    path = _program(tmp_path / "chromium-1/chrome-linux/chrome")
    assert find_chromium(None, {"PLAYWRIGHT_BROWSERS_PATH": str(tmp_path)}, tmp_path / "root") == path


def test_a_machine_without_chromium_is_told_where_it_was_looked_for_and_how_to_mend_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        find_chromium(None, {}, tmp_path)
    assert str(caught.value) == (
        "no Chromium is on this machine, neither in /usr/bin, nor among Playwright's downloads, nor Google Chrome's; install one "
        "(`apt-get install chromium-headless-shell`, or `playwright install chromium`), or name it in ARCHIBALD_CHROMIUM"
    )


def test_the_named_chromium_is_taken_and_no_other(tmp_path: Path) -> None:
    named = _program(tmp_path / "mine")
    assert find_chromium(named, {}, Path("/")) == named
    named.chmod(0o644)
    for path in (named, tmp_path / "none", tmp_path):
        with pytest.raises(
            ConfigError, match=r"^ARCHIBALD_CHROMIUM is .*, which is no file that can be executed; correct it"
        ):
            find_chromium(path, {}, Path("/"))


def test_neither_the_package_nor_its_pool_imports_playwright() -> None:
    code = "import sys, archibald_pgq, archibald_pgq.browser; sys.exit('playwright' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_playwright_the_start_says_what_to_install() -> None:
    code = (
        "import asyncio, sys\nsys.modules['playwright'] = None\nsys.modules['playwright.async_api'] = None\n"
        "from archibald_pgq.browser import BrowserPool, PoolSettings\n"
        "asyncio.run(BrowserPool(PoolSettings(), login=None).start())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "ConfigError: Playwright is not installed; do `pip install 'archibald-pgq[browser]'`" in done.stderr
