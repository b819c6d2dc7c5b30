-- The truth behind NOTIFY: a bounded number of jobs that became due or whose enqueue asked for a look; adopts new agents.
-- Lock order: lane (by id), job. Locked rows are left for the next turn.
CREATE FUNCTION archibald.wake_lanes(p_limit integer) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
  v_jobs   bigint[];
  v_users  text[];
  v_lanes  bigint[];
BEGIN
  UPDATE archibald.jobs SET due = true, wake = true, wait_reason = NULL
   WHERE id IN (SELECT id FROM archibald.jobs WHERE state = 'queued' AND NOT due AND run_after <= now()
                 ORDER BY run_after LIMIT p_limit FOR NO KEY UPDATE SKIP LOCKED);
  SELECT array_agg(id), array_agg(DISTINCT user_id) INTO v_jobs, v_users
    FROM (SELECT id, user_id FROM archibald.jobs WHERE wake ORDER BY id LIMIT p_limit) AS w;
  IF v_jobs IS NULL THEN
    RETURN;
  END IF;
  -- in the order of user_id, so that two workers that adopt at once cannot deadlock
  INSERT INTO archibald.agents (user_id, lock_key)
  SELECT u, archibald.lock_key(u) FROM unnest(v_users) AS u
   WHERE NOT EXISTS (SELECT FROM archibald.agents a WHERE a.user_id = u) ORDER BY u
  ON CONFLICT (user_id) DO NOTHING;
  SELECT array_agg(id) INTO v_lanes
    FROM (SELECT id FROM archibald.agents WHERE user_id = ANY (v_users) ORDER BY id FOR NO KEY UPDATE SKIP LOCKED) AS l;
  UPDATE archibald.jobs j SET wake = false, agent_id = a.id
    FROM (SELECT id, user_id FROM archibald.jobs WHERE id = ANY (v_jobs) AND wake FOR NO KEY UPDATE SKIP LOCKED) AS w
    JOIN archibald.agents a ON a.user_id = w.user_id
   WHERE j.id = w.id AND a.id = ANY (v_lanes);
  -- a lane that runs is recomputed by its settle
  PERFORM archibald.refresh_lanes(ARRAY (SELECT id FROM archibald.agents WHERE id = ANY (v_lanes) AND state <> 'running'));
END $$;

-- A second look: lanes in doubt (oldest look first), pauses that have ended, agents whose foreign lock is gone. Bounded.
CREATE FUNCTION archibald.look_again(p_limit integer) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
  v_lanes bigint[];
BEGIN
  SELECT array_agg(id) INTO v_lanes FROM (
    SELECT id FROM archibald.agents
     WHERE id IN (SELECT id FROM (SELECT id FROM archibald.agents WHERE doubt_at <= now() ORDER BY doubt_at LIMIT p_limit) AS d
                  UNION ALL
                  SELECT id FROM (SELECT id FROM archibald.agents WHERE paused_until <= now() ORDER BY paused_until LIMIT p_limit) AS p)
     ORDER BY id FOR NO KEY UPDATE SKIP LOCKED) AS l;
  IF v_lanes IS NOT NULL THEN
    UPDATE archibald.agents SET doubt_at = NULL,
           paused_until = CASE WHEN paused_until > now() THEN paused_until END,
           paused_reason = CASE WHEN paused_until > now() THEN paused_reason END
     WHERE id = ANY (v_lanes);
    PERFORM archibald.refresh_lanes(ARRAY (SELECT id FROM archibald.agents WHERE id = ANY (v_lanes) AND state <> 'running'));
  END IF;
  PERFORM archibald.release_unlocked(p_limit);
END $$;
