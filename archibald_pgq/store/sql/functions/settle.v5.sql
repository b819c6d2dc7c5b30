-- Writes the outcomes of jobs that this worker ran, and frees the lanes whose turn is over. The fence: nothing is written unless the lane is
-- still this worker's, in this epoch, with this job in its turn. A repeated or late settle changes nothing.
-- p_lanes, p_epochs: the lanes, each once. p_marks, p_marks_ago: of a lane the job that goes on, with the seconds since it began, or NULL: it
-- is marked running. p_of … p_ended: the outcomes, parallel arrays with one element per job: its lane, and how many seconds ago it began
-- and ended (NULL: it never began; at the start of this settle). A lane is freed once no job of its turn is left without an outcome.
-- Jobs of a turn of several are not marked running before p_marks does it, and those that never began go back without being written.
-- Returns the lanes of which nothing was written: lost (no longer ours), or locked (a caller holds a row: ask again); and stop: somebody
-- asked to cancel the job that was marked.
-- Rows are written by their places (ctid), which stay theirs because they are locked: a plan by id that was made while the table looked
-- nearly empty passes over all of it once for each element.
-- Lock order: lane, job, history. Waits for nobody.
CREATE OR REPLACE FUNCTION archibald.settle(p_worker bigint, p_lanes bigint[], p_epochs bigint[], p_marks bigint[], p_marks_ago double precision[],
                                 p_of bigint[], p_jobs bigint[], p_events text[], p_results text[], p_errors text[], p_delays double precision[],
                                 p_began double precision[], p_ended double precision[])
RETURNS TABLE (lane bigint, epoch bigint, fate text)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
  v_passed   bigint[];      -- the lanes that passed the fence, locked …
  v_where    tid[];         -- … where they are …
  v_keys     bigint[];      -- … their locks' keys …
  v_turns    bigint[];      -- … and the jobs of their turns
  v_lanes    bigint[];      -- those of the lanes of which no job is missing
  v_places   tid[];         -- where the jobs are that have an outcome, locked …
  v_marks    tid[];         -- … and those that go on
  v_stop     bigint[];      -- those of them that somebody asked to cancel
  v_missing  boolean;       -- some of them could not be locked
  v_ours     boolean;       -- every outcome is of a job that is in its lane's turn
  v_whole    boolean;       -- and no job of these turns is left without one
  v_any      boolean;       -- some of these lanes …
  v_careful  bigint[];      -- … run one by one until a job of theirs has completed
  v_free     bigint[];      -- lanes whose turn is over
  v_epochs   bigint[];      -- of each outcome its lane's epoch
  v_back     boolean;       -- some outcome does not end its job
  v_now      timestamptz := clock_timestamp();
