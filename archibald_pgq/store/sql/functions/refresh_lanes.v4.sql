-- Recomputes lanes from their jobs and frees them, and makes the lanes of new agents: the only code that writes a lane's hint, and the only one
-- that turns a lane into idle or ready.
-- Callers have locked these lanes (FOR NO KEY UPDATE, in the order of id) and know that nobody runs them (any more).
-- A lane that looks empty is called idle only under its bucket's exclusive lock and after a second look by a later statement: an
-- enqueue that saw the lane busy and set no wake may be about to commit. Without the lock the lane is idle *in doubt*, and
-- archibald.look_again() looks again: after 10 ms, because that enqueue is mostly at its commit and its job waits for this look, and
-- after twice as long each time up to 1.28 s, because it may also be a caller's long transaction, for any agent of the bucket.
-- p_sure = false: never take the bucket. It is kept until the commit, and in a caller's long transaction it would stop every enqueue
-- for one agent in 256.
DROP FUNCTION IF EXISTS archibald.hint_lanes(bigint[], boolean);
CREATE OR REPLACE FUNCTION archibald.refresh_lanes(p_lanes bigint[], p_sure boolean DEFAULT true) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
  v_empty     bigint[];
  v_sure      bigint[];
  v_doubtful  bigint[];
  v_fresh     boolean := current_setting('transaction_isolation') = 'read committed';   -- else no later statement sees more
BEGIN
  v_empty := archibald.hint_lanes(p_lanes, 'with jobs');
  IF NOT v_fresh THEN
    UPDATE archibald.agents SET doubt_at = clock_timestamp() WHERE id = ANY (p_lanes);
  END IF;
  IF v_empty IS NULL THEN
    RETURN;
  END IF;
  v_doubtful := v_empty;
  IF p_sure AND v_fresh THEN
    WITH lane AS MATERIALIZED (
      SELECT l.id, archibald.bucket(a.lock_key) AS bucket
        FROM unnest(v_empty) AS l(id) CROSS JOIN LATERAL (SELECT a.lock_key FROM archibald.agents a WHERE a.id = l.id LIMIT 1) AS a
    ), tried AS MATERIALIZED (
      SELECT lane.id, pg_try_advisory_xact_lock(1095910216, lane.bucket) AS got FROM lane
    )
    SELECT array_agg(id) FILTER (WHERE got), array_agg(id) FILTER (WHERE NOT got) INTO v_sure, v_doubtful FROM tried;
    IF v_sure IS NOT NULL THEN
      PERFORM archibald.hint_lanes(v_sure, 'all');
    END IF;
  END IF;
  IF v_doubtful IS NOT NULL THEN
    PERFORM archibald.hint_lanes(v_doubtful, 'all, in doubt');
  END IF;
END $$;

-- One look: writes hint and state of free lanes ('with jobs': of those that have a due one), and returns those that seem to have none.
-- By their places, which stay theirs because they are locked: a join by id passes over all of them once for each.
CREATE FUNCTION archibald.hint_lanes(p_lanes bigint[], p_which text) RETURNS bigint[]
LANGUAGE plpgsql AS $$
DECLARE
  v_empty  bigint[];
BEGIN
  WITH hint AS MATERIALIZED (
    SELECT lane.id, lane.n, a.place, head.kind, head.is_sync, head.priority, head.waiting_since, head.losses
      FROM unnest(p_lanes) WITH ORDINALITY AS lane(id, n)
     CROSS JOIN LATERAL (SELECT a.ctid AS place FROM archibald.agents a WHERE a.id = lane.id LIMIT 1) AS a
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
           doubts = CASE WHEN hint.kind IS NULL AND p_which = 'all, in doubt' THEN a.doubts + 1 ELSE 0 END,
           doubt_at = CASE WHEN hint.kind IS NULL AND p_which = 'all, in doubt'
                           THEN clock_timestamp() + interval '10 ms' * power(2, least(a.doubts, 7)) END,
           worker_id = NULL,
           turn_job_ids = '{}',
           since = NULL,
           preemptable = false,
           preempt_at = NULL
      FROM hint
     WHERE a.ctid = hint.place AND (p_which <> 'with jobs' OR hint.kind IS NOT NULL)
  )
  SELECT array_agg(id ORDER BY n) INTO v_empty FROM hint WHERE kind IS NULL;
  RETURN v_empty;
END $$;

-- Makes the lanes of agents that have none, ready for the best of their jobs that wait for that; returns them. p_keys: the agents' lock keys.
-- In the order of user_id, for others who create agents. The caller is the only worker that does so at this time, and adopts those jobs now.
CREATE FUNCTION archibald.add_lanes(p_keys bigint[], p_users text[]) RETURNS bigint[]
LANGUAGE plpgsql AS $$
DECLARE
  v_new bigint[];
BEGIN
  WITH made AS (
    INSERT INTO archibald.agents (user_id, lock_key, state, head_kind, head_is_sync, head_priority, head_waiting_since, head_losses, ready_at)
    SELECT u.user_id, u.key, 'ready', head.kind, head.is_sync, head.priority, head.waiting_since, head.losses, now()
      FROM unnest(p_keys, p_users) AS u(key, user_id)
      LEFT JOIN LATERAL (SELECT true AS known FROM archibald.agents a WHERE a.user_id = u.user_id LIMIT 1) AS a ON true
     CROSS JOIN LATERAL (
      SELECT j.kind, j.class = 'sync' AS is_sync, j.priority, j.waiting_since, j.losses FROM archibald.jobs j
       WHERE j.wake AND archibald.lock_key(j.user_id) = u.key AND j.user_id = u.user_id
       ORDER BY archibald.lock_key(j.user_id), (j.class = 'sync'), j.priority, j.id LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED) AS head
     WHERE a.known IS NULL
     ORDER BY u.user_id
    ON CONFLICT (user_id) DO NOTHING
    RETURNING id
  )
  SELECT coalesce(array_agg(id), '{}') INTO v_new FROM made;
  RETURN v_new;
END $$;
