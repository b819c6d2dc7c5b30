-- Giving a silent worker's agents to others. Decided once per worker, by one statement that is committed before any lane is touched.

-- True if one of the functions below would find something, for who watches over p_me's neighbours: one question a second instead of three.
CREATE OR REPLACE FUNCTION archibald.takeover_due(p_me bigint) RETURNS boolean
LANGUAGE plpgsql STABLE SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off AS $$
BEGIN
  RETURN EXISTS (SELECT FROM archibald.workers w
                  WHERE w.id <> p_me AND w.fenced_at IS NULL AND w.beat < clock_timestamp() - make_interval(secs => w.lease_s)
                    AND (w.stopped_at IS NULL OR EXISTS (SELECT FROM archibald.agents a WHERE a.worker_id = w.id AND a.state = 'running')))
      OR EXISTS (SELECT FROM archibald.workers w
                  WHERE w.fenced_at IS NOT NULL
                    AND (EXISTS (SELECT FROM archibald.agents a WHERE a.worker_id = w.id AND a.state = 'running')
                         OR EXISTS (SELECT FROM pg_stat_activity s WHERE s.pid = w.backend_pid AND s.backend_start = w.backend_start)));
END $$;

-- Fences every worker whose lease has run out. From then on its heartbeat and its turns find no row, and its settles are refused.
-- Also one that has said goodbye and still owns a lane (the reply of its last claim was lost): nobody else would ever free it.
-- FOR UPDATE, because a turn holds its worker's row FOR KEY SHARE: a fence comes before a turn or after it, never into it.
CREATE OR REPLACE FUNCTION archibald.fence_stale_workers(p_me bigint) RETURNS TABLE (worker bigint, host text, pid integer)
LANGUAGE sql SET enable_seqscan = off SET jit = off AS $$
  UPDATE archibald.workers w
     SET fenced_at = clock_timestamp()
   WHERE w.id IN (SELECT s.id FROM archibald.workers s
                   WHERE s.id <> p_me AND s.fenced_at IS NULL AND s.beat < clock_timestamp() - make_interval(secs => s.lease_s)
                     AND (s.stopped_at IS NULL OR EXISTS (SELECT FROM archibald.agents a WHERE a.worker_id = s.id AND a.state = 'running'))
                     AND EXISTS (SELECT FROM archibald.workers me WHERE me.id = p_me AND me.fenced_at IS NULL)
                   ORDER BY s.id FOR UPDATE SKIP LOCKED)
  RETURNING w.id, w.host, w.pid
$$;

-- Fences one worker whose process is proven to have ended: a process of the same boot opened the file that the worker kept locked for its
-- life, and found it free. That needs no lease, neither the dead one's nor the judge's. The proof is of a file, so the row must name that
-- very file: an id or a path that was used again proves nothing.
-- A turn of the dead process that is still under way holds the row: nobody reads its reply, so its backend is ended, and the next look
-- fences the worker.
CREATE OR REPLACE FUNCTION archibald.fence_dead_worker(p_me bigint, p_worker bigint, p_boot text, p_path text, p_file text)
RETURNS TABLE (worker bigint, host text, pid integer)
LANGUAGE plpgsql SET enable_seqscan = off SET jit = off AS $$
#variable_conflict use_column
BEGIN
  RETURN QUERY
    UPDATE archibald.workers w
       SET fenced_at = clock_timestamp()
     WHERE w.id IN (SELECT s.id FROM archibald.workers s
                     WHERE s.id = p_worker AND s.id <> p_me AND s.fenced_at IS NULL
                       AND s.witness_boot = p_boot AND s.witness_path = p_path AND s.witness_file = p_file
                       AND (s.stopped_at IS NULL OR EXISTS (SELECT FROM archibald.agents a WHERE a.worker_id = s.id AND a.state = 'running'))
                       AND EXISTS (SELECT FROM archibald.workers me WHERE me.id = p_me AND me.fenced_at IS NULL)
                     FOR UPDATE SKIP LOCKED)
    RETURNING w.id, w.host, w.pid;
  IF NOT FOUND THEN
    PERFORM pg_terminate_backend(b.pid) FROM (
      SELECT a.pid FROM archibald.workers w JOIN pg_stat_activity a ON a.pid = w.backend_pid AND a.backend_start = w.backend_start
       WHERE w.id = p_worker AND w.id <> p_me AND w.fenced_at IS NULL
         AND w.witness_boot = p_boot AND w.witness_path = p_path AND w.witness_file = p_file OFFSET 0) AS b;
  END IF;
