"""A bounded pool of browser contexts, one for each agent, logged in and kept; needs `archibald-pgq[browser]`.

Owns: the browsers of this process. Guarantees: importing this does not import Playwright; `BrowserPool.start` does. Must not: know of jobs,
queues or a database.
"""

from archibald_pgq.browser.chromium import require_playwright
from archibald_pgq.browser.lease import Lease
from archibald_pgq.browser.pool import BrowserPool
from archibald_pgq.browser.settings import PoolSettings, check_margin
from archibald_pgq.browser.statistics import PoolStatistics

__all__ = ["BrowserPool", "Lease", "PoolSettings", "PoolStatistics", "check_margin", "require_playwright"]
