-- What a person decides about jobs: to run one again, or to put one away that needs review.

-- Runs a job again. One that needs review is queued again itself, at its old place. Of one that failed or was cancelled a new job is made,
-- with the same payload and key and today's policy, whose retried_from names it; while such a job is live there is no second one.
-- A sync that needs review is put away instead where the same sync waits: one run serves both, and at most one of them waits.
-- Answers: 'queued' (the same job), 'enqueued' (the new job), 'already retried' (that job), or 'already …' with a state in which there is
-- nothing to retry, and the job as it is. An unknown id: no row.
-- What the job did in steps (checkpoint.v1) the new run finds.
-- Lock order: job, history, steps.
CREATE OR REPLACE FUNCTION archibald.retry_job(p_job bigint) RETURNS TABLE (answer text, job bigint)
LANGUAGE plpgsql SET enable_seqscan = off SET jit = off AS $$
DECLARE
  v_state  text;
  v_twin   bigint;
  v_old    archibald.job_history%ROWTYPE;
BEGIN
  SELECT j.state, CASE WHEN j.class = 'sync' AND j.state = 'needs_review' THEN archibald.queued_sync(j.user_id, j.kind) END INTO v_state, v_twin
    FROM (SELECT * FROM archibald.jobs WHERE id = p_job FOR UPDATE) AS j;
  IF v_twin IS NOT NULL THEN
    PERFORM archibald.discard_job(p_job);
    UPDATE archibald.job_history h
       SET result = jsonb_build_object('absorbed_by', v_twin), error = 'absorbed by job ' || v_twin WHERE h.id = p_job;
    RETURN QUERY SELECT 'already retried', v_twin;
    RETURN;
  END IF;
  IF v_state = 'needs_review' THEN
    -- the wake has its lane looked at, also one that runs a sync
    UPDATE archibald.jobs j SET state = 'queued', wake = true, waiting_since = clock_timestamp(), worker_id = NULL WHERE j.id = p_job;
    PERFORM archibald.steps_of_retry(p_job, p_job);
    PERFORM archibald.hint('wake');
    RETURN QUERY SELECT 'queued', p_job;
    RETURN;
  END IF;
  IF v_state IS NOT NULL THEN
    RETURN QUERY SELECT 'already ' || v_state, p_job;
    RETURN;
  END IF;
  -- FOR UPDATE: of two people who retry it at once, one sees the other's job
  SELECT * INTO v_old FROM archibald.job_history h WHERE h.id = p_job FOR UPDATE;
  IF NOT FOUND THEN
    RETURN;
  END IF;
  IF v_old.state = 'completed' THEN
    RETURN QUERY SELECT 'already completed', p_job;
    RETURN;
  END IF;
  SELECT j.id INTO job FROM archibald.jobs j WHERE j.retried_from = p_job ORDER BY j.id LIMIT 1;
  IF FOUND THEN
    answer := 'already retried';
  ELSE
    job := archibald.enqueue(v_old.user_id, v_old.kind, v_old.payload, v_old.idempotency_key, NULL, p_job);
    -- not ours: somebody asked for the same thing with the same key, or the same sync waits
    answer := CASE WHEN EXISTS (SELECT FROM archibald.jobs j WHERE j.id = retry_job.job AND j.retried_from = p_job) THEN 'enqueued'
                   ELSE 'already retried' END;
    IF answer = 'enqueued' THEN
      PERFORM archibald.steps_of_retry(p_job, job);
    END IF;
  END IF;
  RETURN NEXT;
END $$;

-- Puts away a job that needs review: it ends as cancelled, and its key is free again. Returns 'discarded', or 'already …' with the state of a
-- job that needs no review, or NULL for an unknown id.
-- Lock order: job, history. Its lane is not touched: a job that needs review is not in it.
CREATE OR REPLACE FUNCTION archibald.discard_job(p_job bigint) RETURNS text
LANGUAGE plpgsql SET enable_seqscan = off SET jit = off AS $$
DECLARE
  v_state text;
BEGIN
  SELECT state INTO v_state FROM archibald.jobs WHERE id = p_job FOR UPDATE;
  IF v_state IS NULL THEN
    RETURN (SELECT 'already ' || state FROM archibald.job_history WHERE id = p_job);
  END IF;
  IF v_state <> 'needs_review' THEN
    RETURN 'already ' || v_state;
  END IF;
  WITH gone AS (DELETE FROM archibald.jobs WHERE id = p_job RETURNING *)
  INSERT INTO archibald.job_history (
           id, agent_id, user_id, kind, class, state, priority, run_after, requeue_count, losses, attempt, max_attempts,
           idempotency_key, payload, progress, progress_label, error, worker_id, created_at, waiting_since, started_at, retried_from,
           preempted_by, preemptions)
  SELECT id, agent_id, user_id, kind, class, 'cancelled', priority, run_after, requeue_count, losses, attempt, max_attempts,
         idempotency_key, payload, progress, progress_label, 'discarded' || coalesce(': ' || last_error, ''), worker_id, created_at, waiting_since, started_at,
         retried_from, preempted_by, preemptions
    FROM gone;
  RETURN 'discarded';
END $$;
