"""Where Chromium is on this machine, and whether there is a Playwright to drive it.

Guarantees: what is found is a file that this user may execute. Must not: start it.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from archibald_pgq.errors import ConfigError

# The headless shell first, of each place: it draws no windows, and takes a quarter of the memory.
_DEBIAN = ("usr/bin/chromium-headless-shell", "usr/bin/chromium", "usr/bin/chromium-browser")
_PLAYWRIGHT = (
    "chromium_headless_shell-*/chrome-headless-shell-linux*/chrome-headless-shell",
    "chromium_headless_shell-*/chrome-linux*/headless_shell",
    "chromium-*/chrome-linux*/chrome",
)
_GOOGLE = ("usr/bin/google-chrome-stable", "usr/bin/google-chrome", "opt/google/chrome/chrome")

HOW = "install one (`apt-get install chromium-headless-shell`, or `playwright install chromium`), or name it in ARCHIBALD_CHROMIUM"


def require_playwright() -> None:
    """See that Playwright is there, without the time that importing it takes.

    Raises:
        ConfigError: it is not.
    """
    if importlib.util.find_spec("playwright") is None:
        raise ConfigError("Playwright is not installed; do `pip install 'archibald-pgq[browser]'`")


def find_chromium(given: Path | None, environ: Mapping[str, str] | None = None, root: Path = Path("/")) -> Path:
    """Return the executable: the given one, else where Debian, Playwright or Google Chrome put it.

    Args:
        given: what the settings say.
        environ: for Playwright's folder and the home; default: this process's own.
        root: the folder that the system's paths are below.

    Raises:
        ConfigError: the given one cannot be executed, or there is none.
    """
    if given is not None:
        if not _executable(given):
            raise ConfigError(
                f"ARCHIBALD_CHROMIUM is {str(given)!r}, which is no file that can be executed; correct it, or unset it to have one found"
            )
        return given
    for path in _candidates(os.environ if environ is None else environ, root):
        if _executable(path):
            return path
    raise ConfigError(
        f"no Chromium is on this machine, neither in /usr/bin, nor among Playwright's downloads, nor Google Chrome's; {HOW}"
    )


def _candidates(environ: Mapping[str, str], root: Path) -> Iterator[Path]:
    yield from (root / name for name in _DEBIAN)
    if downloads := _downloads(environ):
        for pattern in _PLAYWRIGHT:
            yield from sorted(downloads.glob(pattern), key=lambda path: _revision(path, downloads), reverse=True)
    yield from (root / name for name in _GOOGLE)


def _downloads(environ: Mapping[str, str]) -> Path | None:
    if (folder := environ.get("PLAYWRIGHT_BROWSERS_PATH")) not in {None, "", "0"}:
        return Path(str(folder))
    if cache := environ.get("XDG_CACHE_HOME"):
        return Path(cache) / "ms-playwright"
    return Path(environ["HOME"]) / ".cache" / "ms-playwright" if environ.get("HOME") else None


def _revision(path: Path, downloads: Path) -> int:
    number = re.search(r"-(\d+)$", path.relative_to(downloads).parts[0])
    return int(number[1]) if number else 0


def _executable(path: Path) -> bool:
    return path.is_file() and os.access(path, os.X_OK)
