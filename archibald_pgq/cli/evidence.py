"""`archibald-pgq evidence`: what a failed job last saw in its browser, as files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from archibald_pgq.cli.output import print_json, say
from archibald_pgq.cli.queue import AsJson, JobId, opened_queue
from archibald_pgq.domain.evidence import Evidence
from archibald_pgq.errors import ConfigError


def evidence(
    job_id: JobId,
    to: Annotated[Path, typer.Option("--to", metavar="FOLDER", help="Where the files are written.")] = Path(),
    as_json_: AsJson = False,
) -> None:
    """Write out what a job's failed runs last saw in their browser.

    Screenshots, the page's address, and traces where ARCHIBALD_BROWSER_TRACE asked for them. Exit code 1 if nothing is kept of it.
    """
    with opened_queue() as queue:
        found = queue.evidence(job_id)
    written = [(one, _write(one, to)) for one in reversed(found)]
    if as_json_:
        print_json(
            [
                {"attempt": one.attempt, "made_at": one.made_at.isoformat(), "url": one.url, "files": files}
                for one, files in written
            ]
        )
    for one, files in () if as_json_ else written:
        say(f"attempt {one.attempt}, {one.made_at:%Y-%m-%d %H:%M:%S%z}, at {one.url or 'no page'}")
        for name in files:
            say(f"  {name}")
    if not found:
        if not as_json_:
            say(f"nothing is kept of job {job_id}")
        raise typer.Exit(1)


def _write(one: Evidence, folder: Path) -> list[str]:
    """Write the files of one run; one that is there is replaced."""
    written = []
    stem = f"job-{one.job_id}-attempt-{one.attempt}"
    for ending, content in (("png", one.screenshot), ("trace.zip", one.trace)):
        if content is not None:
            path = folder / f"{stem}.{ending}"
            try:
                path.write_bytes(content)
            except OSError as error:
                raise ConfigError(
                    f"{path} cannot be written: {error.strerror}; name another folder with --to"
                ) from None
            written.append(str(path))
    return written
