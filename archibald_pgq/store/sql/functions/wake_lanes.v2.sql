-- The truth behind NOTIFY: a bounded number of jobs that became due or whose enqueue asked for a look; adopts new agents.

-- Agents with jobs to be looked at, from a random one on and round: of the next p_limit jobs; and if these are of few agents, the next
-- agents behind them, one step of the index for each. By agent, not by age: one agent's 200,000 new jobs must not hide the others'.
CREATE FUNCTION archibald.agents_to_wake(p_limit integer) RETURNS TABLE (key bigint, user_id text)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
  v_from   bigint := hashtextextended(random()::text, 0);
  v_jobs   bigint;
  v_keys   bigint[];
  v_key    bigint;
  v_round  boolean := false;      -- past the end of the index, and on from its beginning
BEGIN
  WITH page AS (
    (SELECT archibald.lock_key(j.user_id) AS key FROM archibald.jobs j WHERE j.wake AND archibald.lock_key(j.user_id) >= v_from
      ORDER BY archibald.lock_key(j.user_id), j.id LIMIT p_limit)
    UNION ALL
    (SELECT archibald.lock_key(j.user_id) FROM archibald.jobs j WHERE j.wake AND archibald.lock_key(j.user_id) < v_from
      ORDER BY archibald.lock_key(j.user_id), j.id LIMIT p_limit)
    LIMIT p_limit
  )
  SELECT count(*), array_agg(DISTINCT page.key) INTO v_jobs, v_keys FROM page;
  IF v_jobs = p_limit AND cardinality(v_keys) < p_limit / 2 THEN
    v_key := v_from;
    FOR step IN 1..p_limit / 2 LOOP
      v_key := (SELECT archibald.lock_key(j.user_id) FROM archibald.jobs j WHERE j.wake AND archibald.lock_key(j.user_id) > v_key
                 ORDER BY archibald.lock_key(j.user_id), j.id LIMIT 1);
      IF v_key IS NULL AND NOT v_round THEN
        v_round := true;
        v_key := (SELECT archibald.lock_key(j.user_id) FROM archibald.jobs j WHERE j.wake
                   ORDER BY archibald.lock_key(j.user_id), j.id LIMIT 1);
      END IF;
      EXIT WHEN v_key IS NULL OR v_round AND v_key >= v_from;
      v_keys := v_keys || v_key;
    END LOOP;
  END IF;
  RETURN QUERY
    SELECT DISTINCT k.key, first.user_id
      FROM unnest(v_keys) AS k(key)
     CROSS JOIN LATERAL (SELECT j.user_id FROM archibald.jobs j WHERE j.wake AND archibald.lock_key(j.user_id) = k.key
                          ORDER BY archibald.lock_key(j.user_id), j.id LIMIT 1) AS first;
END $$;

-- At most p_each jobs of one agent: to adopt 500 of an agent's 200,000 takes longer than all the rest of a turn, for which others wait.
-- Rows that somebody holds are passed over, however many they are: were they only left out of a first page, a caller who holds
-- that many job rows, or the lane of an agent with that many, would stop every wake-up.
-- Lanes and jobs are locked together and out of order; that cannot deadlock, because nothing here waits for a lane or a job.
CREATE FUNCTION archibald.wake_lanes(p_limit integer, p_each integer) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
  v_keys   bigint[];
  v_users  text[];
  v_jobs   bigint[];
  v_agents bigint[];      -- the lane of each of them
BEGIN
  UPDATE archibald.jobs SET due = true, wake = true, wait_reason = NULL
   WHERE id IN (SELECT id FROM archibald.jobs WHERE state = 'queued' AND NOT due AND run_after <= now()
                 ORDER BY run_after LIMIT p_limit FOR NO KEY UPDATE SKIP LOCKED);
  SELECT array_agg(w.key), array_agg(w.user_id) INTO v_keys, v_users FROM archibald.agents_to_wake(p_limit) AS w;
  IF v_users IS NULL THEN
    RETURN;
  END IF;
  -- One worker adopts at a time: two that insert the same agent would wait for each other's turn, and a frozen one would stop all.
  -- In the order of user_id, for others who create agents.
  IF EXISTS (SELECT FROM unnest(v_users) AS u WHERE NOT EXISTS (SELECT FROM archibald.agents a WHERE a.user_id = u))
     AND pg_try_advisory_xact_lock(1095910216, 1001) THEN
    INSERT INTO archibald.agents (user_id, lock_key)
    SELECT u, archibald.lock_key(u) FROM unnest(v_users) AS u
     WHERE NOT EXISTS (SELECT FROM archibald.agents a WHERE a.user_id = u) ORDER BY u
    ON CONFLICT (user_id) DO NOTHING;
  END IF;
  -- Of each of these agents its oldest jobs, an equal share; and where they are held, whatever can be had.
  SELECT array_agg(w.id), array_agg(w.agent) INTO v_jobs, v_agents
    FROM unnest(v_keys) AS k(key)
   CROSS JOIN LATERAL (
    SELECT j.id, a.id AS agent FROM archibald.jobs j JOIN archibald.agents a ON a.user_id = j.user_id
     WHERE j.wake AND archibald.lock_key(j.user_id) = k.key
     ORDER BY archibald.lock_key(j.user_id), j.id LIMIT greatest(1, least(p_each, p_limit / cardinality(v_keys))) FOR NO KEY UPDATE SKIP LOCKED) AS w;
  IF v_jobs IS NULL THEN
    SELECT array_agg(w.id), array_agg(w.agent) INTO v_jobs, v_agents FROM (
      SELECT j.id, a.id AS agent FROM archibald.jobs j JOIN archibald.agents a ON a.user_id = j.user_id
       WHERE j.wake ORDER BY archibald.lock_key(j.user_id), j.id LIMIT p_limit FOR NO KEY UPDATE SKIP LOCKED) AS w;
  END IF;
  UPDATE archibald.jobs j SET wake = false, agent_id = w.agent
    FROM unnest(v_jobs, v_agents) AS w(id, agent) WHERE j.id = w.id;
  -- a lane that runs is recomputed by its settle
  PERFORM archibald.refresh_lanes(ARRAY (SELECT a.id FROM archibald.agents a WHERE a.id = ANY (v_agents) AND a.state <> 'running'));
  PERFORM archibald.make_room(ARRAY (SELECT a.id FROM archibald.agents a WHERE a.id = ANY (v_agents) AND a.preemptable), false);
END $$;

-- A second look: lanes in doubt (oldest look first; also whether a write waits behind a running sync), pauses that have ended, agents whose foreign lock is gone. Bounded.
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
    PERFORM archibald.make_room(ARRAY (SELECT id FROM archibald.agents WHERE id = ANY (v_lanes) AND preemptable), true);
  END IF;
  PERFORM archibald.release_unlocked(p_limit);
END $$;
