"""How the demo looks: live on a terminal, otherwise a line every 5 seconds; then the summary.

Must not: read or decide anything; what is shown is in the `Snapshot` and the `Summary`.
"""

from __future__ import annotations

from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from archibald_pgq.demo.summary import CLASSES, Summary
from archibald_pgq.demo.watch import Snapshot

LINE_EVERY = 5.0
SHOWN_AGENTS = 10
SHOWN_EVENTS = 5


class Display:
    """A context manager that shows snapshots on a console in the way that suits it."""

    def __init__(self, console: Console) -> None:
        """Show on `console`."""
        self._console = console
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None
        self._next_line = 0.0
        self._events_shown = 0

    def __enter__(self) -> Display:
        """Take the terminal over, if it is one."""
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the terminal back."""
        if self._live:
            self._live.stop()

    def show(self, snapshot: Snapshot) -> None:
        """Show the newest snapshot."""
        if self._live:
            self._live.update(_screen(snapshot), refresh=True)
            return
        for event in snapshot.events[self._events_shown :]:
            self._line(event)
        self._events_shown = len(snapshot.events)
        if snapshot.seconds >= self._next_line:
            self._next_line = snapshot.seconds + LINE_EVERY
            self._line(f"{snapshot.seconds:5.1f} s  {_counts(snapshot)}; {_by_class(snapshot)}")

    def _line(self, text: str) -> None:
        self._console.print(Text(text), soft_wrap=True)


def _counts(snapshot: Snapshot) -> str:
    waiting = snapshot.states["queued"]
    return (
        f"{snapshot.finished} of {len(snapshot.rows)} jobs finished, {waiting} queued, {len(snapshot.running)} running"
    )


def _by_class(snapshot: Snapshot) -> str:
    running = [row.job_class for row in snapshot.running]
    return ", ".join(f"{running.count(job_class)} {job_class}" for job_class in CLASSES)


def _screen(snapshot: Snapshot) -> RenderableType:
    """Return the live view: how far, what runs, which agents, what the other program did."""
    bar = Table.grid(padding=(0, 1))
    bar.add_row(
        ProgressBar(total=max(len(snapshot.rows), 1), completed=snapshot.finished, width=40),
        f"{_counts(snapshot)}  {snapshot.seconds:.0f} s",
    )
    day = f"{snapshot.fed} of the day's {snapshot.entries} enqueues made; running now: {_by_class(snapshot)}"
    events = [Text(event, style="yellow") for event in snapshot.events[-SHOWN_EVENTS:]]
    return Group(bar, Text(day), _agents(snapshot), *events)


def _agents(snapshot: Snapshot) -> Table:
    """Return the agents that run something now, with what still waits for them."""
    table = Table("agent", "runs", "progress", "waiting", "finished", box=None, padding=(0, 2))
    for row in snapshot.running[:SHOWN_AGENTS]:
        own = [other.state for other in snapshot.rows if other.user_id == row.user_id]
        waiting = own.count("queued")
        how_far = "" if row.progress is None else f"{row.progress} % {row.progress_label or ''}"
        table.add_row(row.user_id, row.kind, how_far, str(waiting), str(len(own) - waiting - 1))
    return table


def print_summary(console: Console, summary: Summary) -> None:
    """Print what the day came to, the verdict last."""
    erp = summary.erp
    outcomes = ", ".join(f"{count} {state}" for state, count in sorted(summary.jobs.items()))
    facts = {
        "jobs by outcome": outcomes,
        "enqueues": f"{summary.entries}, of which {summary.merged} were duplicates and merged",
        "duration": f"{summary.seconds:.0f} s",
        "requeues": f"{summary.requeues}, at most {summary.most_requeued} of one job",
        "preemptions": f"{summary.preemptions} syncs made room for a write of their agent",
        "most running at once": f"{summary.most_running} (the ERP saw {erp['most_logins_at_once']} agents at once)",
        "most per agent": f"{erp['most_per_login']}, as the ERP saw it",
        "simultaneous": f"{erp['simultaneous']}, as the ERP counted in {erp['requests']} requests",
    }
    facts["orders twice"] = f"{erp['orders_twice']} of {erp['orders']}, as the ERP has them"
    facts["logins"] = f"{erp['logins']}, for {erp['operations']} operations"
    for job_class, waits in summary.waits.items():
        facts[f"wait of a {job_class}"] = f"p50 {waits.p50:.1f} s, p95 {waits.p95:.1f} s ({waits.jobs} jobs)"
    for name, fact in facts.items():
        console.print(Text(f"{name:<22}{fact}"), soft_wrap=True)
    for failure in summary.failures:
        console.print(Text(f"failed  {failure}"), soft_wrap=True)
    for problem in summary.problems:
        console.print(Text(problem, style="bold red"), soft_wrap=True)
