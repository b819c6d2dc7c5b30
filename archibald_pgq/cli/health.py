"""`archibald-pgq health`: whether a worker is well, for supervisors and probes of containers."""

from __future__ import annotations

import socket
from typing import Annotated, Any

import typer

from archibald_pgq import config
from archibald_pgq.cli.output import as_json, print_json, say
from archibald_pgq.cli.queue import AsJson
from archibald_pgq.domain.health import Pulse, Verdict, judge
from archibald_pgq.domain.payload import MAX_ID
from archibald_pgq.errors import ConfigError
from archibald_pgq.store.health import pulses
from archibald_pgq.store.target import open_running

ILL = 1
"""Exit code when a worker is silent, lost, stopped or not there."""


def health(
    worker: Annotated[
        int | None, typer.Option("--worker", min=1, max=MAX_ID, metavar="ID", help="Only this worker, wherever it is.")
    ] = None,
    any_: Annotated[bool, typer.Option("--any", help="The workers of all hosts, not only of this one.")] = False,
    as_json_: AsJson = False,
) -> None:
    """Say whether this host's workers are well. Exit code 1 if one is not, or none is there."""
    if any_ and worker is not None:
        raise ConfigError("--worker and --any exclude each other; --worker looks on all hosts anyway")
    host = None if any_ or worker is not None else socket.gethostname()
    where = f"as {worker}" if worker is not None else f"on host {host}" if host else "in this database"
    with open_running(config.load()) as target:
        verdict = judge(pulses(target.dsn, host=host, worker=worker), where)
    if as_json_:
        print_json(_document(verdict))
    else:
        say(verdict.sentence)
    if not verdict.well:
        raise typer.Exit(ILL)


def _document(verdict: Verdict) -> dict[str, Any]:
    return {"well": verdict.well, "sentence": verdict.sentence, "workers": [_pulse(each) for each in verdict.workers]}


def _pulse(pulse: Pulse) -> dict[str, Any]:
    beat = pulse.beat_ago.total_seconds()
    return {**{name: value for name, value in as_json(pulse).items() if name != "beat_ago"}, "beat_ago_s": beat}