END $$;

-- Ends the recorded backend of a fenced worker, so that its session locks go: that backend only (pid and start), never another holder's.
-- p_silent: also of one that is silent for two leases and could not be fenced: a turn of it hangs (a stopped process reads no reply) and
-- holds its row. That turn is rolled back, and the next look fences the worker. Only for callers who may judge others silent.
-- MATERIALIZED: which ones is settled before any is ended. In a WHERE the planner calls the function below the join, for every backend.
CREATE OR REPLACE FUNCTION archibald.end_lost_backends(p_silent boolean DEFAULT true) RETURNS SETOF integer
LANGUAGE sql AS $$
  WITH lost AS MATERIALIZED (
    SELECT s.pid FROM pg_stat_activity s JOIN archibald.workers w ON w.backend_pid = s.pid AND w.backend_start = s.backend_start
     WHERE (w.fenced_at IS NOT NULL
            OR p_silent AND w.stopped_at IS NULL AND w.beat < clock_timestamp() - make_interval(secs => 2 * w.lease_s))
       AND s.pid <> pg_backend_pid() AND s.datname = current_database()
  ), ended AS MATERIALIZED (
    SELECT pid, pg_terminate_backend(pid) AS done FROM lost
  )
  SELECT pid FROM ended WHERE done
$$;

-- Releases a bounded number of lanes of fenced workers; an error on one does not stop the others. Of each lane's turn:
-- a write that had started may have had its effect and goes to needs_review (unless its operation is idempotent); anything else
-- runs again at once, unless somebody asked to cancel it; a job whose workers died p_max_losses times fails. No attempt is spent.
-- Only the job that was marked running is charged with the loss. Which one of a turn of several it was is not known when none was marked:
-- so the agent's jobs run one by one, and marked, until one has completed.
-- A row that a caller holds is an error of its lane: NOWAIT, because 100 waits of a lock_timeout would be spent holding 100 lanes.
-- Lock order: lane, job, history.
CREATE OR REPLACE FUNCTION archibald.release_fenced_lanes(p_limit integer, p_max_losses integer) RETURNS TABLE (user_id text, job bigint, fate text)
LANGUAGE plpgsql SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off AS $$
#variable_conflict use_column
DECLARE
  v_lane  record;
  v_job   record;
BEGIN
  FOR v_lane IN
    SELECT a.id, a.user_id, a.epoch, a.worker_id, a.turn_job_ids
      FROM archibald.agents a JOIN archibald.workers w ON w.id = a.worker_id
     WHERE a.state = 'running' AND w.fenced_at IS NOT NULL
     ORDER BY random() LIMIT p_limit FOR NO KEY UPDATE OF a SKIP LOCKED     -- random: p_limit lanes in error must not hide the others
  LOOP
    BEGIN
      FOR v_job IN
        SELECT j.id, j.losses + (j.state = 'running')::integer AS losses,
               j.state = 'running' AND j.class = 'write' AND NOT coalesce(o.idempotent, false) AS doubtful,
               j.cancel_requested_at IS NOT NULL AS unwanted
          FROM archibald.jobs j LEFT JOIN archibald.operations o ON o.kind = j.kind
         WHERE j.id = ANY (v_lane.turn_job_ids || ARRAY (SELECT r.id FROM archibald.jobs r WHERE r.agent_id = v_lane.id AND r.state = 'running'))
           AND (j.state = 'running' OR j.cancel_requested_at IS NOT NULL)
           FOR UPDATE OF j NOWAIT
      LOOP
        user_id := v_lane.user_id;
        job := v_job.id;
        fate := CASE WHEN v_job.doubtful THEN 'needs_review' WHEN v_job.unwanted THEN 'cancelled'
                     WHEN v_job.losses >= p_max_losses THEN 'failed' ELSE 'queued' END;
        IF fate IN ('failed', 'cancelled') THEN
          WITH gone AS (DELETE FROM archibald.jobs j WHERE j.id = v_job.id RETURNING j.*)
          INSERT INTO archibald.job_history (
                   id, agent_id, user_id, kind, class, state, priority, run_after, requeue_count, losses, attempt, max_attempts,
                   idempotency_key, payload, progress, progress_label, error, worker_id, epoch, created_at, waiting_since, started_at, retried_from,
                   preempted_by, preemptions)
          SELECT g.id, g.agent_id, g.user_id, g.kind, g.class, fate, g.priority, g.run_after, g.requeue_count, v_job.losses, g.attempt,
                 g.max_attempts, g.idempotency_key, g.payload, g.progress, g.progress_label,
                 CASE fate WHEN 'failed' THEN format('its worker died %s times', v_job.losses) ELSE 'cancelled on request' END,
                 v_lane.worker_id, v_lane.epoch, g.created_at, g.waiting_since, g.started_at, g.retried_from,
                 g.preempted_by, g.preemptions
            FROM gone g;
        ELSE
          UPDATE archibald.jobs j
             SET state = v.state, losses = v_job.losses, last_error = v.error, cancel_requested_at = NULL,
                 preempt_requested_at = NULL,
                 worker_id = CASE v.state WHEN 'needs_review' THEN j.worker_id END
            FROM (SELECT fate AS state, CASE fate WHEN 'needs_review' THEN 'its worker died while it ran' ELSE j.last_error END AS error
                    FROM archibald.jobs j WHERE j.id = v_job.id) AS v
           WHERE j.id = v_job.id;
          PERFORM archibald.absorb_followups(ARRAY[v_job.id]);
        END IF;
        RETURN NEXT;
      END LOOP;
      UPDATE archibald.agents a SET epoch = a.epoch + 1, careful = true WHERE a.id = v_lane.id;
      PERFORM archibald.refresh_lanes(ARRAY[v_lane.id]);
    EXCEPTION WHEN OTHERS THEN
      user_id := v_lane.user_id;
      job := NULL;
      fate := 'error: ' || SQLERRM;
      RETURN NEXT;
    END;
  END LOOP;
  IF FOUND THEN
    PERFORM archibald.hint('wake');    -- else these agents wait for the next poll
  END IF;
