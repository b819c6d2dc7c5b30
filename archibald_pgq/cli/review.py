"""Commands with which a person decides about jobs: review, retry, discard."""

from __future__ import annotations

from archibald_pgq.cli.job_tables import HOW_TO_DECIDE, review_table
from archibald_pgq.cli.output import as_json, print_json, say, show_list
from archibald_pgq.cli.queue import DEFAULT_LIMIT, AsJson, JobId, Limit, opened_queue


def review(limit: Limit = DEFAULT_LIMIT, as_json_: AsJson = False) -> None:
    """List the jobs that need a person, and say how to decide."""
    with opened_queue() as queue:
        records = queue.review(limit=limit)
    if as_json_:
        print_json([as_json(record) for record in records])
    elif records:
        show_list(review_table(records), records, limit)
        say(f"\n{HOW_TO_DECIDE}")
    else:
        say("nothing needs review")


def retry(job_id: JobId, as_json_: AsJson = False) -> None:
    """Run a job again that failed, was cancelled or needs review.

    Prints the id of the job that does it: of one that needs review its own, else that of a new one, whose retried_from names the old one.
    Exit code 1 if there is nothing to retry.
    """
    with opened_queue() as queue:
        again = queue.retry(job_id)
    if as_json_:
        print_json({"id": again.id})
    else:
        say(str(again.id))


def discard(job_id: JobId, as_json_: AsJson = False) -> None:
    """Put away a job that needs review: it ends as cancelled. Exit code 1 if it needs none."""
    with opened_queue() as queue:
        queue.discard(job_id)
    if as_json_:
        print_json({"id": job_id, "answer": "discarded"})
    else:
        say(f"job {job_id} is discarded")
