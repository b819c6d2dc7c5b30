-- What a person asked for stops a running sync of the same agent. The request is a column of the sync's job row: NOTIFY only speeds it up,
-- and a worker that hears nothing finds it with its next heartbeat. It is written by workers, in their turns, never by an enqueue: only a
-- committed, due write of an agent that is not paused, and that would be its next job, is a reason.
-- Never: write by write, anything by a read, sync by sync, or another agent's job.
-- Lock order everywhere: lane, job. Nothing here waits for a caller. Jobs are written by their places (ctid), as settle says why.

-- The write that would be an agent's next job, if its next job is a write.
CREATE OR REPLACE FUNCTION archibald.next_write(p_lane bigint) RETURNS TABLE (job bigint, kind text)
LANGUAGE sql STABLE AS $$
  SELECT head.id, head.kind
    FROM (SELECT j.id, j.kind, j.class FROM archibald.jobs j
           WHERE j.agent_id = p_lane AND j.state = 'queued' AND j.due
           ORDER BY (j.class = 'sync'), j.priority, j.id LIMIT 1) AS head
   WHERE head.class = 'write'
$$;

-- Asks the syncs of these lanes to make room where a write is the next job. Returns how many were asked. Callers have locked the lanes.
CREATE OR REPLACE FUNCTION archibald.ask_for_room(p_lanes bigint[]) RETURNS bigint
LANGUAGE sql AS $$
  WITH victim AS MATERIALIZED (
    SELECT r.ctid AS place, r.agent_id
      FROM archibald.agents a JOIN archibald.jobs r ON r.agent_id = a.id AND r.state = 'running'
     WHERE a.id = ANY (p_lanes) AND a.state = 'running' AND a.preemptable AND a.paused_until IS NULL
       AND EXISTS (SELECT FROM archibald.next_write(a.id))
       FOR NO KEY UPDATE OF r SKIP LOCKED
  ), asked AS (
    UPDATE archibald.jobs j SET preempt_requested_at = clock_timestamp() WHERE j.ctid = ANY (ARRAY (SELECT place FROM victim)) RETURNING j.agent_id
  ), noted AS (
    UPDATE archibald.agents a SET preemptable = false, preempt_at = clock_timestamp() + interval '30 s', doubt_at = NULL, doubts = 0
      FROM asked WHERE a.id = asked.agent_id
    RETURNING a.id
  )
  SELECT count(*) FROM noted
$$;

-- Looks at lanes that run a sync: is a write waiting? A lane that has just begun a sync is in doubt: an enqueue that saw it before, when
-- there was nothing to preempt, may be about to commit and has set no wake. As with a lane that looks empty, the answer is sure when the
-- bucket could be had exclusively and a later statement sees no write; until then the lane is looked at again, less and less often.
-- Callers have locked the lanes. p_sure = false: these lanes were woken, and stay as much in doubt as they were.
CREATE OR REPLACE FUNCTION archibald.make_room(p_lanes bigint[], p_sure boolean) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
  v_asked   bigint := archibald.ask_for_room(p_lanes);
  v_buckets integer[];
BEGIN
  IF p_sure THEN
    SELECT coalesce(array_agg(bucket), '{}') INTO v_buckets
      FROM (SELECT DISTINCT archibald.bucket(lock_key) AS bucket FROM archibald.agents WHERE id = ANY (p_lanes) AND preemptable OFFSET 0) AS b
     WHERE pg_try_advisory_xact_lock(1095910216, bucket);
    v_asked := v_asked + archibald.ask_for_room(p_lanes);
    UPDATE archibald.agents a
       SET doubts = CASE WHEN d.sure THEN 0 ELSE a.doubts + 1 END,
           doubt_at = CASE WHEN NOT d.sure THEN clock_timestamp() + interval '10 ms' * power(2, least(a.doubts, 7)) END
      FROM (SELECT id, archibald.bucket(lock_key) = ANY (v_buckets)
                       -- a write is next and the sync's row is held by a caller: it could not be asked yet
                       AND NOT (paused_until IS NULL AND EXISTS (SELECT FROM archibald.next_write(id))) AS sure
              FROM archibald.agents WHERE id = ANY (p_lanes) AND state = 'running' AND preemptable) AS d
     WHERE a.id = d.id;
  END IF;
  IF v_asked > 0 THEN
    PERFORM archibald.hint('preempt');
  END IF;
END $$;

-- 30 s after it was asked the sync still runs: the write that waits is requeued with the usual backoff, and again each time that this
-- is over. Where no write waits any more, the request is taken back. Bounded.
CREATE OR REPLACE FUNCTION archibald.requeue_waiting(p_limit integer)
RETURNS TABLE (lane bigint, user_id text, job bigint, kind text, job_class text, requeue_count integer, delay_s double precision)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
  v_lanes bigint[];
