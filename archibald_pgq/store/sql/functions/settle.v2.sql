-- Writes the outcomes of jobs that this worker ran, and frees their lanes. The fence: nothing is written unless the lane is still this
-- worker's, in this epoch, with this job in its turn. A repeated or late settle finds no lane and changes nothing.
-- The items are parallel arrays, one element per job. Fates: settled; lost (no longer ours); locked (a caller holds the row: ask again).
-- Lock order: lane (by id), job, history. Waits for nobody.
CREATE FUNCTION archibald.settle(p_worker bigint, p_lanes bigint[], p_epochs bigint[], p_jobs bigint[], p_events text[],
                                 p_results text[], p_errors text[], p_delays double precision[])
RETURNS TABLE (lane bigint, epoch bigint, job bigint, fate text)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
  v_items  bigint[];      -- places in the arrays of the items that passed the fence …
  v_lanes  bigint[];      -- … and their lanes, locked
  v_jobs   bigint[];      -- their jobs, locked …
  v_stop   bigint[];      -- … and those of them that somebody asked to cancel
  v_now    timestamptz := clock_timestamp();
BEGIN
  SELECT array_agg(l.n), array_agg(l.id) INTO v_items, v_lanes FROM (
    SELECT a.id, item.n
      FROM archibald.agents a JOIN unnest(p_lanes, p_epochs, p_jobs) WITH ORDINALITY AS item(lane, epoch, job, n) ON item.lane = a.id
     WHERE a.state = 'running' AND a.worker_id = p_worker AND a.epoch = item.epoch AND item.job = ANY (a.turn_job_ids)
     ORDER BY a.id FOR NO KEY UPDATE OF a SKIP LOCKED) AS l;
  SELECT array_agg(j.id), array_agg(j.id) FILTER (WHERE j.cancel_requested_at IS NOT NULL) INTO v_jobs, v_stop FROM (
    SELECT id, cancel_requested_at FROM archibald.jobs WHERE id = ANY (p_jobs) AND agent_id = ANY (v_lanes) ORDER BY id FOR UPDATE SKIP LOCKED) AS j;
  -- a job row that a caller holds: its lane is left as it is, for a later turn
  SELECT array_agg(item.n), array_agg(item.lane) INTO v_items, v_lanes
    FROM unnest(p_lanes, p_jobs) WITH ORDINALITY AS item(lane, job, n)
   WHERE item.n = ANY (v_items)
     AND (item.job = ANY (v_jobs) OR NOT EXISTS (SELECT FROM archibald.jobs j WHERE j.id = item.job));

  -- A job that was asked to stop does not go back into the queue because its handler failed, or was interrupted, a moment before.
  IF v_stop IS NOT NULL THEN
    p_events := ARRAY (SELECT CASE WHEN i.event IN ('retry', 'go_back', 'preempt') AND i.job = ANY (v_stop) THEN 'cancel' ELSE i.event END
                         FROM unnest(p_jobs, p_events) WITH ORDINALITY AS i(job, event, n) ORDER BY i.n);
  END IF;

  WITH item AS (
    SELECT * FROM unnest(p_epochs, p_jobs, p_events, p_results, p_errors) WITH ORDINALITY AS i(epoch, job, event, result, error, n)
     WHERE i.n = ANY (v_items)
  ), done AS (
    DELETE FROM archibald.jobs j USING item
     WHERE j.id = item.job AND item.event IN ('complete', 'fail', 'cancel')
    RETURNING j.*, item.event, item.result, item.error, item.epoch
  )
  INSERT INTO archibald.job_history (
           id, agent_id, user_id, kind, class, state, priority, run_after, requeue_count, losses, attempt, max_attempts,
           idempotency_key, payload, progress, progress_label, result, error, worker_id, epoch, created_at, waiting_since, started_at,
           finished_at, retried_from, preempted_by, preemptions)
  SELECT id, agent_id, user_id, kind, class,
         CASE event WHEN 'complete' THEN 'completed' WHEN 'fail' THEN 'failed' ELSE 'cancelled' END,
         priority, run_after, requeue_count, losses, attempt + (event <> 'cancel')::integer, max_attempts,
         idempotency_key, payload, progress, progress_label, result::jsonb,
         CASE event WHEN 'cancel' THEN 'cancelled on request' ELSE error END, worker_id, epoch, created_at, waiting_since,
         started_at, v_now, retried_from, preempted_by, preemptions
    FROM done;

  -- Back into the queue (or aside). No unique index is written that callers write too: an enqueue in an open transaction cannot stall this.
  UPDATE archibald.jobs j
     SET state = CASE item.event WHEN 'review' THEN 'needs_review' ELSE 'queued' END,
         attempt = j.attempt + (item.event = 'retry')::integer,
         due = item.event <> 'retry' OR item.delay = 0,
         run_after = CASE item.event WHEN 'retry' THEN v_now + make_interval(secs => item.delay) ELSE j.run_after END,
         waiting_since = CASE item.event WHEN 'retry' THEN v_now + make_interval(secs => item.delay) ELSE j.waiting_since END,
         wait_reason = CASE WHEN item.event = 'retry' AND item.delay > 0 THEN 'retry' END,
         last_error = coalesce(item.error, j.last_error),
         cancel_requested_at = NULL,
         preempt_requested_at = NULL,
         preemptions = CASE item.event WHEN 'preempt' THEN j.preemptions + 1 WHEN 'retry' THEN 0 ELSE j.preemptions END,
         -- it makes room for the write that runs next
         preempted_by = CASE item.event WHEN 'preempt' THEN (
           SELECT q.id FROM archibald.jobs q WHERE q.agent_id = j.agent_id AND q.state = 'queued' AND q.due AND q.class = 'write'
            ORDER BY (q.class = 'sync'), q.priority, q.id LIMIT 1) ELSE j.preempted_by END,
         worker_id = CASE item.event WHEN 'review' THEN j.worker_id END
    FROM unnest(p_jobs, p_events, p_errors, p_delays) WITH ORDINALITY AS item(job, event, error, delay, n)
   WHERE j.id = item.job AND item.n = ANY (v_items) AND item.event IN ('retry', 'go_back', 'preempt', 'review');
  PERFORM archibald.absorb_followups(v_jobs);

  PERFORM archibald.refresh_lanes(v_lanes);
  -- what waited because of a requeue goes on at once, now that a worker lets the agent go
  PERFORM archibald.end_requeue(v_lanes);

  RETURN QUERY
    SELECT item.lane, item.epoch, item.job,
           CASE WHEN item.n = ANY (v_items) THEN 'settled'
                WHEN EXISTS (SELECT FROM archibald.agents a
                              WHERE a.id = item.lane AND a.worker_id = p_worker AND a.epoch = item.epoch
                                AND item.job = ANY (a.turn_job_ids)) THEN 'locked'
                ELSE 'lost' END
      FROM unnest(p_lanes, p_epochs, p_jobs) WITH ORDINALITY AS item(lane, epoch, job, n);
  -- last: only what passed the fence
  PERFORM pg_advisory_unlock(a.lock_key) FROM archibald.agents a WHERE a.id = ANY (v_lanes);