BEGIN
  WITH lane AS MATERIALIZED (
    SELECT a.id, a.place, a.turn_job_ids, a.careful, a.lock_key
      FROM (SELECT * FROM unnest(p_lanes, p_epochs) AS i(lane, epoch) ORDER BY i.lane) AS i
     CROSS JOIN LATERAL (
      SELECT a.id, a.ctid AS place, a.turn_job_ids, a.careful, a.lock_key FROM archibald.agents a
       WHERE a.id = i.lane AND a.epoch = i.epoch
         AND (a.state = 'running' AND a.worker_id = p_worker) IS TRUE      -- not by the index of these, which would read all of ours for each
         FOR NO KEY UPDATE SKIP LOCKED) AS a
  )
  SELECT array_agg(l.id), array_agg(l.place), array_agg(l.lock_key), bool_or(l.careful),
         (SELECT array_agg(t.job) FROM lane AS m CROSS JOIN LATERAL unnest(m.turn_job_ids) AS t(job))
    INTO v_passed, v_where, v_keys, v_any, v_turns FROM lane AS l;
  v_lanes := v_passed;
  SELECT array_agg(j.ctid ORDER BY i.n) FILTER (WHERE i.n > 0), array_agg(j.ctid ORDER BY i.n DESC) FILTER (WHERE i.n < 0),
         array_agg(j.id) FILTER (WHERE j.cancel_requested_at IS NOT NULL), bool_or(i.job IS NOT NULL AND j.id IS NULL AND NOT i.unwritten)
    INTO v_places, v_marks, v_stop, v_missing
    FROM (SELECT i.job, i.n, i.event = 'go_back' AND i.began IS NULL AS unwritten
            FROM unnest(p_jobs, p_events, p_began) WITH ORDINALITY AS i(job, event, began, n)
          UNION ALL
          SELECT m.job, -m.n, false FROM unnest(p_marks) WITH ORDINALITY AS m(job, n)) AS i
    LEFT JOIN LATERAL (
    SELECT j.id, j.ctid, j.cancel_requested_at FROM archibald.jobs j
     WHERE j.id = i.job AND (j.agent_id = ANY (v_lanes) OR j.agent_id IS NULL)      -- NULL: it began before it was adopted
       FOR UPDATE SKIP LOCKED) AS j ON true;
  -- Is any of them missing: gone, or held by a caller? Then the lane is left as it is, for a later turn. Not where the job never began and goes
  -- back: nothing of it is to be written, and the job before it must not wait for the caller.
  IF v_missing THEN
    v_lanes := ARRAY (
      SELECT l FROM unnest(v_lanes) AS l
       WHERE NOT EXISTS (SELECT FROM (SELECT i.lane, i.job, i.place FROM unnest(p_of, p_jobs, v_places, p_events, p_began)
                                                                             AS i(lane, job, place, event, began)
                                        WHERE NOT (i.event = 'go_back' AND i.began IS NULL)
                                       UNION ALL
                                       SELECT * FROM unnest(p_lanes, p_marks, v_marks)) AS i(lane, job, place)
                          CROSS JOIN LATERAL (SELECT j.id FROM archibald.jobs j WHERE j.id = i.job LIMIT 1) AS j
                          WHERE i.lane = l AND i.place IS NULL));
  END IF;
  -- All at once, for a job is in one turn only. Lane by lane below, where one of them is not ours any more.
  v_ours := NOT EXISTS (SELECT unnest(p_jobs) EXCEPT SELECT unnest(v_turns));
  v_whole := v_ours AND cardinality(p_jobs) = cardinality(v_turns) AND NOT v_any;
  IF cardinality(v_lanes) IS DISTINCT FROM cardinality(p_lanes) OR NOT v_ours THEN
    RETURN QUERY
      SELECT i.lane, i.epoch,
             CASE WHEN EXISTS (SELECT FROM archibald.agents a
                                WHERE a.id = i.lane AND a.state = 'running' AND a.worker_id = p_worker AND a.epoch = i.epoch) THEN 'locked'
                  ELSE 'lost' END
        FROM unnest(p_lanes, p_epochs) AS i(lane, epoch)
       WHERE i.lane <> ALL (coalesce(v_lanes, '{}'));
    IF coalesce(cardinality(v_lanes), 0) = 0 THEN
      RETURN;
    END IF;
    SELECT coalesce(array_agg(i.lane), '{}'), coalesce(array_agg(i.job), '{}'), array_agg(i.place), coalesce(array_agg(i.event), '{}'),
           array_agg(i.result), array_agg(i.error), array_agg(i.delay), array_agg(i.began), array_agg(i.ended)
      INTO p_of, p_jobs, v_places, p_events, p_results, p_errors, p_delays, p_began, p_ended
      FROM unnest(p_of, p_jobs, v_places, p_events, p_results, p_errors, p_delays, p_began, p_ended)
             AS i(lane, job, place, event, result, error, delay, began, ended)
      JOIN archibald.agents a ON a.id = i.lane
     WHERE i.lane = ANY (v_lanes) AND i.job = ANY (a.turn_job_ids);
    v_whole := false;
    p_marks := ARRAY (SELECT CASE WHEN m.lane = ANY (v_lanes) THEN m.job END
                        FROM unnest(p_lanes, p_marks) WITH ORDINALITY AS m(lane, job, n) ORDER BY m.n);
  END IF;

  -- A job that was asked to stop does not go back into the queue because its handler failed, was interrupted, or never began, a moment before.
  IF v_stop IS NOT NULL THEN
    p_events := ARRAY (SELECT CASE WHEN i.event IN ('retry', 'go_back', 'preempt') AND i.job = ANY (v_stop) THEN 'cancel' ELSE i.event END
                         FROM unnest(p_jobs, p_events) WITH ORDINALITY AS i(job, event, n) ORDER BY i.n);
  END IF;
  v_back := NOT p_events <@ ARRAY['complete', 'fail', 'cancel'];

  v_epochs := CASE WHEN p_of = p_lanes THEN p_epochs
                   ELSE ARRAY (SELECT p_epochs[array_position(p_lanes, o.lane)] FROM unnest(p_of) WITH ORDINALITY AS o(lane, n) ORDER BY o.n) END;
  PERFORM archibald.end_jobs(p_worker, v_epochs, p_of, v_places, p_events, p_results, p_errors, p_began, p_ended, v_now);

  -- Back into the queue (or aside). No unique index is written that callers write too: an enqueue in an open transaction cannot stall this.
  IF v_back THEN
    UPDATE archibald.jobs j
       SET state = CASE item.event WHEN 'review' THEN 'needs_review' ELSE 'queued' END,
           wake = j.wake AND j.agent_id IS NOT NULL,
           agent_id = coalesce(j.agent_id, item.lane),
           attempt = j.attempt + (item.event = 'retry')::integer,
           due = item.event <> 'retry' OR item.delay = 0,
           run_after = CASE item.event WHEN 'retry' THEN v_now + make_interval(secs => item.delay) ELSE j.run_after END,
           waiting_since = CASE item.event WHEN 'retry' THEN v_now + make_interval(secs => item.delay) ELSE j.waiting_since END,
           wait_reason = CASE WHEN item.event = 'retry' AND item.delay > 0 THEN 'retry' END,
           started_at = coalesce(j.started_at, v_now - make_interval(secs => item.began)),
           last_error = coalesce(item.error, j.last_error),
           cancel_requested_at = NULL,
           preempt_requested_at = NULL,
           preemptions = CASE item.event WHEN 'preempt' THEN j.preemptions + 1 WHEN 'retry' THEN 0 ELSE j.preemptions END,
           -- it makes room for the write that runs next
           preempted_by = CASE item.event WHEN 'preempt' THEN (
             SELECT q.id FROM archibald.jobs q WHERE q.agent_id = item.lane AND q.state = 'queued' AND q.due AND q.class = 'write'
              ORDER BY (q.class = 'sync'), q.priority, q.id LIMIT 1) ELSE j.preempted_by END,
           worker_id = CASE item.event WHEN 'review' THEN j.worker_id END
      FROM unnest(p_of, v_places, p_events, p_errors, p_delays, p_began) AS item(lane, place, event, error, delay, began)
     WHERE j.ctid = item.place AND item.event IN ('retry', 'go_back', 'preempt', 'review')
       AND (item.event <> 'go_back' OR j.state = 'running' OR item.began IS NOT NULL);
    PERFORM archibald.absorb_followups(p_jobs);
  END IF;

  -- What goes on for longer than a moment is marked: from now on everybody sees that it runs, and a death of this worker is charged to it.
  IF array_remove(p_marks, NULL) <> '{}' THEN
    UPDATE archibald.jobs j
       SET state = 'running', worker_id = p_worker, agent_id = m.lane, started_at = coalesce(j.started_at, v_now - make_interval(secs => m.ago)),
           wake = false, wait_reason = NULL
      FROM unnest(p_lanes, p_marks, v_marks, p_marks_ago) AS m(lane, job, place, ago)
     WHERE j.ctid = m.place AND j.id = m.job;
    RETURN QUERY
      SELECT m.lane, m.epoch, 'stop' FROM unnest(p_lanes, p_epochs, p_marks) AS m(lane, epoch, job) WHERE m.job = ANY (v_stop);
  END IF;

  IF v_whole THEN
    v_free := v_lanes;
  ELSE
   SELECT array_agg(l.id) FILTER (WHERE l.over), array_agg(l.id) FILTER (WHERE l.careful) INTO v_free, v_careful FROM (
    SELECT a.id, NOT EXISTS (SELECT FROM unnest(a.turn_job_ids) AS t WHERE t <> ALL (coalesce(g.jobs, '{}'))) AS over,
           a.careful AND 'complete' = ANY (g.events) AS careful
      FROM unnest(v_lanes) AS l(id)
      LEFT JOIN (SELECT i.lane, array_agg(i.job) AS jobs, array_agg(i.event) AS events
                   FROM unnest(p_of, p_jobs, p_events) AS i(lane, job, event) GROUP BY i.lane) AS g ON g.lane = l.id
     CROSS JOIN LATERAL (SELECT a.id, a.turn_job_ids, a.careful FROM archibald.agents a WHERE a.id = l.id) AS a) AS l;
  END IF;
  IF v_careful IS NOT NULL THEN
    UPDATE archibald.agents a SET careful = false WHERE a.id = ANY (v_careful);
  END IF;
  IF cardinality(v_free) IS DISTINCT FROM cardinality(v_lanes) THEN
    UPDATE archibald.agents a SET turn_job_ids = ARRAY (SELECT t FROM unnest(a.turn_job_ids) AS t WHERE t <> ALL (p_jobs))
     WHERE a.id = ANY (v_lanes) AND a.id <> ALL (coalesce(v_free, '{}'));
    IF v_free IS NULL THEN
      RETURN;
    END IF;
  END IF;
  IF v_whole THEN
    PERFORM archibald.free_lanes(v_passed, v_where, v_keys, true);
  ELSE
    PERFORM archibald.refresh_lanes(v_free);
  END IF;
  -- what waited because of a requeue goes on at once, now that a worker lets the agent go
  IF EXISTS (SELECT FROM archibald.jobs j WHERE j.state = 'queued' AND j.wait_reason = 'requeue')
     OR EXISTS (SELECT FROM archibald.agents a WHERE a.retry_at IS NOT NULL) THEN
    PERFORM archibald.end_requeue(v_free);
  END IF;
  -- last: only what passed the fence
  PERFORM pg_advisory_unlock(l.key) FROM unnest(v_passed, v_keys) AS l(id, key) WHERE v_whole OR l.id = ANY (v_free);