END $$;

-- What a worker owns, after a reconnect: it compares this with what it runs, re-takes those locks and gives back the rest.
-- All of it, and without locking the lanes: one that is left out, because a caller holds it or there are many, would be taken for lost and
-- its handler stopped. The worker's row stands for its lanes: while it is locked nobody fences the worker, so nobody else writes them.
-- A fenced worker owns nothing.
CREATE OR REPLACE FUNCTION archibald.retake(p_worker bigint) RETURNS TABLE (lane bigint, epoch bigint, jobs bigint[], got boolean)
LANGUAGE plpgsql SET enable_seqscan = off SET jit = off AS $$
#variable_conflict use_column
BEGIN
  PERFORM 1 FROM archibald.workers w WHERE w.id = p_worker AND w.fenced_at IS NULL FOR KEY SHARE;
  IF NOT FOUND THEN
    RETURN;
  END IF;
  RETURN QUERY
    WITH mine AS MATERIALIZED (
      SELECT a.id, a.epoch, a.turn_job_ids, a.lock_key FROM archibald.agents a
       WHERE a.state = 'running' AND a.worker_id = p_worker
    ), held AS MATERIALIZED (
      SELECT (classid::bigint << 32) | objid::bigint AS key FROM pg_locks
       WHERE locktype = 'advisory' AND objsubid = 1 AND pid = pg_backend_pid()
         AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
    )
    SELECT m.id, m.epoch, m.turn_job_ids,
           CASE WHEN m.lock_key IN (SELECT key FROM held) THEN true ELSE pg_try_advisory_lock(m.lock_key) END
      FROM mine m;
END $$;

-- Frees the agent locks of this session that belong to no lane of this worker (a turn failed after it had taken them), however often it
-- holds each: a session can take the same lock twice.
CREATE OR REPLACE FUNCTION archibald.drop_stray_locks(p_worker bigint) RETURNS SETOF bigint
LANGUAGE plpgsql SET client_min_messages = error AS $$
DECLARE
  v_key bigint;
BEGIN
  FOR v_key IN
    SELECT k.key FROM (
      SELECT (l.classid::bigint << 32) | l.objid::bigint AS key FROM pg_locks l
       WHERE l.locktype = 'advisory' AND l.objsubid = 1 AND l.pid = pg_backend_pid() AND l.granted
         AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())) AS k
     WHERE NOT EXISTS (SELECT FROM archibald.agents a WHERE a.lock_key = k.key AND a.state = 'running' AND a.worker_id = p_worker)
  LOOP
    WHILE pg_advisory_unlock(v_key) LOOP
    END LOOP;
    RETURN NEXT v_key;
  END LOOP;
END $$;
