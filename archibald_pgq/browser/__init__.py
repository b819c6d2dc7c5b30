"""A bounded pool of browser contexts, one for each agent, logged in and kept.

Owns: the browsers of a process and their contexts. Guarantees: never more contexts than there may be; one in use is never taken from who
uses it; no process of a browser is left when this one has ended, however it ended. Must not: know of jobs, a queue, a database.
"""

from archibald_pgq.browser.lease import Lease
from archibald_pgq.browser.pool import BrowserPool
from archibald_pgq.browser.settings import PoolSettings, check_margin
from archibald_pgq.browser.statistics import PoolStatistics

__all__ = ["BrowserPool", "Lease", "PoolSettings", "PoolStatistics", "check_margin"]