BEGIN
  -- One by one: see archibald.look_again.
  SELECT array_agg(a.id) INTO v_lanes
    FROM (SELECT l.id FROM (SELECT id FROM archibald.agents WHERE preempt_at <= now() ORDER BY preempt_at LIMIT p_limit) AS l ORDER BY l.id) AS l
   CROSS JOIN LATERAL (SELECT a.id FROM archibald.agents a WHERE a.id = l.id AND a.state = 'running' FOR NO KEY UPDATE SKIP LOCKED) AS a;
  IF v_lanes IS NULL THEN
    RETURN;
  END IF;
  PERFORM archibald.withdraw_requests(v_lanes);
  RETURN QUERY
    WITH waiting AS MATERIALIZED (
      SELECT j.ctid AS place FROM archibald.agents a CROSS JOIN LATERAL archibald.next_write(a.id) AS w JOIN archibald.jobs j ON j.id = w.job
       WHERE a.id = ANY (v_lanes) AND a.preempt_at IS NOT NULL
         FOR NO KEY UPDATE OF j SKIP LOCKED
    ), requeued AS (
      UPDATE archibald.jobs j
         SET run_after = now() + archibald.requeue_delay(j.requeue_count),
             requeue_count = least(j.requeue_count, 2147483646) + 1,
             wait_reason = 'requeue'
       WHERE j.ctid = ANY (ARRAY (SELECT place FROM waiting))
      RETURNING j.agent_id, j.user_id, j.id, j.kind, j.class, j.requeue_count, j.run_after
    ), held AS (
      UPDATE archibald.agents a SET preempt_at = r.run_after FROM requeued r WHERE a.id = r.agent_id
    )
    SELECT r.agent_id, r.user_id, r.id, r.kind, r.class, r.requeue_count, extract(epoch FROM r.run_after - now())::double precision
      FROM requeued r;
END $$;

-- Takes back the requests of lanes whose next job is no write any more (it was cancelled, or its agent paused). Callers have locked the lanes.
CREATE OR REPLACE FUNCTION archibald.withdraw_requests(p_lanes bigint[]) RETURNS void
LANGUAGE sql AS $$
  WITH pointless AS MATERIALIZED (
    SELECT r.ctid AS place, r.agent_id
      FROM archibald.agents a JOIN archibald.jobs r ON r.agent_id = a.id AND r.state = 'running'
     WHERE a.id = ANY (p_lanes) AND a.state = 'running' AND r.preempt_requested_at IS NOT NULL
       AND (a.paused_until IS NOT NULL OR NOT EXISTS (SELECT FROM archibald.next_write(a.id)))
       FOR NO KEY UPDATE OF r SKIP LOCKED
  ), taken_back AS (
    UPDATE archibald.jobs j SET preempt_requested_at = NULL WHERE j.ctid = ANY (ARRAY (SELECT place FROM pointless)) RETURNING j.agent_id
  )
  UPDATE archibald.agents a SET preemptable = true, preempt_at = NULL FROM taken_back t WHERE a.id = t.agent_id
$$;

-- The syncs of this worker that are asked to make room, and for which write: asked for at once, and again just before a handler is
-- cancelled by force. Requests that have lost their reason are taken back first.
CREATE OR REPLACE FUNCTION archibald.preempt_requests(p_worker bigint) RETURNS TABLE (lane bigint, epoch bigint, job bigint, by_job bigint, by_kind text)
LANGUAGE plpgsql SET enable_seqscan = off SET jit = off AS $$
#variable_conflict use_column
DECLARE
  v_lanes bigint[];
BEGIN
  SELECT array_agg(id) INTO v_lanes FROM (
    SELECT a.id FROM archibald.agents a
     WHERE a.worker_id = p_worker AND a.state = 'running' AND a.preempt_at IS NOT NULL
     ORDER BY a.id FOR NO KEY UPDATE SKIP LOCKED) AS l;
  PERFORM archibald.withdraw_requests(v_lanes);
  RETURN QUERY
    SELECT a.id, a.epoch, r.id, w.job, w.kind
      FROM archibald.agents a
      JOIN archibald.jobs r ON r.agent_id = a.id AND r.state = 'running' AND r.preempt_requested_at IS NOT NULL
      CROSS JOIN LATERAL archibald.next_write(a.id) AS w
     WHERE a.worker_id = p_worker AND a.state = 'running' AND a.preempt_at IS NOT NULL AND a.paused_until IS NULL;
END $$;
