"""What a failed run that drove a browser last saw."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

MAX_SCREENSHOT_BYTES = 1_048_576
MAX_TRACE_BYTES = 16_777_216


@dataclass(frozen=True, slots=True)
class Evidence:
    """Of one run.

    Attributes:
        job_id: the job.
        attempt: the attempt that failed; 1 is the first.
        made_at: when.
        url: the page's address.
        screenshot: PNG, up to 1 MB, if one could be taken.
        trace: Playwright's, a ZIP of up to 16 MB, where ARCHIBALD_BROWSER_TRACE asks for one.
    """

    job_id: int
    attempt: int
    made_at: datetime
    url: str | None
    screenshot: bytes | None
    trace: bytes | None
