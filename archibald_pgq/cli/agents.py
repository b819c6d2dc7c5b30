"""Commands about agents: agents, agent pause, agent resume."""

from __future__ import annotations

from typing import Annotated

import typer

from archibald_pgq.cli.output import as_json, in_one_line, print_json, say, show_list, width
from archibald_pgq.cli.queue import DEFAULT_LIMIT, AsJson, Limit, UserId, opened_queue
from archibald_pgq.cli.queue_tables import agents_table

agent = typer.Typer(help="Pause an agent, and let it go on.", no_args_is_help=True)


def agents(limit: Limit = DEFAULT_LIMIT, as_json_: AsJson = False) -> None:
    """Show what each agent does, waits for, or is kept from.

    Busy ones come first; who has nothing to do is left out.
    """
    with opened_queue() as queue:
        records = queue.agents(limit=limit)
    if as_json_:
        print_json([as_json(record) for record in records])
    elif records:
        show_list(agents_table(records, width()), records, limit)
    else:
        say("no agent has anything to do")


@agent.command()
def pause(
    user_id: UserId,
    reason: Annotated[str | None, typer.Option("--reason", metavar="TEXT", help="Why, for others to see.")] = None,
    as_json_: AsJson = False,
) -> None:
    """Let an agent's queued jobs wait until it is resumed.

    A job that runs goes on to its end.
    """
    with opened_queue() as queue:
        queue.pause_agent(user_id, reason=reason)
    if as_json_:
        print_json({"user_id": user_id, "answer": "paused"})
    else:
        say(f"{in_one_line(user_id)} is paused: its queued jobs wait until it is resumed, one that runs ends")


@agent.command()
def resume(user_id: UserId, as_json_: AsJson = False) -> None:
    """Let a paused agent go on."""
    with opened_queue() as queue:
        resumed = queue.resume_agent(user_id)
    if as_json_:
        print_json({"user_id": user_id, "answer": "resumed" if resumed else "not paused"})
    else:
        say(f"{in_one_line(user_id)} {'goes on' if resumed else 'was not paused'}")
