"""Commands about the queue as a whole: stats, workers."""

from __future__ import annotations

from archibald_pgq.cli.output import as_json, print_json, say, show, show_list, width
from archibald_pgq.cli.queue import DEFAULT_LIMIT, AsJson, Limit, opened_queue
from archibald_pgq.cli.queue_tables import counts, stats_table, workers_table


def stats(as_json_: AsJson = False) -> None:
    """Count the jobs of each class by what they wait for or came to."""
    with opened_queue() as queue:
        records = queue.stats()
    if as_json_:
        print_json([as_json(record) for record in records])
    elif any(count for record in records for count in counts(record).values()):
        show(stats_table(records))
    else:
        say("no jobs yet; enqueue one with `archibald-pgq enqueue`")


def workers(limit: Limit = DEFAULT_LIMIT, as_json_: AsJson = False) -> None:
    """List the workers, those that are alive first."""
    with opened_queue() as queue:
        records = queue.workers(limit=limit)
    if as_json_:
        print_json([as_json(record) for record in records])
    elif records:
        show_list(workers_table(records, width()), records, limit)
    else:
        say("no workers; start one with `archibald-pgq run`")
