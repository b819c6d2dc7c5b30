-- The truth behind NOTIFY: a bounded number of jobs that became due or whose enqueue asked for a look; adopts new agents.

-- Agents with jobs to be looked at, from a random one on and round: of the next p_limit jobs; and if these are of few agents, the next
-- agents behind them, one step of the index for each. By agent, not by age: one agent's 200,000 new jobs must not hide the others'.
-- seen: of how many jobs it knows (up to p_limit), the same in every row.
CREATE OR REPLACE FUNCTION archibald.agents_to_wake(p_limit integer) RETURNS TABLE (key bigint, user_id text, seen bigint)
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
      ORDER BY archibald.lock_key(j.user_id), (j.class = 'sync'), j.priority, j.id LIMIT p_limit)
    UNION ALL
    (SELECT archibald.lock_key(j.user_id) FROM archibald.jobs j WHERE j.wake AND archibald.lock_key(j.user_id) < v_from
      ORDER BY archibald.lock_key(j.user_id), (j.class = 'sync'), j.priority, j.id LIMIT p_limit)
    LIMIT p_limit
  )
  SELECT count(*), array_agg(DISTINCT page.key) INTO v_jobs, v_keys FROM page;
  IF v_jobs = p_limit AND cardinality(v_keys) < p_limit / 2 THEN
    v_key := v_from;
    FOR step IN 1..p_limit / 2 LOOP
      v_key := (SELECT archibald.lock_key(j.user_id) FROM archibald.jobs j WHERE j.wake AND archibald.lock_key(j.user_id) > v_key
                 ORDER BY archibald.lock_key(j.user_id), (j.class = 'sync'), j.priority, j.id LIMIT 1);
      IF v_key IS NULL AND NOT v_round THEN
        v_round := true;
        v_key := (SELECT archibald.lock_key(j.user_id) FROM archibald.jobs j WHERE j.wake
                   ORDER BY archibald.lock_key(j.user_id), (j.class = 'sync'), j.priority, j.id LIMIT 1);
      END IF;
      EXIT WHEN v_key IS NULL OR v_round AND v_key >= v_from;
      v_keys := v_keys || v_key;
    END LOOP;
  END IF;
  RETURN QUERY
    SELECT DISTINCT k.key, first.user_id, v_jobs
      FROM unnest(v_keys) AS k(key)
     CROSS JOIN LATERAL (SELECT j.user_id FROM archibald.jobs j WHERE j.wake AND archibald.lock_key(j.user_id) = k.key
                          ORDER BY archibald.lock_key(j.user_id), (j.class = 'sync'), j.priority, j.id LIMIT 1) AS first;
END $$;

-- At most p_each jobs of one agent: to adopt 500 of an agent's 200,000 takes longer than all the rest of a turn, for which others wait.
-- Rows that somebody holds are passed over, however many they are: were they only left out of a first page, a caller who holds
-- that many job rows, or the lane of an agent with that many, would stop every wake-up.
-- The lane of each job is looked up from a subquery with a lock of its own, which the planner cannot turn round: from the lanes on, which it
-- does when they are few and the jobs were not analysed yet, each look reads all jobs of an agent with 200,000 (seconds, and every turn).
-- Lanes and jobs are locked together and out of order; that cannot deadlock, because nothing here waits for a lane or a job.
-- Returns when to look again: NULL where nothing is left (what commits later brings its own notification, or waits for the poll).
-- A look passes over the index entries of jobs that are not committed yet, and a bulk of them makes it slow: 58 ms for 50,000, in every
-- turn of every worker. So a slow one is followed by a rest of four times as long, kept in this session; p_rests: unless it is over.
CREATE OR REPLACE FUNCTION archibald.wake_lanes(p_limit integer, p_each integer, p_rests boolean DEFAULT false) RETURNS timestamptz
LANGUAGE plpgsql AS $$
DECLARE
  v_now    timestamptz := clock_timestamp();
  v_rest   timestamptz := nullif(current_setting('archibald.wake_rest', true), '')::timestamptz;
  v_cost   interval;
  v_seen   bigint;
  v_keys   bigint[];
  v_users  text[];
  v_places tid[];
  v_agents bigint[];      -- the lane of each of them
  v_new    bigint[] := '{}';
  v_free   bigint[];      -- those of the lanes that do not run …
  v_room   bigint[];      -- … and those that run a sync that may be asked to make room
