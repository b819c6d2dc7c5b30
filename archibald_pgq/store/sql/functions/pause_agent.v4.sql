-- Holding an agent's jobs back. A running job ends; queued ones wait and keep their places. The pause is a column of the lane, and whatever
-- frees or wakes a lane (refresh_lanes) leaves a paused one idle.
-- Lock order: lane.

-- Until when: a time far ahead stands for "until somebody resumes it" (infinity cannot be calculated with on every server).
-- Returns false, and does nothing, for an agent that never had a job: most likely the name is misspelt.
CREATE OR REPLACE FUNCTION archibald.pause_agent(user_id text, reason text DEFAULT NULL, until timestamptz DEFAULT '9999-12-30Z') RETURNS boolean
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
  v_lane record;
BEGIN
  IF until IS NULL OR until NOT BETWEEN '0001-01-02Z' AND '9999-12-30Z' THEN
    RAISE EXCEPTION 'a pause must end at a time in the years 1 to 9999' USING ERRCODE = 'AQ002';
  END IF;
  -- its jobs may have come in, and been cancelled, while no worker was there to adopt it
  IF NOT EXISTS (SELECT FROM archibald.agents WHERE user_id = pause_agent.user_id)
     AND EXISTS (SELECT FROM archibald.all_jobs WHERE user_id = pause_agent.user_id) THEN
    -- Workers that find its jobs look for this lock, so that none of their turns waits for this transaction's end.
    PERFORM pg_advisory_xact_lock(1095910217, (archibald.lock_key(pause_agent.user_id) & 2147483647)::integer);
    INSERT INTO archibald.agents (user_id, lock_key) VALUES (pause_agent.user_id, archibald.lock_key(pause_agent.user_id))
    ON CONFLICT (user_id) DO NOTHING;
  END IF;
  SELECT id, state, cardinality(turn_job_ids) AS jobs INTO v_lane FROM archibald.agents WHERE user_id = pause_agent.user_id FOR NO KEY UPDATE;
  IF NOT FOUND THEN
    RETURN false;
  END IF;
  UPDATE archibald.agents SET paused_until = until, paused_reason = reason WHERE id = v_lane.id;
  IF v_lane.state <> 'running' THEN
    PERFORM archibald.refresh_lanes(ARRAY[v_lane.id], false);
  ELSIF v_lane.jobs > 1 THEN
    PERFORM archibald.hint('pause');     -- of a turn of several jobs no further one begins
  END IF;
  RETURN true;
END $$;

-- Also closes the agent's breakers (breaker.v1): its syncs that were left alone are due. Lock order: lane, job, breaker.
-- Returns false for an agent that was not paused, nor left alone, NULL for one that is not known.
CREATE OR REPLACE FUNCTION archibald.resume_agent(user_id text) RETURNS boolean
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
  v_lane  record;
  v_kinds text[];      -- of syncs that are left alone
BEGIN
  SELECT id, state, paused_until > clock_timestamp() AS paused INTO v_lane
    FROM archibald.agents WHERE user_id = resume_agent.user_id FOR NO KEY UPDATE;
  IF NOT FOUND THEN
    RETURN CASE WHEN EXISTS (SELECT FROM archibald.all_jobs WHERE user_id = resume_agent.user_id) THEN false END;
  END IF;
  UPDATE archibald.agents
     SET paused_until = NULL, paused_reason = NULL,
         doubt_at = CASE WHEN preemptable THEN clock_timestamp() ELSE doubt_at END       -- does a write wait for the sync that runs?
   WHERE id = v_lane.id AND paused_until IS NOT NULL;
  IF FOUND THEN
    IF v_lane.state <> 'running' THEN
      PERFORM archibald.refresh_lanes(ARRAY[v_lane.id], false);
    END IF;
    PERFORM archibald.hint('wake');
  END IF;
  v_kinds := ARRAY (SELECT b.kind FROM archibald.breakers b
                     WHERE b.user_id = resume_agent.user_id AND b.kind <> '' AND b.open_until > clock_timestamp());
  IF v_kinds <> '{}' THEN
    UPDATE archibald.jobs j SET run_after = clock_timestamp(), waiting_since = clock_timestamp()
     WHERE j.user_id = resume_agent.user_id AND j.kind = ANY (v_kinds) AND j.class = 'sync' AND j.state = 'queued' AND NOT j.due;
    PERFORM archibald.hint('wake');
  END IF;
  DELETE FROM archibald.breakers b WHERE b.user_id = resume_agent.user_id;
  RETURN coalesce(v_lane.paused, false) OR v_kinds <> '{}';
END $$;
