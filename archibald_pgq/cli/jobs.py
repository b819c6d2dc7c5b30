"""Commands about jobs: enqueue, job, jobs, cancel."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from typing import Annotated, TypeVar

import typer

from archibald_pgq import config
from archibald_pgq.app import Archibald
from archibald_pgq.cli.database import open_for_looking
from archibald_pgq.cli.output import as_json, console, job_table, jobs_table, print_json
from archibald_pgq.domain.payload import MAX_ID, MAX_JSON_BYTES, MAX_LIMIT, parse_payload
from archibald_pgq.domain.states import State

T = TypeVar("T")

STDIN_BYTES = 8 * MAX_JSON_BYTES
"""As much as is read of a payload; one of 1 MB may be longer than that with its blanks and escapes."""

JobId = Annotated[int, typer.Argument(metavar="ID", min=1, max=MAX_ID, help="The job's id.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]

CANCELLED = {
    "cancelled": "job {id} is cancelled",
    "requested": "job {id} runs; it is asked to stop",
}


def _with_app(call: Callable[[Archibald], Awaitable[T]]) -> T:
    async def go() -> T:
        settings = config.load()
        async with Archibald() as app:
            app.use(await asyncio.to_thread(open_for_looking, settings))
            return await call(app)

    return asyncio.run(go())


def enqueue(  # noqa: PLR0917  # Typer calls it by keyword
    kind: Annotated[str, typer.Argument(metavar="KIND", help="The operation, such as submit-order.")],
    user_id: Annotated[str, typer.Argument(metavar="USER_ID", help="The agent.")],
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
    job = _with_app(
        lambda app: app.enqueue(kind, user_id=user_id, data=payload, idempotency_key=idempotency_key, delay=delay)
    )
    if as_json_:
        print_json({"id": job.id})
    else:
        typer.echo(job.id)


def job(job_id: JobId, as_json_: AsJson = False) -> None:
    """Show one job, live or finished."""
    record = _with_app(lambda app: app.job(job_id))
    if as_json_:
        print_json(as_json(record))
    else:
        console().print(job_table(record))


def jobs(
    user: Annotated[str | None, typer.Option("--user", help="Only this agent's.")] = None,
    state: Annotated[State | None, typer.Option("--state", help="Only those in this state.")] = None,
    kind: Annotated[str | None, typer.Option("--kind", help="Only this operation's.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=MAX_LIMIT, help="How many at most.")] = 50,
    as_json_: AsJson = False,
) -> None:
    """List the newest jobs, live and finished."""
    records = _with_app(lambda app: app.jobs(user_id=user, state=state, kind=kind, limit=limit))
    if as_json_:
        print_json([as_json(record) for record in records])
    elif records:
        screen = console()
        screen.print(jobs_table(records, screen.width))
    else:
        typer.echo("no jobs")


def cancel(job_id: JobId, as_json_: AsJson = False) -> None:
    """Cancel a job that waits, or stop one that runs. Exit code 1 if it had finished already."""
    answer = _with_app(lambda app: app.cancel(job_id))
    if as_json_:
        print_json({"id": job_id, "answer": answer})
    else:
        typer.echo(CANCELLED.get(answer, "nothing to cancel: job {id} is {answer}").format(id=job_id, answer=answer))
    if answer not in CANCELLED:
        raise typer.Exit(1)
