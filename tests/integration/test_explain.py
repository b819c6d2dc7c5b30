"""Why a job is not running is told for each thing that there is to wait for, as it is in the database."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any

import pytest

from archibald_pgq import Archibald, Explanation, InvalidJobError, Reason, UnknownJobError
from archibald_pgq.domain.explanation import COUNTED
from archibald_pgq.domain.outcome import Outcome
from tests.commands import command
from tests.counts import until_counted
from tests.hand import Hand, hand
from tests.support import Look, looking

TIME = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"


@pytest.fixture
async def worker(database: str) -> AsyncIterator[Hand]:
    async with hand(database) as made:
        yield made


def says(found: Explanation, reason: Reason, sentence: str) -> None:
    """Check the reason, and the sentence without its times and numbers of processes."""
    assert found.reason is reason, found
    seen = re.sub(rf"{TIME} \([^)]*\)", "TIME", found.sentence)
    seen = re.sub(r"\(\S+, process \d+\)", "(HOST)", seen)
    seen = re.sub(r"\d+ s ago", "N s ago", seen)
    assert seen == sentence


async def test_it_runs_on_a_worker_since(app: Archibald, worker: Hand, look: Look) -> None:
    job = await app.enqueue("submit-order", user_id="alice")
    await worker.claim_one()
    found = await app.explain(job.id)
    says(
        found,
        Reason.RUNNING,
        f"job {job.id} (submit-order) of alice runs since TIME on worker {worker.worker_id} (HOST)",
    )
    assert found.since == await look.value("SELECT since FROM archibald.agents")
    await app.cancel(job.id)
    assert (await app.explain(job.id)).sentence.endswith("; it was asked to stop 0 s ago")


async def test_its_agent_runs_another_job_and_what_goes_first_then(app: Archibald, worker: Hand) -> None:
    runs = await app.enqueue("submit-order", user_id="alice")
    await worker.claim_one()
    last = await app.enqueue("edit-order", user_id="alice")
    assert (await app.explain(last.id)).reason is Reason.AGENT_BUSY
    first = await app.enqueue("submit-order", user_id="alice")
    await worker.turn(look=True)  # puts both into the lane
    found = await app.explain(last.id)
    says(
        found,
        Reason.AGENT_BUSY,
        f"job {last.id} (edit-order) of alice waits: its agent runs job {runs.id} (submit-order) since TIME on worker "
        f"{worker.worker_id} (HOST); then 1 other job of its agent goes first, next job {first.id} (submit-order)",
    )
    assert found.job_id == runs.id


async def test_its_agents_sync_was_asked_to_make_room_or_does_not_stop(
    app: Archibald, worker: Hand, look: Look
) -> None:
    sync = await app.enqueue("sync-orders", user_id="alice")
    await worker.claim_one()
    write = await app.enqueue("submit-order", user_id="alice")
    await worker.turn(look=True)
    busy = f"job {write.id} (submit-order) of alice waits: its agent runs job {sync.id} (sync-orders) since TIME on worker "
    busy += f"{worker.worker_id} (HOST)"
    says(await app.explain(write.id), Reason.MAKING_ROOM, f"{busy}, which was asked to make room N s ago")
    assert (await app.explain(sync.id)).sentence.endswith(", which was asked to make room 0 s ago")
    # 40 s pass
    await look.rows("UPDATE archibald.jobs SET preempt_requested_at = now() - interval '40 s' WHERE id = %s", sync.id)
    await look.rows("UPDATE archibald.agents SET preempt_at = now() - interval '10 s'")
    await worker.turn(look=True)
    says(
        await app.explain(write.id),
        Reason.NOT_MAKING_ROOM,
        f"{busy}, which does not stop although it was asked to make room N s ago; it was requeued until TIME, for the 1st time",
    )


async def test_the_worker_that_runs_its_agents_job_is_silent(app: Archibald, worker: Hand, look: Look) -> None:
    await app.enqueue("submit-order", user_id="alice")
    await worker.claim_one()
    job = await app.enqueue("submit-order", user_id="alice")
    await look.rows("UPDATE archibald.workers SET beat = now() - interval '1 min'")
    sentence = (await app.explain(job.id)).sentence
    assert "last heard of 60 s ago, and no worker is alive that could take over" in sentence


@pytest.mark.parametrize(
    ("until", "words"),
    [(None, "until somebody resumes it because of: on holiday"), ("1 h", "until TIME because of: on holiday")],
)
async def test_its_agent_is_paused_until_and_because_of(
    app: Archibald, worker: Hand, look: Look, until: str | None, words: str
) -> None:
    job = await app.enqueue("submit-order", user_id="alice")
    await worker.turn(look=True)
    if until is None:
        await app.pause_agent("alice", reason="on holiday")
    else:
        await look.value("SELECT archibald.pause_agent('alice', 'on holiday', now() + %s::interval)", until)
    found = await app.explain(job.id)
    says(found, Reason.PAUSED, f"job {job.id} (submit-order) of alice waits: its agent is paused {words}")
    assert (found.until is None) == (until is None)
    await app.resume_agent("alice")
    assert (await app.explain(job.id)).reason is Reason.NEXT


async def test_a_paused_agents_running_job_still_runs(app: Archibald, worker: Hand) -> None:
    runs = await app.enqueue("submit-order", user_id="alice")
    await worker.claim_one()
    job = await app.enqueue("submit-order", user_id="alice")
    await app.pause_agent("alice")
    sentence = (await app.explain(job.id)).sentence
    assert sentence.endswith(f"paused until somebody resumes it; job {runs.id} (submit-order) still runs")


async def test_the_agents_lock_is_held_by_a_backend_and_it_was_requeued_for_the_nth_time(
    app: Archibald, worker: Hand, look: Look, database: str
) -> None:
    job = await app.enqueue("submit-order", user_id="alice")
    async with looking(database, application_name="the accountant's") as other:
        await other.value("SELECT archibald.try_lock_agent('alice')")
        (pid, address) = (await other.rows("SELECT pg_backend_pid(), host(inet_client_addr())"))[0]
        where = address or "local"
        held = (
            f"job {job.id} (submit-order) of alice waits: its agent's lock is held by backend pid {pid} of application "
        )
        held += f"the accountant's ({where}, connected since TIME)"
        says(await app.explain(job.id), Reason.LOCKED, f"{held}; it goes on when the lock is given back")
        found = None
        for count in ("1st", "2nd"):
            await look.rows("UPDATE archibald.agents SET ready_at = now(), retry_at = NULL")
            await worker.claim()
            found = await app.explain(job.id)
            requeued = f"; it was requeued until TIME, for the {count} time"
            says(found, Reason.LOCKED, f"{held}{requeued}; it goes on when the lock is given back")
        assert found
        assert found.until == await look.value("SELECT run_after FROM archibald.jobs")
        later = await app.enqueue("submit-order", user_id="alice")
        assert f"; job {job.id} (submit-order) was requeued until" in (await app.explain(later.id)).sentence
    await look.until("SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = %s)", pid)
    says(
        await app.explain(job.id),
        Reason.REQUEUED,
        f"job {job.id} (submit-order) of alice waits: its agent's lock was held by somebody else; it was requeued until TIME, for "
        "the 2nd time; nobody holds it now, so that a worker takes it within seconds",
    )


async def test_a_worker_that_holds_the_lock_for_the_moment_of_its_claim_is_nobody(
    app: Archibald, worker: Hand, look: Look
) -> None:
    job = await app.enqueue("submit-order", user_id="alice")
    await worker.turn(look=True)
    await worker.connection.execute("SELECT pg_advisory_lock(archibald.lock_key('alice'))")
    assert (await app.explain(job.id)).reason is Reason.NEXT


async def test_it_is_not_due_until_because_of_a_delay(app: Archibald, worker: Hand) -> None:
    job = await app.enqueue("submit-order", user_id="alice", delay=3600)
    found = await app.explain(job.id)
    says(
        found,
        Reason.DELAYED,
        f"job {job.id} (submit-order) of alice is not due until TIME, because it was enqueued with a delay",
    )
    assert found.until == (await job.record()).run_after


async def test_it_is_not_due_until_because_of_a_retry_after_an_error(app: Archibald, worker: Hand) -> None:
    job = await app.enqueue("download-ddt-pdf", user_id="alice")
    await worker.settle(await worker.claim_one(), Outcome.retry("the ERP is down", 60))
    says(
        await app.explain(job.id),
        Reason.RETRY,
        f"job {job.id} (download-ddt-pdf) of alice is not due until TIME, after attempt 1 of 2 failed: the ERP is down",
    )


async def test_it_is_due_and_no_worker_has_looked_yet(app: Archibald, worker: Hand, look: Look) -> None:
    await app.enqueue("submit-order", user_id="alice")
    await worker.settle(await worker.claim_one())
    job = await app.enqueue("submit-order", user_id="alice", delay=3600)
    await look.rows("UPDATE archibald.jobs SET run_after = now()")
    assert (await app.explain(job.id)).reason is Reason.NOT_SEEN
    await worker.turn(look=True)
    assert (await app.explain(job.id)).reason is Reason.NEXT


async def test_its_agent_is_not_known_yet_because_no_worker_has_looked(app: Archibald, worker: Hand) -> None:
    job = await app.enqueue("submit-order", user_id="alice")
    says(
        await app.explain(job.id),
        Reason.NEW_AGENT,
        f"job {job.id} (submit-order) of alice waits: its agent is not known yet, because no worker has looked since it was "
        "enqueued; one looks within a second",
    )
    await worker.turn(look=True)
    assert (await app.explain(job.id)).reason is Reason.NEXT


async def test_it_is_behind_other_jobs_of_its_agent_and_which_goes_first(app: Archibald, worker: Hand) -> None:
    jobs = [await app.enqueue(kind, user_id="alice") for kind in ("sync-orders", "edit-order", "submit-order")]
    await worker.turn(look=True)
    found = await app.explain(jobs[0].id)
    says(
        found,
        Reason.BEHIND,
        f"job {jobs[0].id} (sync-orders) of alice waits behind 2 other jobs of its agent; job {jobs[2].id} (submit-order) goes first; "
        "explain that one",
    )
    assert found.job_id == jobs[2].id
    assert (await app.explain(jobs[2].id)).reason is Reason.NEXT


async def test_all_consumers_of_the_live_workers_that_handle_its_kind_are_busy_and_its_place(
    app: Archibald, database: str
) -> None:
    async with (
        hand(database, ["submit-order"], concurrency=1) as busy,
        hand(database, ["submit-order"], concurrency=1) as second,
        hand(database, ["edit-order"], concurrency=5),
    ):
        await app.enqueue("submit-order", user_id="alice")
        await busy.claim(1)
        waiting = []
        for user in ("bob", "carol", "dan"):
            waiting.append(await app.enqueue("submit-order", user_id=user))
            await busy.turn(look=True)
        assert (await app.explain(waiting[2].id)).reason is Reason.NEXT
        assert [job.user_id for job in await second.claim(1)] == ["bob"]
        for job, place in zip(waiting[1:], ("carol its agent goes next", "dan 1 other agent goes first"), strict=True):
            user, _, words = place.partition(" ")
            says(
                await app.explain(job.id),
                Reason.CONSUMERS_BUSY,
                f"job {job.id} (submit-order) of {user} waits: all consumers (2) of the live workers that handle its kind are busy; "
                f"{words}",
            )


async def test_syncs_wait_for_an_unreserved_consumer(app: Archibald, database: str) -> None:
    async with hand(database, concurrency=3, max_syncs=1) as worker:
        await app.enqueue("sync-orders", user_id="alice")
        await worker.claim(1)
        sync = await app.enqueue("sync-orders", user_id="bob")
        await worker.turn(look=True)
        says(
            await app.explain(sync.id),
            Reason.RESERVED,
            f"job {sync.id} (sync-orders) of bob waits: all consumers that syncs may use (1) are busy, and the others are reserved for "
            "what people ask for; its agent goes next",
        )
        write = await app.enqueue("submit-order", user_id="carol")
        await worker.turn(look=True)
        assert (await app.explain(write.id)).reason is Reason.NEXT
        assert (await app.explain(sync.id)).sentence.endswith("; 1 other agent goes first")


async def test_a_job_needs_review_and_how_to_decide(app: Archibald, worker: Hand) -> None:
    job = await app.enqueue("submit-order", user_id="alice")
    await worker.settle(await worker.claim_one(), Outcome.needs_review("interrupted by shutdown"))
    says(
        await app.explain(job.id),
        Reason.NEEDS_REVIEW,
        f"job {job.id} (submit-order) of alice needs review, because it may or may not have happened: interrupted by shutdown; if it "
        "has, discard it, if it has not, retry it",
    )
    await app.retry(job.id)  # into a lane that is idle until a worker looks
    assert (await app.explain(job.id)).reason is Reason.NOT_SEEN
    await worker.turn(look=True)
    assert (await app.explain(job.id)).reason is Reason.NEXT


async def test_no_worker_is_alive(app: Archibald, look: Look, database: str) -> None:
    job = await app.enqueue("submit-order", user_id="alice")
    words = f"job {job.id} (submit-order) of alice waits: no worker is alive; start one with `archibald-pgq run`"
    says(await app.explain(job.id), Reason.NO_WORKER, words)
    for gone in ("beat = now() - interval '1 h'", "stopped_at = now()", "fenced_at = now()"):
        async with hand(database):
            assert (await app.explain(job.id)).reason is Reason.NEW_AGENT
            await look.rows(f"UPDATE archibald.workers SET {gone}")
            assert (await app.explain(job.id)).reason is Reason.NO_WORKER


async def test_no_live_worker_handles_its_kind(app: Archibald, look: Look, database: str) -> None:
    job = await app.enqueue("submit-order", user_id="alice")
    async with hand(database, ["edit-order"]), hand(database, ["submit-order"]) as gone:
        await look.rows("UPDATE archibald.workers SET beat = now() - interval '1 h' WHERE id = %s", gone.worker_id)
        says(
            await app.explain(job.id),
            Reason.NO_HANDLER,
            f"job {job.id} (submit-order) of alice waits: no live worker (1 alive) handles its kind; the next one that is free fails "
            "it for that",
        )


async def test_its_agent_is_set_aside_while_somebody_holds_its_jobs_row(
    app: Archibald, worker: Hand, database: str
) -> None:
    job = await app.enqueue("submit-order", user_id="alice")
    await worker.turn(look=True)
    async with looking(database) as other:
        await other.rows("BEGIN")
        await other.rows("SELECT FROM archibald.jobs FOR UPDATE")
        assert await worker.claim() == []
        pid = other.connection.info.backend_pid
        words = (
            f"job {job.id} (submit-order) of alice waits: backend pid {pid} of application without a name holds the job's row "
            "or its agent's (its transaction is open since TIME); it goes on when that transaction ends"
        )
        says(await app.explain(job.id), Reason.SET_ASIDE, words)
        await other.rows("ROLLBACK")
        found = await app.explain(job.id)
        assert found.reason is Reason.SET_ASIDE  # until its agent's rest of a second is over
        assert "was held by another session" in found.sentence


@pytest.mark.parametrize("lock", ["FOR UPDATE", "FOR NO KEY UPDATE"])
async def test_the_backend_whose_open_transaction_holds_its_agents_row_is_named(
    app: Archibald, worker: Hand, database: str, lock: str
) -> None:
    job, later = [await app.enqueue(kind, user_id="alice") for kind in ("submit-order", "edit-order")]
    await worker.turn(look=True)
    async with looking(database, application_name="slow shop") as other:
        await other.rows("BEGIN")
        await other.rows(f"SELECT FROM archibald.agents {lock}")
        assert await worker.claim() == []
        found = await app.explain(job.id)
        assert found.reason is Reason.SET_ASIDE
        assert f"backend pid {other.connection.info.backend_pid} of application slow shop holds" in found.sentence
        assert (await app.explain(later.id)).reason is Reason.BEHIND
        await other.rows("ROLLBACK")
    assert (await app.explain(job.id)).reason is Reason.NEXT


async def test_a_finished_job_says_when_and_as_what_and_as_which_job_it_was_retried(
    app: Archibald, worker: Hand
) -> None:
    job = await app.enqueue("submit-order", user_id="alice")
    await worker.settle(await worker.claim_one(), Outcome.failed("no stock"))
    words = f"job {job.id} (submit-order) of alice finished at TIME as failed: no stock"
    found = await app.explain(job.id)
    says(found, Reason.FINISHED, words)
    assert found.since == (await job.record()).finished_at
    again = await app.retry(job.id)
    says(await app.explain(job.id), Reason.FINISHED, f"{words}; it was retried as job {again.id}")
    await worker.settle(await worker.claim_one())
    says(await app.explain(job.id), Reason.FINISHED, f"{words}; it was retried as job {again.id}")
    says(
        await app.explain(again.id),
        Reason.FINISHED,
        f"job {again.id} (submit-order) of alice finished at TIME as completed",
    )


async def test_an_unknown_job_is_said_to_be_unknown(app: Archibald) -> None:
    with pytest.raises(UnknownJobError, match="77"):
        await app.explain(77)
    with pytest.raises((UnknownJobError, InvalidJobError)):
        await app.explain(0)


async def test_synchronous_code_is_told_the_same(app: Archibald, worker: Hand) -> None:
    job = await app.enqueue("submit-order", user_id="alice", delay=3590)
    assert app.sync.explain(job.id).until == (await app.explain(job.id)).until


async def test_the_command_prints_the_sentence_or_json_with_times_in_iso_8601(app: Archibald, database: str) -> None:
    job = await app.enqueue("submit-order", user_id="al\x1bice", delay=3590)
    shown = command("explain", str(job.id), database=database)
    assert (shown.code, shown.err) == (0, "")
    (line,) = shown.out.splitlines()
    assert line.startswith(f"job {job.id} (submit-order) of al\\x1bice is not due until ")
    assert "(in 59 min)" in line
    shown = command("explain", str(job.id), "--json", database=database)
    assert (shown.code, shown.err) == (0, "")
    found: dict[str, Any] = json.loads(shown.out)
    assert list(found) == ["id", "reason", "sentence", "since", "until", "job_id"]
    assert (found["id"], found["reason"], found["since"]) == (job.id, "delayed", None)
    assert datetime.fromisoformat(found["until"]) == (await job.record()).run_after
    assert "there is no job 77" in command("explain", "77", database=database).refused()


# -- what it costs

JOBS = """
INSERT INTO archibald.jobs (agent_id, user_id, kind, class, priority, max_attempts)
SELECT a.id, a.user_id, 'submit-order', 'write', 1, 1 FROM archibald.agents a CROSS JOIN generate_series(1, {each}) WHERE {which}
"""
MEANT = "schemaname = 'archibald' AND (relname IN ('jobs', 'agents') OR relname LIKE 'job_history%%')"
READ = f"""
SELECT (SELECT coalesce(sum(seq_tup_read), 0)::bigint FROM pg_stat_user_tables WHERE {MEANT}),
       (SELECT coalesce(sum(idx_tup_read), 0)::bigint FROM pg_stat_user_indexes WHERE {MEANT})
