-- Cancels a job that waits, or asks the worker that runs it to stop. Returns what came of it: 'cancelled', 'requested' (it runs: its
-- worker stops it within a second), 'already …' with the state in which it had ended before, or NULL for an unknown id.
-- Lock order: lane, job, history.
CREATE OR REPLACE FUNCTION archibald.cancel_job(p_job bigint) RETURNS text
LANGUAGE plpgsql SET enable_seqscan = off SET jit = off AS $$
DECLARE
  v_user   text;
  v_lane   record;
  v_late   boolean := false;     -- its lane was made meanwhile, and is not locked
  v_job    archibald.jobs%ROWTYPE;
BEGIN
  SELECT user_id INTO v_user FROM archibald.jobs WHERE id = p_job;
  SELECT id, state, turn_job_ids INTO v_lane FROM archibald.agents WHERE user_id = v_user FOR NO KEY UPDATE;
  SELECT * INTO v_job FROM archibald.jobs WHERE id = p_job FOR UPDATE;
  IF NOT FOUND THEN
    RETURN (SELECT 'already ' || state FROM archibald.job_history WHERE id = p_job);
  END IF;
  -- A worker that has begun it meanwhile has made its lane, and has not written its row: a later statement sees that, an old snapshot does not.
  IF v_lane.id IS NULL THEN
    v_late := true;
    SELECT id, state, turn_job_ids INTO v_lane FROM archibald.agents WHERE user_id = v_job.user_id;
    IF v_lane.id IS NULL AND current_setting('transaction_isolation') <> 'read committed' THEN
      IF NOT pg_try_advisory_lock(archibald.lock_key(v_job.user_id)) THEN
        RAISE EXCEPTION 'job % may have been started since this transaction began; cancel it again in a new one', p_job USING ERRCODE = '40001';
      END IF;
      PERFORM pg_advisory_unlock(archibald.lock_key(v_job.user_id));
    END IF;
  END IF;
  IF v_job.state = 'running' OR p_job = ANY (v_lane.turn_job_ids) THEN
    UPDATE archibald.jobs SET cancel_requested_at = coalesce(cancel_requested_at, clock_timestamp()) WHERE id = p_job;
    PERFORM archibald.hint('cancel');
    RETURN 'requested';
  END IF;
  WITH gone AS (DELETE FROM archibald.jobs WHERE id = p_job RETURNING *)
  INSERT INTO archibald.job_history (
           id, agent_id, user_id, kind, class, state, priority, run_after, requeue_count, losses, attempt, max_attempts,
           idempotency_key, payload, progress, progress_label, error, worker_id, created_at, waiting_since, started_at, retried_from,
           preempted_by, preemptions)
  SELECT id, agent_id, user_id, kind, class, 'cancelled', priority, run_after, requeue_count, losses, attempt, max_attempts,
         idempotency_key, payload, progress, progress_label, 'cancelled on request', worker_id, created_at, waiting_since, started_at,
         retried_from, preempted_by, preemptions
    FROM gone;
  IF v_late THEN
    NULL;                                                         -- the claim finds that it has gone
  ELSIF v_lane.state <> 'running' THEN
    PERFORM archibald.refresh_lanes(ARRAY[v_lane.id], false);    -- this may be a caller's long transaction
  ELSE
    UPDATE archibald.agents SET doubt_at = clock_timestamp() WHERE id = v_lane.id AND preemptable;   -- a write may be next now
  END IF;
  RETURN 'cancelled';
END $$;
