"""A small world to try the queue on: a slow ERP, a client for it, handlers for 15 operations, a day of work.

`archibald_pgq.examples.erp:app` is the app that `archibald-pgq run` takes when none is named.
"""

from .handlers import app

__all__ = ["app"]