"""


@pytest.mark.parametrize("statistics", ["fresh", "none"])
async def test_it_reads_no_whole_queue_and_counts_to_a_bound(look: Look, database: str, statistics: str) -> None:
    for table in ("jobs", "agents"):
        await look.rows(f"ALTER TABLE archibald.{table} SET (autovacuum_enabled = off)")
    await look.rows("SET session_replication_role = replica")  # without triggers
    await look.rows(
        "INSERT INTO archibald.agents (user_id, lock_key, state, ready_at, head_kind, head_priority) "
        "SELECT 'u' || n, archibald.lock_key('u' || n), 'ready', now(), 'submit-order', 1 FROM generate_series(1, 12000) n"
    )
    await look.rows("UPDATE archibald.agents SET ready_at = now() + interval '-1 s' WHERE user_id <> 'u9'")
    await look.rows(JOBS.format(each=2, which="true"))
    await look.rows(JOBS.format(each=30000, which="user_id = 'u7'"))
    await look.rows("RESET session_replication_role")
    if statistics == "fresh":
        await look.rows("VACUUM ANALYZE")
    last = await look.value("SELECT max(id) FROM archibald.jobs")
    ninth = await look.value("SELECT min(id) FROM archibald.jobs WHERE user_id = 'u9'")
    async with hand(database, concurrency=0), Archibald(database) as app:
        await until_counted(look, [look.connection])
        ((sequential, indexed),) = await look.rows(READ)
        behind = await app.explain(last)
        waits = await app.explain(ninth)
        await app.close()
        await look.until("SELECT count(*) = 0 FROM pg_stat_activity WHERE application_name = 'archibald-pgq client'")
        await until_counted(look, [look.connection])
        ((sequential_after, indexed_after),) = await look.rows(READ)
    assert (behind.reason, f"behind over {COUNTED} other jobs" in behind.sentence) == (Reason.BEHIND, True)
    assert (waits.reason, f"over {COUNTED} other agents go first" in waits.sentence) == (Reason.CONSUMERS_BUSY, True)
    assert sequential_after == sequential
    # the first plans without statistics may read all ready agents by their index
    assert indexed_after - indexed < (10 if statistics == "fresh" else 20) * COUNTED
