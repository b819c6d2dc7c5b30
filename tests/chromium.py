"""Where tests need a real browser."""

from __future__ import annotations

import pytest

from archibald_pgq.browser.chromium import find_chromium
from archibald_pgq.errors import ConfigError


def _missing() -> str:
    try:
        find_chromium(None)
    except ConfigError as error:
        return str(error)
    return ""


needs_chromium = pytest.mark.skipif(bool(_missing()), reason=f"needs a real browser: {_missing()}")
