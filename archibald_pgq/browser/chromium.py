"""Where Chromium is on this machine."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from archibald_pgq.errors import ConfigError

HEADLESS_SHELL = Path("/usr/lib/chromium/chromium-headless-shell")
"""Debian's, before all others: it has no toolbar to draw for each window.

Ten contexts, each with a page and a form, took it 1.3 s of processor time, and the whole Chromium 5.5 s. Not by its name on PATH: that is a
shell script, which stays there as its parent.
"""

NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome", "chrome")
"""As Debian, Ubuntu, and Google call it on PATH."""

PLACES = (
    Path("/usr/bin/chromium"),
    Path("/opt/google/chrome/chrome"),
    Path("/Applications/Google Chrome.app/Contents/MacOS/Google Chrome"),
    Path("/Applications/Chromium.app/Contents/MacOS/Chromium"),
)

DOWNLOADS = (
    "chromium_headless_shell-*/chrome-linux*/headless_shell",
    "chromium_headless_shell-*/chrome-headless-shell-linux*/chrome-headless-shell",
    "chromium-*/chrome-linux*/chrome",
    "chromium-*/chrome-mac*/Chromium.app/Contents/MacOS/Chromium",
)
"""Of `playwright install chromium`, below its folder."""


def find_chromium(given: Path | None) -> Path:
    """Return the program: the one that is named, else the one on PATH, in the usual places, or among Playwright's own downloads.

    Raises:
        ConfigError: there is none, or what is named is no program.
    """
    if given is not None:
        if not _runs(given):
            raise ConfigError(
                f"ARCHIBALD_CHROMIUM is {str(given)!r}, which is no program; name Chromium's, such as /usr/bin/chromium"
            )
        return given
    on_path = (Path(found) for name in NAMES if (found := shutil.which(name)))
    for path in (HEADLESS_SHELL, *on_path, *PLACES, *_downloads()):
        if _runs(path):
            return path
    raise ConfigError(
        "no Chromium was found on PATH, in the usual places, or among Playwright's downloads; install it (apt-get install chromium, or "
        "playwright install chromium), or name it in ARCHIBALD_CHROMIUM"
    )


def _downloads() -> list[Path]:
    named = os.environ.get("PLAYWRIGHT_BROWSERS_PATH")
    folders = (
        [Path(named)] if named else [Path.home() / ".cache/ms-playwright", Path.home() / "Library/Caches/ms-playwright"]
    )
    return [path for folder in folders for pattern in DOWNLOADS for path in sorted(folder.glob(pattern), reverse=True)]


def _runs(path: Path) -> bool:
    return path.is_file() and os.access(path, os.X_OK)
