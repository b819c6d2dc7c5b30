"""A program of a user of the installed package. `mypy --strict` accepts it only if it sees the package's types.

Without them each comment that allows a mistake would be one too many, and mypy says so.
"""

from typing import assert_type

from archibald_pgq import Archibald, Job, JobContext, JobRecord

app = Archibald()


@app.operation("submit-order")
async def submit_order(ctx: JobContext, data: dict[str, str]) -> dict[str, str]:
    """Do the work of a job."""
    assert_type(ctx.user_id, str)
    return {"order": data["order"]}


async def use() -> None:
    """Call what users call, rightly and wrongly."""
    assert_type(await app.enqueue("submit-order", user_id="alice", data={"order": "7"}), Job)
    assert_type(await app.jobs(limit=3), list[JobRecord])
    await app.enqueue("submit-order", user_id=7)  # type: ignore[arg-type]
    await app.no_such_method()  # type: ignore[attr-defined]
