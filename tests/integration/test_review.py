"""What a person decides about a job: run it again, or put it away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from archibald_pgq import Archibald, InvalidJobError, Job, JobStateError, State, UnknownJobError
from archibald_pgq.domain.outcome import Outcome
from tests.hand import Hand, hand
from tests.support import Look, Stage, looking, working


@pytest.fixture
async def worker(database: str) -> AsyncIterator[Hand]:
    async with hand(database) as made:
        yield made


async def ended(app: Archibald, worker: Hand, outcome: Outcome, *, key: str | None = None) -> Job:
    """Enqueue a write of alice and let it come to this."""
    job = await app.enqueue("submit-order", user_id="alice", data={"order": 7}, idempotency_key=key)
    await worker.settle(await worker.claim_one(), outcome)
    return job


DOUBTFUL = Outcome.needs_review("interrupted by shutdown")


# -- retry


async def test_a_job_that_needs_review_is_retried_as_the_same_job_at_its_old_place(
    app: Archibald, worker: Hand, look: Look
) -> None:
    job = await ended(app, worker, DOUBTFUL, key="o-7")
    later = await app.enqueue("submit-order", user_id="alice")
    before = await look.job(job.id, "waiting_since")
    again = await app.retry(job.id)
    assert again.id == job.id
    assert (
        await look.job(job.id, "waiting_since") > before
    )  # it waits anew: a review of hours is no wait for a consumer
    claimed = await worker.claim_one()
    assert (claimed.job_id, claimed.attempt, claimed.payload) == (job.id, 1, {"order": 7})
    await worker.settle(claimed)
    assert (await worker.claim_one()).job_id == later.id
    assert await look.job(job.id, "state", "attempt", "retried_from") == ("completed", 1, None)


async def test_a_sync_that_needs_review_is_retried_by_the_one_that_waits_also_one_that_began_before(
    app: Archibald, worker: Hand, look: Look
) -> None:
    job = await app.enqueue("sync-orders", user_id="alice")
    await worker.settle(await worker.claim_one(), DOUBTFUL)
    waits = await app.enqueue("sync-orders", user_id="alice")
    await worker.settle(await worker.claim_one(), Outcome.gone_back())
    assert (await app.retry(job.id)).id == waits.id
    assert await look.job(job.id, "state", "result", "error") == (
        "cancelled",
        {"absorbed_by": waits.id},
        f"absorbed by job {waits.id}",
    )
    assert await look.rows("SELECT id, state FROM archibald.jobs") == [(waits.id, "queued")]


async def test_a_retry_wakes_a_worker(app: Archibald, worker: Hand, database: str) -> None:
    job = await ended(app, worker, DOUBTFUL)
    async with looking(database) as listener:
        await listener.rows("LISTEN archibald")
        await app.retry(job.id)
        assert await listener.heard() == "wake"
    stage = Stage(hold=False)
    stage.register(app, "submit-order")
    async with working(app):
        assert await job.wait(timeout=20) == {"ran": {"order": 7}}


@pytest.mark.parametrize("outcome", [Outcome.failed("no"), Outcome.cancelled("no")], ids=["failed", "cancelled"])
async def test_a_finished_job_is_retried_as_a_new_one_with_its_data_its_key_and_todays_policy(
    app: Archibald, worker: Hand, look: Look, outcome: Outcome
) -> None:
    job = await ended(app, worker, outcome, key="o-7")
    await look.rows("UPDATE archibald.operations SET priority = 3 WHERE kind = 'submit-order'")
    before = await job.record()
    again = await app.retry(job.id)
    assert again.id != job.id
    record = await again.record()
    assert (record.state, record.retried_from, record.payload, record.idempotency_key) == (
        "queued",
        job.id,
        {"order": 7},
        "o-7",
    )
    assert (record.priority, record.attempt, record.requeue_count) == (3, 0, 0)
    assert await job.record() == before
    # it has the key: the same request of somebody else joins it
    assert (await app.enqueue("edit-order", user_id="alice", idempotency_key="o-7")).id == again.id
    await worker.settle(await worker.claim_one())
    assert await look.job(again.id, "state", "retried_from") == ("completed", job.id)


async def test_however_often_a_job_is_retried_one_retry_is_live(
    app: Archibald, worker: Hand, look: Look, database: str
) -> None:
    job = await ended(app, worker, Outcome.failed("no"))

    async def retry() -> int:
        async with looking(database) as own:
            return int(await own.value("SELECT job FROM archibald.retry_job(%s)", job.id))

    (first,) = set(await asyncio.gather(*(retry() for _ in range(20))))
    await worker.settle(await worker.claim_one(), Outcome.failed("no again"))
    second = await app.retry(job.id)
    assert second.id != first
    assert await look.rows("SELECT id FROM archibald.all_jobs WHERE retried_from = %s ORDER BY id", job.id) == [
        (first,),
        (second.id,),
    ]


async def test_a_retry_joins_what_was_asked_for_with_the_same_key_meanwhile(app: Archibald, worker: Hand) -> None:
    job = await ended(app, worker, Outcome.failed("no"), key="o-7")
    asked = await app.enqueue("submit-order", user_id="alice", idempotency_key="o-7")
    assert (await app.retry(job.id)).id == asked.id
    assert (await asked.record()).retried_from is None


async def test_a_retried_sync_joins_the_one_that_waits(app: Archibald, worker: Hand) -> None:
    job = await app.enqueue("sync-orders", user_id="alice")
    await worker.settle(await worker.claim_one(), Outcome.failed("no"))
    waiting = await app.enqueue("sync-orders", user_id="alice")
    assert (await app.retry(job.id)).id == waiting.id


async def test_there_is_nothing_to_retry_of_a_job_that_waits_runs_or_completed(app: Archibald, worker: Hand) -> None:
    job = await app.enqueue("submit-order", user_id="alice")
    with pytest.raises(JobStateError, match=f"job {job.id} is already queued; only one that failed"):
        await app.retry(job.id)
    claimed = await worker.claim_one()
    with pytest.raises(JobStateError, match="is already running"):
        await app.retry(job.id)
    await worker.settle(claimed)
    with pytest.raises(JobStateError, match="is already completed"):
        await app.retry(job.id)
    assert len(await app.jobs()) == 1


async def test_an_unknown_id_is_said_to_be_unknown(app: Archibald) -> None:
    for call in (app.retry, app.discard):
        for job_id in (7, 0, 2**63, "7"):
            with pytest.raises(UnknownJobError, match="there is no job"):
                await call(job_id)  # type: ignore[arg-type]


# -- discard


async def test_a_job_that_needs_review_is_discarded_and_its_key_is_free(
    app: Archibald, worker: Hand, look: Look
) -> None:
    job = await ended(app, worker, DOUBTFUL, key="o-7")
    assert (await app.enqueue("submit-order", user_id="alice", idempotency_key="o-7")).id == job.id
    await app.discard(job.id)
    assert await look.job(job.id, "state", "error", "attempt") == ("cancelled", "discarded: interrupted by shutdown", 0)
    assert (await app.enqueue("submit-order", user_id="alice", idempotency_key="o-7")).id != job.id


async def test_only_a_job_that_needs_review_is_discarded(app: Archibald, worker: Hand) -> None:
    job = await app.enqueue("submit-order", user_id="alice")
    with pytest.raises(JobStateError, match=f"job {job.id} is already queued; only one that needs review"):
        await app.discard(job.id)
    claimed = await worker.claim_one()
    with pytest.raises(JobStateError, match="is already running"):
        await app.discard(job.id)
    await worker.settle(claimed)
    with pytest.raises(JobStateError, match="is already completed"):
        await app.discard(job.id)


async def test_of_a_retry_and_a_discard_at_once_one_is_done_and_the_other_is_told(
    app: Archibald, worker: Hand, look: Look
) -> None:
    for _ in range(10):
        job = await ended(app, worker, DOUBTFUL)
        answers = await asyncio.gather(app.retry(job.id), app.discard(job.id), return_exceptions=True)
        state = (await job.record()).state
        if state is State.QUEUED:
            assert isinstance(answers[1], JobStateError)
            await worker.settle(await worker.claim_one())
        else:
            # a retry that came second made a new job of the cancelled one
            assert state is State.CANCELLED
            assert answers[1] is None
            assert isinstance(answers[0], Job)
            assert (await answers[0].record()).retried_from == job.id
            await worker.settle(await worker.claim_one())
    assert await look.value("SELECT count(*) FROM archibald.jobs") == 0


# -- what needs a person


async def test_review_lists_what_needs_a_person_and_nothing_else_the_oldest_first(app: Archibald, worker: Hand) -> None:
    doubtful = [await ended(app, worker, DOUBTFUL) for _ in range(3)]
    await ended(app, worker, Outcome.failed("no"))
    await ended(app, worker, Outcome.completed("1"))
    await app.enqueue("submit-order", user_id="alice")
    assert [record.id for record in await app.review()] == [job.id for job in doubtful]
    assert [record.id for record in await app.review(limit=1)] == [doubtful[0].id]
    with pytest.raises(InvalidJobError, match="limit"):
        await app.review(limit=0)