END $$;

-- A sync that went back to the queue absorbs the follow-up that waited behind it: one run serves both.
-- Callers hold the lane. The follow-up ends as cancelled, and its result says which job does its work.
CREATE FUNCTION archibald.absorb_followups(p_jobs bigint[]) RETURNS void
LANGUAGE sql AS $$
  WITH twin AS (
    SELECT f.id, b.id AS absorbed_by
      FROM archibald.jobs b JOIN archibald.jobs f
        ON f.user_id = b.user_id AND f.kind = b.kind AND f.class = 'sync' AND f.state = 'queued' AND f.id <> b.id AND f.started_at IS NULL
     WHERE b.id = ANY (p_jobs) AND b.class = 'sync' AND b.state = 'queued'
     FOR UPDATE OF f SKIP LOCKED
  ), gone AS (
    DELETE FROM archibald.jobs j USING twin WHERE j.id = twin.id RETURNING j.*, twin.absorbed_by
  )
  INSERT INTO archibald.job_history (
           id, agent_id, user_id, kind, class, state, priority, run_after, requeue_count, losses, attempt, max_attempts,
           idempotency_key, payload, result, error, created_at, waiting_since, retried_from, preempted_by, preemptions)
  SELECT id, agent_id, user_id, kind, class, 'cancelled', priority, run_after, requeue_count, losses, attempt, max_attempts,
         idempotency_key, payload, jsonb_build_object('absorbed_by', absorbed_by), 'absorbed by job ' || absorbed_by, created_at, waiting_since,
         retried_from, preempted_by, preemptions
    FROM gone
$$;
