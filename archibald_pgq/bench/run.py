"""The bench from its databases to its report.

Guarantees: the given database is not changed; the databases of the bench are gone at the end, also after Ctrl-C and SIGTERM, and those of a
bench that was killed are removed by the next one. Must not: parse arguments, or print results.
"""

from __future__ import annotations

import asyncio
import signal
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from archibald_pgq import config
from archibald_pgq.bench.report import Report
from archibald_pgq.bench.scenes import SCENES, Bench
from archibald_pgq.bench.stage import stage
from archibald_pgq.store import limits
from archibald_pgq.store.scratch import Scratch, scratch
from archibald_pgq.store.target import open_target

LIMIT_SECONDS, QUICK_LIMIT_SECONDS = 2.0, 0.2


def run(names: Sequence[str], say: Callable[[str], None], *, quick: bool) -> Report:
    """Play these scenes on the given or the embedded server; `say` hears how far it is.

    Raises:
        ArchibaldError: it cannot begin, or cannot go on.
        KeyboardInterrupt: Ctrl-C, or SIGTERM; what was made is removed.
    """
    with place() as databases:
        say("what the server does at most")
        report = report_of(databases, QUICK_LIMIT_SECONDS if quick else LIMIT_SECONDS)
        with tempfile.TemporaryDirectory(prefix="archibald-pgq-bench-") as folder:
            bench = Bench(
                quick,
                config.load().worker_concurrency,
                report,
                lambda: stage(databases, Path(folder)),
                say,
            )
            asyncio.run(_interruptible(bench, names))
        return report


@contextmanager
def place() -> Iterator[Scratch]:
    """Yield what makes databases on the server of the given database, else on the embedded one.

    Raises:
        ArchibaldError: there is no way to do that.
    """
    settings = config.load()
    with open_target(None, settings) as target, scratch(settings.direct_url or target.dsn) as databases:
        yield databases


def report_of(databases: Scratch, seconds: float) -> Report:
    """Return an empty report with the server's limits, each measured for so many seconds."""
    dsn = databases.copy()
    report = Report(databases.server_version, limits.measure(dsn, seconds))
    databases.drop(dsn)
    return report


async def _interruptible(bench: Bench, names: Sequence[str]) -> None:
    """Play so that SIGTERM ends it as Ctrl-C does."""
    playing = asyncio.create_task(_play(bench, names))
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, playing.cancel)
    try:
        await playing
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None


async def _play(bench: Bench, names: Sequence[str]) -> None:
    for name, scene in SCENES.items():
        if name in names:
            await scene(bench)
