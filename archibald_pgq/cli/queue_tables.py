"""The queue on the screen: its agents, its workers, and how many jobs there are of each sort."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from archibald_pgq.cli.output import as_json, cut, in_one_line, listing, plain
from archibald_pgq.cli.times import clock, distance, since
from archibald_pgq.domain.views import AgentRecord, ClassStats, Doing, Health, WorkerRecord

DOING = {
    Doing.RUNNING: "cyan",
    Doing.PAUSED: "yellow",
    Doing.REQUEUED: "yellow",
    Doing.DELAYED: "dim",
    Doing.NEEDS_REVIEW: "magenta",
}
HEALTH = {Health.ALIVE: "green", Health.SILENT: "yellow", Health.LOST: "red", Health.STOPPED: "dim"}
SORTS = {"active": "cyan", "needs_review": "magenta", "completed": "green", "failed": "red"}


def agents_table(records: Sequence[AgentRecord], width: int) -> Table:
    """Return agents as a table, one a row, for `width` columns; counts that are 0 for all of them have no column."""
    table = listing()
    table.add_column("user_id", overflow="fold", max_width=max(10, width // 5))
    table.add_column("doing", no_wrap=True)
    table.add_column("for", no_wrap=True)
    sorts = {"waiting": "waiting", "delayed": "delayed", "needs_review": "review"}
    sorts = {name: head for name, head in sorts.items() if any(getattr(record, name) for record in records)}
    for head in sorts.values():
        table.add_column(head, justify="right", no_wrap=True)
    table.add_column("what", overflow="fold", ratio=1)
    for record in records:
        table.add_row(
            plain(record.user_id),
            Text(record.doing, DOING.get(record.doing, "")),
            _for(record),
            *(str(getattr(record, name) or "") for name in sorts),
            in_one_line(_what(record)),
        )
    return table


def _for(record: AgentRecord) -> str:
    match record.doing:
        case Doing.RUNNING:
            return since(record.since)
        case Doing.REQUEUED | Doing.WAITING:
            return since(record.waiting_since)
        case _:
            return ""


def _what(record: AgentRecord) -> str:
    resting = [f"{each.kind} left alone until {clock(each.until)}: {each.reason}" for each in record.left_alone]
    return "; ".join(filter(None, (_waits_for(record), *resting)))


def _waits_for(record: AgentRecord) -> str:
    match record.doing:
        case Doing.RUNNING:
            progress = "" if record.progress is None else f" {record.progress} % {record.progress_label or ''}"
            return f"{'then paused; ' * record.paused}job {record.job_id} {record.kind}{progress}"
        case Doing.PAUSED:
            end = f"until {clock(record.paused_until)}" if record.paused_until else "until resumed"
            return f"{end}: {record.paused_reason}" if record.paused_reason else end
        case Doing.REQUEUED if record.retry_at is not None:
            return f"locked elsewhere, next try {distance(record.retry_at)}"
        case Doing.DELAYED if record.due_at is not None:
            return f"due {distance(record.due_at)}"
        case _:
            return ""


def counts(record: ClassStats) -> dict[str, int]:
    """Return the counts of a class by the names of their columns."""
    return {name: value for name, value in as_json(record).items() if name != "class"}


def stats_table(records: Sequence[ClassStats]) -> Table:
    """Return the counts as a table, one class a row, and their total."""
    # all the words of eight columns fit into 80 only with one blank between them
    table = Table(box=None, pad_edge=False, collapse_padding=True, header_style="bold")
    table.add_column("class", no_wrap=True)
    counted = [counts(record) for record in records]
    total = {name: sum(each[name] for each in counted) for name in counted[0]}
    for name in total:
        table.add_column(name, justify="right", no_wrap=True)
    for record, each in zip(records, counted, strict=True):
        table.add_row(record.job_class, *(_count(name, n) for name, n in each.items()))
    table.add_row("total", *(_count(name, n) for name, n in total.items()), style="bold")
    return table


def _count(name: str, n: int) -> Text:
    return Text(f"{n:,}", SORTS.get(name, "") if n else "dim")


def _browsers(record: WorkerRecord) -> tuple[str, str]:
    """How many of its browsers run, and how many of the contexts that can be had have a job; and how many jobs wait for one."""
    now = record.browsers
    if now is None or record.health in {Health.LOST, Health.STOPPED}:
        return "", ""
    waiting = f" +{now['waiting']}" if now["waiting"] else ""
    return f"{now['browsers_alive']}/{now['browsers']}", f"{now['in_use'] + now['opening']}/{now['capacity']}{waiting}"


def workers_table(records: Sequence[WorkerRecord], width: int) -> Table:
    """Return workers as a table, one a row, for `width` columns."""
    table = listing()
    table.add_column("id", justify="right", no_wrap=True)
    table.add_column("host", overflow="fold", max_width=max(10, width // 5))
    table.add_column("pid", justify="right", no_wrap=True)
    table.add_column("health", no_wrap=True)
    table.add_column("jobs", justify="right", no_wrap=True)
    driving = any(record.browsers for record in records)
    if driving:
        table.add_column("browsers", justify="right", no_wrap=True)
        table.add_column("contexts", justify="right", no_wrap=True)
    table.add_column("started", no_wrap=True)
    table.add_column("last beat", no_wrap=True)
    table.add_column("kinds", justify="right", no_wrap=True)
    table.add_column("version", overflow=cut(), no_wrap=True, ratio=1)
    for record in records:
        table.add_row(
            str(record.id),
            plain(record.host),
            str(record.pid),
            Text(record.health, HEALTH[record.health]),
            f"{record.running}/{record.concurrency}",
            *(_browsers(record) if driving else ()),
            distance(record.started_at),
            distance(record.beat),
            str(len(record.kinds)),
            plain(record.version),
        )
    return table
