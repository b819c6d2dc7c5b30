"""Where tests need a real browser."""

from __future__ import annotations

from pathlib import Path

import pytest

from archibald_pgq.browser.chromium import find_chromium
from archibald_pgq.errors import ConfigError

CHROMIUM: Path | None = None
_missing = ""
try:
    CHROMIUM = find_chromium(None)
except ConfigError as error:
    _missing = str(error)

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason=f"needs a real browser: {_missing}")
