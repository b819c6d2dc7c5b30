-- Recomputes lanes from their jobs and frees them: the only code that writes a lane's hint, and the only one that turns a lane
-- into idle or ready.
-- Callers have locked these lanes (FOR NO KEY UPDATE, in the order of id) and know that nobody runs them (any more).
-- A lane that looks empty is called idle only under its bucket's exclusive lock and after a second look by a later statement: an
-- enqueue that saw the lane busy and set no wake may be about to commit. Without the lock the lane is idle *in doubt*, and
-- archibald.look_again() looks again: after 10 ms, because that enqueue is mostly at its commit and its job waits for this look, and
-- after twice as long each time up to 1.28 s, because it may also be a caller's long transaction, for any agent of the bucket.
-- p_sure = false: never take the bucket. It is kept until the commit, and in a caller's long transaction it would stop every enqueue
-- for one agent in 256.
CREATE OR REPLACE FUNCTION archibald.refresh_lanes(p_lanes bigint[], p_sure boolean DEFAULT true) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
  v_empty   bigint[];
  v_buckets integer[] := '{}';
  v_fresh   boolean := current_setting('transaction_isolation') = 'read committed';   -- else no later statement sees more
BEGIN
  v_empty := archibald.hint_lanes(p_lanes, false);
  IF NOT v_fresh THEN
    UPDATE archibald.agents SET doubt_at = clock_timestamp() WHERE id = ANY (p_lanes);
  END IF;
  IF v_empty IS NULL THEN
    RETURN;
  END IF;
  IF p_sure AND v_fresh THEN
    SELECT coalesce(array_agg(bucket), '{}') INTO v_buckets
      FROM (SELECT DISTINCT archibald.bucket(lock_key) AS bucket FROM archibald.agents WHERE id = ANY (v_empty) OFFSET 0) AS b
     WHERE pg_try_advisory_xact_lock(1095910216, bucket);
  END IF;
  v_empty := archibald.hint_lanes(v_empty, true);
  UPDATE archibald.agents a
     SET doubts = CASE WHEN d.sure THEN 0 ELSE a.doubts + 1 END,
         doubt_at = CASE WHEN NOT d.sure THEN clock_timestamp() + interval '10 ms' * power(2, least(a.doubts, 7)) END
    FROM (SELECT id, archibald.bucket(lock_key) = ANY (v_buckets) AS sure FROM archibald.agents WHERE id = ANY (v_empty)) AS d
   WHERE a.id = d.id AND NOT (d.sure AND a.doubts = 0);
END $$;

-- One look: writes hint and state of free lanes that have a due job (p_final: of all of them); returns those that seem to have none.
CREATE OR REPLACE FUNCTION archibald.hint_lanes(p_lanes bigint[], p_final boolean) RETURNS bigint[]
LANGUAGE sql AS $$
  WITH hint AS MATERIALIZED (
    SELECT lane.id, head.kind, head.is_sync, head.priority, head.waiting_since, head.losses
      FROM unnest(p_lanes) AS lane(id)
      LEFT JOIN LATERAL (
        SELECT j.kind, j.class = 'sync' AS is_sync, j.priority, j.waiting_since, j.losses
          FROM archibald.jobs j
         WHERE j.agent_id = lane.id AND j.state = 'queued' AND j.due
         ORDER BY (j.class = 'sync'), j.priority, j.id
         LIMIT 1) AS head ON true
  ), written AS (
    UPDATE archibald.agents a
       SET state = CASE WHEN hint.kind IS NULL OR a.paused_until > now() THEN 'idle' ELSE 'ready' END,
           head_kind = hint.kind,
           head_is_sync = coalesce(hint.is_sync, false),
           head_priority = coalesce(hint.priority, 0),
           head_waiting_since = hint.waiting_since,
           head_losses = coalesce(hint.losses, 0),
           -- a lane that was ready keeps its place; one that was freed goes behind those that wait
           ready_at = CASE WHEN hint.kind IS NULL THEN NULL
                           WHEN a.state = 'ready' THEN greatest(a.ready_at, a.retry_at)
                           ELSE greatest(now(), a.retry_at) END,
           retry_at = CASE WHEN hint.kind IS NULL THEN NULL ELSE a.retry_at END,
           doubt_at = NULL,
           worker_id = NULL,
           turn_job_ids = '{}',
           since = NULL,
           preemptable = false,
           preempt_at = NULL
      FROM hint
     -- = ANY, for a plan that takes the agents for few (see settle): it then passes over these lanes, and not over all
     WHERE a.id = hint.id AND a.id = ANY (p_lanes) AND (p_final OR hint.kind IS NOT NULL)
  )
  SELECT array_agg(id) FROM hint WHERE kind IS NULL
$$;