BEGIN
  IF p_rests AND v_rest > v_now THEN
    RETURN v_rest;
  END IF;
  IF EXISTS (SELECT FROM archibald.jobs WHERE state = 'queued' AND NOT due AND run_after <= now()) THEN
    UPDATE archibald.jobs SET due = true, wake = true, wait_reason = NULL
     WHERE ctid = ANY (ARRAY (SELECT ctid FROM archibald.jobs WHERE state = 'queued' AND NOT due AND run_after <= now()
                               ORDER BY run_after LIMIT p_limit FOR NO KEY UPDATE SKIP LOCKED));
  END IF;
  v_now := clock_timestamp();
  SELECT array_agg(w.key), array_agg(w.user_id), max(w.seen) INTO v_keys, v_users, v_seen FROM archibald.agents_to_wake(p_limit) AS w;
  v_cost := clock_timestamp() - v_now;
  IF v_cost > interval '10 ms' THEN
    v_rest := v_now + 5 * v_cost;
    PERFORM set_config('archibald.wake_rest', v_rest::text, false);
  END IF;
  IF v_users IS NULL THEN
    RETURN NULL;
  END IF;
  -- One worker adopts at a time: two that insert the same agent would wait for each other's turn, and a frozen one would stop all.
  IF EXISTS (SELECT FROM unnest(v_users) AS u
              CROSS JOIN LATERAL (SELECT count(*) AS lanes FROM (SELECT FROM archibald.agents a WHERE a.user_id = u LIMIT 1) AS a) AS a WHERE a.lanes = 0)
     AND pg_try_advisory_xact_lock(1095910216, 1001) THEN
    v_new := archibald.add_lanes(v_keys, v_users);
  END IF;
  -- Of each of these agents the jobs that run first, an equal share; and where they are held, whatever can be had.
  SELECT array_agg(w.place), array_agg(w.agent), array_agg(DISTINCT w.agent) FILTER (WHERE w.state <> 'running' AND NOT w.agent IN (SELECT unnest(v_new))),
         array_agg(DISTINCT w.agent) FILTER (WHERE w.preemptable)
    INTO v_places, v_agents, v_free, v_room
    FROM unnest(v_keys) AS k(key)
   CROSS JOIN LATERAL (
    SELECT j.ctid AS place, a.id AS agent, a.state, a.preemptable
      FROM archibald.jobs j
     CROSS JOIN LATERAL (SELECT a.id, a.state, a.preemptable FROM archibald.agents a WHERE a.user_id = j.user_id FOR NO KEY UPDATE SKIP LOCKED) AS a
     WHERE j.wake AND archibald.lock_key(j.user_id) = k.key
     ORDER BY archibald.lock_key(j.user_id), (j.class = 'sync'), j.priority, j.id LIMIT greatest(1, least(p_each, p_limit / cardinality(v_keys)))
       FOR NO KEY UPDATE OF j SKIP LOCKED) AS w;
  IF v_places IS NULL THEN
    v_seen := p_limit;
    SELECT array_agg(w.place), array_agg(w.agent), array_agg(DISTINCT w.agent) FILTER (WHERE w.state <> 'running'),
           array_agg(DISTINCT w.agent) FILTER (WHERE w.preemptable)
      INTO v_places, v_agents, v_free, v_room FROM (
      SELECT j.ctid AS place, a.id AS agent, a.state, a.preemptable
        FROM archibald.jobs j
       CROSS JOIN LATERAL (SELECT a.id, a.state, a.preemptable FROM archibald.agents a WHERE a.user_id = j.user_id FOR NO KEY UPDATE SKIP LOCKED) AS a
       WHERE j.wake ORDER BY archibald.lock_key(j.user_id), (j.class = 'sync'), j.priority, j.id LIMIT p_limit FOR NO KEY UPDATE OF j SKIP LOCKED) AS w;
  END IF;
  -- By their places, which stay theirs because they are locked. By id, a plan that takes the table for nearly empty (as a vacuum found it
  -- before 200,000 jobs came in at once) passes over all of them once for each that woke: more than 3 s (seen).
  UPDATE archibald.jobs j SET wake = false, agent_id = w.agent FROM unnest(v_places, v_agents) AS w(place, agent) WHERE j.ctid = w.place;
  -- a lane that runs is recomputed by its settle
  IF v_free IS NOT NULL THEN
    PERFORM archibald.refresh_lanes(v_free);
  END IF;
  IF v_room IS NOT NULL THEN
    PERFORM archibald.make_room(v_room, false);
  END IF;
  IF v_seen = p_limit OR v_seen > coalesce(cardinality(v_places), 0) THEN
    RETURN greatest(clock_timestamp() + interval '0.2 s', v_rest);
  END IF;
  RETURN NULL;
END $$;

-- A second look: lanes in doubt (oldest look first; also whether a write waits behind a running sync), pauses that have ended, agents whose foreign lock is gone. Bounded.
CREATE OR REPLACE FUNCTION archibald.look_again(p_limit integer) RETURNS void
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