END $$;

-- Moves the jobs whose outcome ends them to the history: the only source of its rows but for cancelled and absorbed jobs that never ran.
-- There is one plan that a turn's settings leave, whatever the statistics say: to each place, once.
DROP FUNCTION IF EXISTS archibald.end_jobs(bigint, bigint[], bigint[], bigint[], tid[], text[], text[], text[], double precision[], double precision[], timestamptz);
CREATE OR REPLACE FUNCTION archibald.end_jobs(p_worker bigint, p_epochs bigint[], p_of bigint[], p_places tid[], p_events text[], p_results text[],
                                   p_errors text[], p_began double precision[], p_ended double precision[], p_now timestamptz)
RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
  WITH done AS (
    DELETE FROM archibald.jobs j
     USING unnest(p_of, p_epochs, p_places, p_events, p_results, p_errors, p_began, p_ended)
             AS i(lane, epoch, place, event, result, error, began, ended)
     WHERE j.ctid = i.place AND i.event IN ('complete', 'fail', 'cancel')
    RETURNING j.*, i.lane, i.epoch, i.event, i.result, i.error, i.began, i.ended
  )
  INSERT INTO archibald.job_history (
           id, agent_id, user_id, kind, class, state, priority, run_after, requeue_count, losses, attempt, max_attempts,
           idempotency_key, payload, progress, progress_label, result, error, worker_id, epoch, created_at, waiting_since, started_at,
           finished_at, retried_from, preempted_by, preemptions)
  SELECT id, lane, user_id, kind, class,
         CASE event WHEN 'complete' THEN 'completed' WHEN 'fail' THEN 'failed' ELSE 'cancelled' END,
         priority, run_after, requeue_count, losses, attempt + (event <> 'cancel')::integer, max_attempts,
         idempotency_key, payload, progress, progress_label, result::jsonb,
         CASE event WHEN 'cancel' THEN 'cancelled on request' ELSE error END,
         p_worker, epoch, created_at, waiting_since,
         coalesce(started_at, p_now - make_interval(secs => began)), p_now - make_interval(secs => coalesce(ended, 0)),
         retried_from, preempted_by, preemptions
    FROM done;
END $$;

-- A sync that went back to the queue absorbs the follow-up that waited behind it: one run serves both.
-- Callers hold the lane. The follow-up ends as cancelled, and its result says which job does its work.
CREATE OR REPLACE FUNCTION archibald.absorb_followups(p_jobs bigint[]) RETURNS void
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
