"""Commands about jobs: enqueue, job, jobs, cancel."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from archibald_pgq.cli.job_tables import job_table, jobs_table
from archibald_pgq.cli.output import as_json, print_json, say, show, show_list, width
from archibald_pgq.cli.queue import DEFAULT_LIMIT, AsJson, JobId, Limit, UserId, opened_queue
from archibald_pgq.domain.payload import MAX_JSON_BYTES, parse_payload
from archibald_pgq.domain.states import State

STDIN_BYTES = 8 * MAX_JSON_BYTES
"""As much as is read of a payload; one of 1 MB may be longer than that with its blanks and escapes."""

RETRIES_SHOWN = 5

CANCELLED = {
    "cancelled": "job {id} is cancelled",
    "requested": "job {id} runs; it is asked to stop",
}


def enqueue(  # noqa: PLR0917  # Typer calls it by keyword
    kind: Annotated[str, typer.Argument(metavar="KIND", help="The operation, such as submit-order.")],
    user_id: UserId,
    data: Annotated[
        str, typer.Option("--data", metavar="JSON", help="What the handler gets: a JSON object; - reads it from stdin.")
    ] = "{}",
    idempotency_key: Annotated[
        str | None, typer.Option("--idempotency-key", help="Makes repeated requests one job.")
    ] = None,
    delay: Annotated[float, typer.Option("--delay", help="Seconds before which it must not run.")] = 0.0,
    as_json_: AsJson = False,
) -> None:
    """Enqueue a job and print its id."""
    # bytes that are no text become what parse_payload refuses; it also refuses what is longer than this
    stdin = sys.stdin.buffer.read(STDIN_BYTES).decode(errors="surrogateescape") if data == "-" else None
    payload = parse_payload(data if stdin is None else stdin)
    with opened_queue() as queue:
        made = queue.enqueue(kind, user_id=user_id, data=payload, idempotency_key=idempotency_key, delay=delay)
    if as_json_:
        print_json({"id": made.id})
    else:
        say(str(made.id))


def job(job_id: JobId, as_json_: AsJson = False) -> None:
    """Show one job, live or finished."""
    with opened_queue() as queue:
        record = queue.job(job_id)
        retries = [] if as_json_ else queue.jobs(retried_from=job_id, limit=RETRIES_SHOWN)
    if as_json_:
        print_json(as_json(record))
    else:
        show(job_table(record, retries))


def jobs(
    user: Annotated[str | None, typer.Option("--user", help="Only this agent's.")] = None,
    state: Annotated[State | None, typer.Option("--state", help="Only those in this state.")] = None,
    kind: Annotated[str | None, typer.Option("--kind", help="Only this operation's.")] = None,
    limit: Limit = DEFAULT_LIMIT,
    as_json_: AsJson = False,
) -> None:
    """List the newest jobs, live and finished."""
    with opened_queue() as queue:
        records = queue.jobs(user_id=user, state=state, kind=kind, limit=limit)
    if as_json_:
        print_json([as_json(record) for record in records])
    elif records:
        show_list(jobs_table(records, width()), records, limit)
    else:
        say("no jobs")


def cancel(job_id: JobId, as_json_: AsJson = False) -> None:
    """Cancel a job that waits, or stop one that runs. Exit code 1 if it had finished already."""
    with opened_queue() as queue:
        answer = queue.cancel(job_id)
    if as_json_:
        print_json({"id": job_id, "answer": answer})
    else:
        say(CANCELLED.get(answer, "nothing to cancel: job {id} is {answer}").format(id=job_id, answer=answer))
    if answer not in CANCELLED:
        raise typer.Exit(1)
