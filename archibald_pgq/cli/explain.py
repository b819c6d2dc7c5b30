"""`archibald-pgq explain`: why a job is not running, and what it waits for next."""

from __future__ import annotations

from archibald_pgq.cli.output import as_json, in_one_line, print_json, say
from archibald_pgq.cli.queue import AsJson, JobId, opened_queue


def explain(job_id: JobId, as_json_: AsJson = False) -> None:
    """Say why a job is not running, and what it waits for next."""
    with opened_queue() as queue:
        found = queue.explain(job_id)
    if as_json_:
        print_json(as_json(found))
    else:
        say(str(in_one_line(found.sentence)))
