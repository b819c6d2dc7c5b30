"""What the commands that ask the queue share: its opening, and the arguments that several of them take."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from archibald_pgq import config
from archibald_pgq.app import Archibald
from archibald_pgq.cli.database import open_for_looking
from archibald_pgq.domain.payload import MAX_ID, MAX_LIMIT
from archibald_pgq.sync import SyncArchibald

JobId = Annotated[int, typer.Argument(metavar="ID", min=1, max=MAX_ID, help="The job's id.")]
UserId = Annotated[str, typer.Argument(metavar="USER_ID", help="The agent.")]
Limit = Annotated[int, typer.Option("--limit", min=1, max=MAX_LIMIT, help="How many at most.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]

DEFAULT_LIMIT = 50


@contextmanager
def opened_queue() -> Iterator[SyncArchibald]:
    """Open the queue that a command without any choice looks at, and close it at the end."""
    app = Archibald()
    app.use(open_for_looking(config.load()))
    with app.sync as queue:
        yield queue
