-- Recomputes lanes from their jobs and frees them, and makes the lanes of new agents: the only code that writes a lane's hint, and the only one
-- that turns a lane into idle or ready.
-- Callers have locked these lanes (FOR NO KEY UPDATE, in the order of id) and know that nobody runs them (any more).
-- A lane that looks empty is called idle only under its bucket's exclusive lock and after a second look by a later statement: an
-- enqueue that saw the lane busy and set no wake may be about to commit. Without the lock the lane is idle *in doubt*, and
-- archibald.look_again() looks again: after 10 ms, because that enqueue is mostly at its commit and its job waits for this look, and
-- after twice as long each time up to 1.28 s, because it may also be a caller's long transaction, for any agent of the bucket.
-- p_sure = false: never take the bucket. It is kept until the commit, and in a caller's long transaction it would stop every enqueue
-- for one agent in 256.
DROP FUNCTION IF EXISTS archibald.hint_lanes(bigint[], boolean[]);
CREATE OR REPLACE FUNCTION archibald.refresh_lanes(p_lanes bigint[], p_sure boolean DEFAULT true) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
  PERFORM archibald.free_lanes(array_agg(a.id), array_agg(a.place), array_agg(a.lock_key), p_sure)
     FROM unnest(p_lanes) AS l(id)
    CROSS JOIN LATERAL (SELECT a.id, a.ctid AS place, a.lock_key FROM archibald.agents a WHERE a.id = l.id LIMIT 1) AS a
   HAVING count(*) > 0;
END $$;

-- The same where it is known of each where it is (which stays so, because it is locked), and its agent's lock key.
CREATE OR REPLACE FUNCTION archibald.free_lanes(p_lanes bigint[], p_places tid[], p_keys bigint[], p_sure boolean) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
  v_sure   boolean[];     -- of each lane: no job was seen and its bucket was had; NULL: one was seen
  v_fresh  boolean := current_setting('transaction_isolation') = 'read committed';   -- else no later statement sees more
BEGIN
  WITH lane AS MATERIALIZED (
    SELECT l.n, archibald.bucket(l.key) AS bucket,
           (SELECT count(*) FROM (SELECT FROM archibald.jobs j WHERE j.agent_id = l.id AND j.state = 'queued' AND j.due
                                   ORDER BY j.agent_id, (j.class = 'sync'), j.priority, j.id LIMIT 1) AS q) AS jobs
      FROM unnest(p_lanes, p_keys) WITH ORDINALITY AS l(id, key, n)
  ), tried AS MATERIALIZED (
    SELECT lane.n, CASE WHEN lane.jobs = 0 THEN p_sure AND v_fresh AND pg_try_advisory_xact_lock(1095910216, lane.bucket) END AS sure FROM lane
  )
  SELECT array_agg(tried.sure ORDER BY tried.n) INTO v_sure FROM tried;
  PERFORM archibald.hint_lanes(p_lanes, p_places, v_sure);
  IF NOT v_fresh THEN
    UPDATE archibald.agents SET doubt_at = clock_timestamp() WHERE id = ANY (p_lanes);
  END IF;
END $$;

-- Writes hint and state of free lanes. p_places, of each: where it is. p_sure, of each: if it looks empty that is so, and not in doubt; NULL: of
-- none of them. By their places, which stay theirs because they are locked: a join by id passes over all of them once for each.
CREATE OR REPLACE FUNCTION archibald.hint_lanes(p_lanes bigint[], p_places tid[], p_sure boolean[]) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
  WITH hint AS MATERIALIZED (
    SELECT lane.place, head.kind, head.is_sync, head.priority, head.waiting_since, head.losses, head.kind IS NULL AS empty,
           head.kind IS NULL AND lane.sure IS NOT TRUE AS doubtful
      FROM unnest(p_lanes, p_places, p_sure) AS lane(id, place, sure)
      LEFT JOIN LATERAL (
        SELECT j.kind, j.class = 'sync' AS is_sync, j.priority, j.waiting_since, j.losses
          FROM archibald.jobs j
         WHERE j.agent_id = lane.id AND j.state = 'queued' AND j.due
         ORDER BY (j.class = 'sync'), j.priority, j.id
         LIMIT 1) AS head ON true
  )
  UPDATE archibald.agents a
     SET state = CASE WHEN hint.empty OR a.paused_until > now() THEN 'idle' ELSE 'ready' END,
         head_kind = hint.kind,
         head_is_sync = coalesce(hint.is_sync, false),
         head_priority = coalesce(hint.priority, 0),
         head_waiting_since = hint.waiting_since,
         head_losses = coalesce(hint.losses, 0),
         -- a lane that was ready keeps its place; one that was freed goes behind those that wait
         ready_at = CASE WHEN hint.empty THEN NULL
                         WHEN a.state = 'ready' THEN greatest(a.ready_at, a.retry_at)
                         ELSE greatest(now(), a.retry_at) END,
         retry_at = CASE WHEN NOT hint.empty THEN a.retry_at END,
         doubts = CASE WHEN hint.doubtful THEN a.doubts + 1 ELSE 0 END,
         doubt_at = CASE WHEN hint.doubtful THEN clock_timestamp() + interval '10 ms' * power(2, least(a.doubts, 7)) END,
         worker_id = NULL,
         turn_job_ids = '{}',
         since = NULL,
         preemptable = false,
         preempt_at = NULL
    FROM hint
   WHERE a.ctid = hint.place;
END $$;

-- Makes the lanes of agents that have none, ready for the best of their jobs that wait for that; returns them. p_keys: the agents' lock keys.
-- In the order of user_id, for others who create agents. The caller is the only worker that does so at this time, and adopts those jobs now.
CREATE OR REPLACE FUNCTION archibald.add_lanes(p_keys bigint[], p_users text[]) RETURNS bigint[]
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
       WHERE j.wake AND j.agent_id IS NULL AND archibald.lock_key(j.user_id) = u.key AND j.user_id = u.user_id
       ORDER BY archibald.lock_key(j.user_id), (j.class = 'sync'), j.priority, j.id LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED) AS head
     WHERE a.known IS NULL
       -- a caller's open transaction may be making that lane: this turn would wait for its end
       AND CASE WHEN pg_try_advisory_lock_shared(1095910217, (u.key & 2147483647)::integer)
                THEN pg_advisory_unlock_shared(1095910217, (u.key & 2147483647)::integer) ELSE false END
     ORDER BY u.user_id
    ON CONFLICT (user_id) DO NOTHING
    RETURNING id
  )
  SELECT coalesce(array_agg(id), '{}') INTO v_new FROM made;
  RETURN v_new;
END $$;
