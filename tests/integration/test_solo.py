"""A job that would fail by one more loss runs alone, and is not marked running before it does."""

from __future__ import annotations

from archibald_pgq import Archibald
from archibald_pgq.domain.explanation import Reason
from archibald_pgq.domain.outcome import Outcome
from tests.hand import hand
from tests.support import Look

DONE = Outcome.completed("1")


async def test_a_job_before_its_last_loss_waits_until_one_worker_is_free_of_all_others(
    app: Archibald, database: str, look: Look
) -> None:
    async with hand(database) as one, hand(database) as other:
        await app.enqueue("edit-order", user_id="bob", data={})
        running = await one.claim_one()
        carol = await app.enqueue("edit-order", user_id="carol", data={})
        suspect = await app.enqueue("edit-order", user_id="alice", data={})
        await look.rows("UPDATE archibald.jobs SET losses = 2, wake = true WHERE id = %s", suspect.id)
        turn = await one.turn(want=5, look=True)  # it gets its lane
        assert (turn.solo, turn.claimed) == (False, [])
        assert turn.next_in is not None
        assert turn.next_in <= 0
        turn = await one.turn(want=5, look=True)
        assert (turn.solo, turn.claimed) == (True, [])
        assert await look.job(suspect.id, "state", "started_at") == ("queued", None)
        assert (await app.explain(suspect.id)).reason is Reason.RUNS_ALONE
        turn = await other.turn(want=5, look=True)  # one drains, and the others go on
        assert (turn.solo, [job.job_id for job in turn.claimed]) == (False, [carol.id])
        dave = await app.enqueue("edit-order", user_id="dave", data={})
        turn = await one.turn((running, DONE), want=5, look=True, solo=True)
        assert (turn.solo, [job.job_id for job in turn.claimed]) == (True, [suspect.id])
        (alone,) = turn.claimed
        turn = await one.turn((alone, DONE), want=5, look=True, solo=True)
        assert (turn.solo, [job.job_id for job in turn.claimed]) == (False, [dave.id])
        assert (
            await look.value(
                "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 2 AND objid = 256"
            )
            == 0
        )
