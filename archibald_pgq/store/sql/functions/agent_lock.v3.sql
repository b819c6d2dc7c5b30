-- Keeping an agent to oneself, from any session: psql, another program, another language.
-- Session locks: they outlive a ROLLBACK and end with unlock_agent() or with the session. No row is needed and none is written.

CREATE OR REPLACE FUNCTION archibald.try_lock_agent(user_id text) RETURNS boolean
LANGUAGE plpgsql STRICT AS $$
BEGIN
  IF NOT pg_try_advisory_lock(archibald.lock_key(user_id)) THEN
    RETURN false;
  END IF;
  -- Look again, in a later statement: a worker that lost its session goes on with its handler until its lease ends.
  IF EXISTS (SELECT FROM archibald.agents a WHERE a.user_id = try_lock_agent.user_id AND a.state = 'running') THEN
    PERFORM pg_advisory_unlock(archibald.lock_key(user_id));
    RETURN false;
  END IF;
  RETURN true;
END $$;

-- Returns false, and does nothing, if this session does not hold the lock.
CREATE OR REPLACE FUNCTION archibald.unlock_agent(user_id text) RETURNS boolean
LANGUAGE plpgsql STRICT SET client_min_messages = error AS $$
BEGIN
  IF NOT pg_advisory_unlock(archibald.lock_key(user_id)) THEN
    RETURN false;
  END IF;
  PERFORM archibald.hint('unlock');     -- a worker then releases the agents that waited; no row is touched here
  RETURN true;
END $$;

-- Agents in a requeue's backoff whose lock nobody holds any more go on at once: run_after = now() for the rows that wait because of a
-- requeue, and only those. One look at pg_locks for all of them; bounded.
-- Lock order: lane, job. Never waits for a caller.
CREATE OR REPLACE FUNCTION archibald.release_unlocked(p_limit integer) RETURNS SETOF text
LANGUAGE plpgsql AS $$
DECLARE
  v_lanes bigint[];
BEGIN
  IF NOT EXISTS (SELECT FROM archibald.agents WHERE retry_at > now() AND state = 'ready') THEN
    RETURN;
  END IF;
  WITH held AS MATERIALIZED (
    SELECT (classid::bigint << 32) | objid::bigint AS key
      FROM pg_locks
     WHERE locktype = 'advisory' AND objsubid = 1
       AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
  ), waiting AS MATERIALIZED (
    SELECT id FROM archibald.agents
     WHERE retry_at > now() AND state = 'ready' AND lock_key NOT IN (SELECT key FROM held)
     ORDER BY retry_at LIMIT p_limit
  )
  SELECT array_agg(a.id) INTO v_lanes      -- one by one: see archibald.look_again
    FROM (SELECT waiting.id FROM waiting ORDER BY waiting.id) AS l
   CROSS JOIN LATERAL (SELECT a.id FROM archibald.agents a WHERE a.id = l.id AND a.state = 'ready' FOR NO KEY UPDATE SKIP LOCKED) AS a;
  RETURN QUERY SELECT archibald.end_requeue(v_lanes);
END $$;

-- The one place that ends a requeue's backoff early. Callers have locked the lanes.
-- The jobs are looked for in all these lanes, also where no backoff is left: a better job that ran meanwhile has ended the lane's, and the
-- job that was refused still says that it waits.
CREATE OR REPLACE FUNCTION archibald.end_requeue(p_lanes bigint[]) RETURNS SETOF text
LANGUAGE sql AS $$
  WITH lane AS (
    UPDATE archibald.agents
       SET retry_at = NULL, ready_at = CASE WHEN state = 'ready' THEN now() ELSE ready_at END
     WHERE id = ANY (p_lanes) AND retry_at IS NOT NULL
    RETURNING id, user_id
  ), job AS (
    UPDATE archibald.jobs SET run_after = now(), wait_reason = NULL
     WHERE ctid = ANY (ARRAY (SELECT j.ctid FROM archibald.jobs j
                               WHERE j.agent_id = ANY (p_lanes) AND j.state = 'queued' AND j.wait_reason = 'requeue'
                               FOR NO KEY UPDATE SKIP LOCKED))
  )
  SELECT user_id FROM lane
$$;
