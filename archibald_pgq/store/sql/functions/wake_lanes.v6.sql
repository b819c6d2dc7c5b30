-- The truth behind NOTIFY: a bounded number of jobs that became due or whose enqueue asked for a look; and the adoption of new agents.

DROP FUNCTION IF EXISTS archibald.agents_to_wake(integer);

-- A look passes over the index entries of jobs that are not committed yet, and a bulk of them makes it slow: 58 ms for 50,000, in every
-- turn of every worker. So a slow one (begun at p_began) is followed by a rest of four times as long, kept in this session.
CREATE OR REPLACE FUNCTION archibald.rest_after(p_began timestamptz) RETURNS timestamptz
LANGUAGE plpgsql AS $$
DECLARE
  v_rest  timestamptz := p_began + 5 * (clock_timestamp() - p_began);
BEGIN
  PERFORM set_config('archibald.wake_rest', v_rest::text, false);
  RETURN v_rest;
END $$;

-- Jobs of agents that have a lane, from a random lane on and round: up to p_limit; and if these are of few lanes, the next lanes behind
-- them, one step of the index for each. By lane, not by age: one agent's 200,000 jobs must not hide the others'.
-- At most p_each jobs of one lane: more of them would take longer than all the rest of a turn, for which others wait.
-- Rows that somebody holds are passed over, however many they are: were they only left out of a first page, a caller who holds
-- that many job rows, or the lane of an agent with that many, would stop every wake-up.
-- Lanes and jobs are locked together and out of order; that cannot deadlock, because nothing here waits for a lane or a job.
-- Returns when to look again: NULL where nothing is left (what commits later brings its own notification, or waits for the poll).
-- p_rests: not while a slow look's rest lasts.
CREATE OR REPLACE FUNCTION archibald.wake_lanes(p_limit integer, p_each integer, p_rests boolean DEFAULT false) RETURNS timestamptz
LANGUAGE plpgsql AS $$
DECLARE
  v_now    timestamptz := clock_timestamp();
  v_rest   timestamptz := nullif(current_setting('archibald.wake_rest', true), '')::timestamptz;
  v_due    boolean;       -- some have become due
  v_from   bigint;
  v_lane   bigint;
  v_round  boolean := false;      -- past the end of the index, and on from its beginning
  v_seen   bigint;
  v_lanes  bigint[];
  v_places tid[];
  v_free   bigint[];      -- those of the lanes that do not run …
  v_room   bigint[];      -- … and those that run a sync that may be asked to make room
BEGIN
  IF p_rests AND v_rest > v_now THEN
    RETURN v_rest;
  END IF;
  FOR look IN 1..2 LOOP
    SELECT count(*), array_agg(DISTINCT p.agent_id), EXISTS (SELECT FROM archibald.jobs WHERE state = 'queued' AND NOT due AND run_after <= now())
      INTO v_seen, v_lanes, v_due
      FROM (SELECT j.agent_id FROM archibald.jobs j WHERE j.wake AND j.agent_id IS NOT NULL
             ORDER BY j.agent_id, (j.class = 'sync'), j.priority, j.id LIMIT p_limit) AS p;
    EXIT WHEN look = 2 OR NOT v_due;
    UPDATE archibald.jobs SET due = true, wake = true, wait_reason = NULL
     WHERE ctid = ANY (ARRAY (SELECT ctid FROM archibald.jobs WHERE state = 'queued' AND NOT due AND run_after <= now()
                               ORDER BY run_after LIMIT p_limit FOR NO KEY UPDATE SKIP LOCKED));
  END LOOP;
  IF v_seen = p_limit THEN      -- there are more: not always the first ones
    v_from := floor(random() * (SELECT j.agent_id + 1 FROM archibald.jobs j WHERE j.wake AND j.agent_id IS NOT NULL
                                 ORDER BY j.agent_id DESC, (j.class = 'sync') DESC, j.priority DESC, j.id DESC LIMIT 1));
    WITH page AS (
      (SELECT j.agent_id FROM archibald.jobs j WHERE j.wake AND j.agent_id >= v_from
        ORDER BY j.agent_id, (j.class = 'sync'), j.priority, j.id LIMIT p_limit)
      UNION ALL
      (SELECT j.agent_id FROM archibald.jobs j WHERE j.wake AND j.agent_id < v_from
        ORDER BY j.agent_id, (j.class = 'sync'), j.priority, j.id LIMIT p_limit)
      LIMIT p_limit
    )
    SELECT count(*), array_agg(DISTINCT page.agent_id) INTO v_seen, v_lanes FROM page;
  END IF;
  IF v_seen = p_limit AND cardinality(v_lanes) < p_limit / 2 THEN
    v_lane := v_from - 1;
    FOR step IN 1..p_limit / 2 LOOP
      v_lane := (SELECT j.agent_id FROM archibald.jobs j WHERE j.wake AND j.agent_id > v_lane
                  ORDER BY j.agent_id, (j.class = 'sync'), j.priority, j.id LIMIT 1);
      IF v_lane IS NULL AND NOT v_round THEN
        v_round := true;
        v_lane := (SELECT j.agent_id FROM archibald.jobs j WHERE j.wake AND j.agent_id IS NOT NULL
                    ORDER BY j.agent_id, (j.class = 'sync'), j.priority, j.id LIMIT 1);
      END IF;
      EXIT WHEN v_lane IS NULL OR v_round AND v_lane >= v_from;
      v_lanes := v_lanes || v_lane;
    END LOOP;
    v_lanes := ARRAY (SELECT DISTINCT l FROM unnest(v_lanes) AS l);
  END IF;
  v_rest := CASE WHEN clock_timestamp() - v_now > interval '10 ms' THEN archibald.rest_after(v_now) END;
  IF v_lanes IS NULL THEN
    RETURN v_rest;
  END IF;
  -- Of each of these lanes the jobs that run first, an equal share; and where they are held, whatever can be had.
  SELECT array_agg(j.place), array_agg(DISTINCT a.id) FILTER (WHERE a.state <> 'running'), array_agg(DISTINCT a.id) FILTER (WHERE a.preemptable)
    INTO v_places, v_free, v_room
    FROM unnest(v_lanes) AS l(id)
   CROSS JOIN LATERAL (SELECT a.id, a.state, a.preemptable FROM archibald.agents a WHERE a.id = l.id FOR NO KEY UPDATE SKIP LOCKED) AS a
   CROSS JOIN LATERAL (
    SELECT j.ctid AS place FROM archibald.jobs j WHERE j.wake AND j.agent_id = a.id
     ORDER BY j.agent_id, (j.class = 'sync'), j.priority, j.id LIMIT greatest(1, least(p_each, p_limit / cardinality(v_lanes)))
       FOR NO KEY UPDATE SKIP LOCKED) AS j;
  IF v_places IS NULL THEN
    v_seen := p_limit;
    SELECT array_agg(w.place), array_agg(DISTINCT w.id) FILTER (WHERE w.state <> 'running'), array_agg(DISTINCT w.id) FILTER (WHERE w.preemptable)
      INTO v_places, v_free, v_room FROM (
      SELECT j.ctid AS place, a.id, a.state, a.preemptable
        FROM archibald.jobs j
       CROSS JOIN LATERAL (SELECT a.id, a.state, a.preemptable FROM archibald.agents a WHERE a.id = j.agent_id FOR NO KEY UPDATE SKIP LOCKED) AS a
       WHERE j.wake AND j.agent_id IS NOT NULL
       ORDER BY j.agent_id, (j.class = 'sync'), j.priority, j.id LIMIT p_limit FOR NO KEY UPDATE OF j SKIP LOCKED) AS w;
  END IF;
  -- By their places, which stay theirs because they are locked. By id, a plan that takes the table for nearly empty (as a vacuum found it
  -- before 200,000 jobs came in at once) passes over all of them once for each that woke: more than 3 s (seen).
  UPDATE archibald.jobs j SET wake = false WHERE j.ctid = ANY (v_places);
  -- A lane that runs is recomputed by its settle. The others have just been given jobs: one that looks empty all the same is in doubt.
  IF v_free IS NOT NULL THEN
    PERFORM archibald.hint_lanes(array_agg(a.id), array_agg(a.place), NULL)
       FROM unnest(v_free) AS f(id) CROSS JOIN LATERAL (SELECT a.id, a.ctid AS place FROM archibald.agents a WHERE a.id = f.id LIMIT 1) AS a;
  END IF;
  IF v_room IS NOT NULL THEN
    PERFORM archibald.make_room(v_room, false);
  END IF;
  IF v_seen = p_limit OR v_seen > coalesce(cardinality(v_places), 0) THEN
    RETURN greatest(clock_timestamp() + interval '0.2 s', v_rest);
  END IF;
  RETURN NULL;
END $$;

-- Jobs that were enqueued before their agent had a lane, in the order in which they would run: gives each agent a lane, and each job its lane.
-- Where no lane is ready, an agent that is new and asks with one job gets a lane that runs it already: for p_want consumers, and p_ahead more
-- of kinds that share turns (p_short). It is never adopted and never ready, which saves most of what a claim writes. A job of a kind that
-- shares turns is not written at all before it ends, or is marked: it keeps its wake, and that it is in a lane's turn says that it needs no look.
-- The agent's session advisory lock comes first, as in a claim; refused, the agent gets a lane that is ready, and the claim requeues its job.
-- Up to p_limit jobs; if they are of few agents, also some of others', found by the index by agent: one agent's 200,000 jobs must not hide them.
-- Of several workers one makes lanes that are ready at a time: two that insert the same agent would wait for each other's turn, and a frozen one
-- would stop all. Lanes that run already are made under their agents' locks, by any number of workers.
-- Returns what archibald.claim returns; a row `left` where some could run at once that were not wanted, so that nothing is to be taken ahead of
-- them; and a row `again`, with the seconds, where there may be more; 0 where first of all it is to be seen whether one of them runs alone.
CREATE OR REPLACE FUNCTION archibald.adopt(p_worker bigint, p_want integer, p_ahead integer, p_short text[], p_elsewhere text[], p_max_wait interval,
                                p_limit integer)
RETURNS TABLE (what text, lane bigint, user_id text, epoch bigint, job bigint, kind text, job_class text, attempt integer, max_attempts integer,
               payload jsonb, saved_state jsonb, requeue_count integer, delay_s double precision, marked boolean)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
  v_now      timestamptz := clock_timestamp();
  v_rest     timestamptz;
  v_jobs     bigint[];      -- what was found, in order …
  v_places   tid[];         -- … where it is, locked …
  v_users    text[];        -- … whose it is …
  v_keys     bigint[];      -- … their lock's key …
  v_kinds    text[];        -- … what it is …
  v_firsts   smallint[];    -- … how urgent …
  v_since    timestamptz[]; -- … since when it waits …
  v_alone    boolean[];     -- … and whether it may run at once
  v_all      boolean;       -- none of those before the last one was held by somebody
  v_losses   boolean;       -- one of them may have to run alone: which one goes first is for the claim to say
  v_full     boolean;       -- there may be more
  v_several  bigint[];      -- agents that ask with several jobs
  v_lanes    bigint[];      -- lanes that were made running …
  v_ran      bigint[];      -- … with these jobs …
  v_marked   bigint[];      -- … of which these are marked running
  v_got      integer;       -- so many agents' locks were had …
  v_refused  bigint[];      -- … and these jobs may not begin
  v_others   bigint[];      -- agents behind one with very many jobs
  v_key      bigint;
  v_round    boolean := false;      -- past the end of the index, and on from its beginning
  v_from     bigint;
  v_new      bigint[] := '{}';
  v_free     bigint[];      -- those of the lanes that do not run …
  v_room     bigint[];      -- … and those that run a sync that may be asked to make room
BEGIN
  -- First as if nobody held any: where that is so, each agent's first job is among those that are found.
  WITH found AS MATERIALIZED (
    SELECT j.ctid AS place, a.id IS NULL AS new
      FROM archibald.jobs j
      LEFT JOIN LATERAL (SELECT l.id, l.turn_job_ids FROM archibald.agents l WHERE l.user_id = j.user_id LIMIT 1) AS a ON true
     WHERE j.wake AND j.agent_id IS NULL AND (a.id IS NULL OR NOT a.turn_job_ids @> ARRAY[j.id])
     ORDER BY j.agent_id, (j.class = 'sync'), j.priority, j.id LIMIT p_limit
  )
  SELECT array_agg(j.id), array_agg(j.place), array_agg(j.user_id), array_agg(j.key), array_agg(j.kind), array_agg(j.priority),
         array_agg(j.waiting_since), array_agg(found.new AND j.can), bool_or(j.losses > 0), bool_and(j.id IS NOT NULL)
    INTO v_jobs, v_places, v_users, v_keys, v_kinds, v_firsts, v_since, v_alone, v_losses, v_all
    FROM found
    LEFT JOIN LATERAL (
    SELECT j.ctid AS place, j.id, j.user_id, archibald.lock_key(j.user_id) AS key, j.kind, j.priority, j.waiting_since, j.losses,
           j.class <> 'sync' AND j.state = 'queued' AND j.due AND j.kind <> ALL (p_elsewhere) AS can
      FROM archibald.jobs j
     WHERE j.ctid = found.place AND j.wake AND j.agent_id IS NULL FOR NO KEY UPDATE SKIP LOCKED) AS j ON true;
  IF NOT v_all THEN     -- those that somebody holds are passed over, however many they are
    SELECT array_agg(p.id), array_agg(p.place), array_agg(p.user_id), array_agg(archibald.lock_key(p.user_id)), array_agg(p.kind),
           array_agg(p.priority), array_agg(p.waiting_since), array_agg(p.alone), bool_or(p.losses > 0)
      INTO v_jobs, v_places, v_users, v_keys, v_kinds, v_firsts, v_since, v_alone, v_losses
      FROM (
      SELECT j.ctid AS place, j.id, j.user_id, j.kind, j.priority, j.waiting_since, j.losses,
             a.id IS NULL AND j.class <> 'sync' AND j.state = 'queued' AND j.due AND j.kind <> ALL (p_elsewhere) AS alone
        FROM archibald.jobs j
        LEFT JOIN LATERAL (SELECT l.id, l.turn_job_ids FROM archibald.agents l WHERE l.user_id = j.user_id LIMIT 1) AS a ON true
       WHERE j.wake AND j.agent_id IS NULL AND (a.id IS NULL OR NOT a.turn_job_ids @> ARRAY[j.id])
       ORDER BY j.agent_id, (j.class = 'sync'), j.priority, j.id LIMIT p_limit FOR NO KEY UPDATE OF j SKIP LOCKED) AS p;
  END IF;
  IF clock_timestamp() - v_now > interval '10 ms' THEN
    v_rest := archibald.rest_after(v_now);
  END IF;
  IF v_jobs IS NULL THEN
    RETURN;
  END IF;
  v_full := cardinality(v_jobs) = p_limit;
  IF cardinality(v_jobs) > 1 THEN
    v_several := ARRAY (SELECT k FROM unnest(v_keys) AS k GROUP BY k HAVING count(*) > 1);
    IF v_several <> '{}' THEN
      v_alone := ARRAY (SELECT i.alone AND i.key <> ALL (v_several) FROM unnest(v_alone, v_keys) WITH ORDINALITY AS i(alone, key, n) ORDER BY i.n);
    END IF;
  END IF;

  IF p_want + p_ahead > 0 AND NOT v_losses AND array_position(v_alone, true) IS NOT NULL
     AND NOT EXISTS (SELECT FROM archibald.agents a WHERE a.state = 'ready' AND NOT a.head_is_sync AND a.ready_at <= v_now)
     AND NOT EXISTS (SELECT FROM archibald.agents a WHERE a.state = 'ready' AND a.head_is_sync AND a.head_waiting_since < v_now - p_max_wait)
     AND pg_try_advisory_xact_lock_shared(1095910216, 1001) THEN
    WITH pick AS MATERIALIZED (
      SELECT i.* FROM (
        SELECT i.*, row_number() OVER (ORDER BY i.place) AS n
          FROM unnest(v_jobs, v_users, v_keys, v_kinds, v_firsts, v_since, v_alone) WITH ORDINALITY
                 AS i(id, user_id, key, kind, priority, waiting_since, alone, place)
         WHERE i.alone) AS i
       WHERE i.n <= p_want OR i.n <= p_want + p_ahead AND i.kind = ANY (p_short)
    ), tried AS MATERIALIZED (
      -- A caller's open transaction may be making that lane: this turn would wait for its end. And somebody may hold an earlier job of that
      -- agent, which is then not among those that were found.
      SELECT pick.*, CASE WHEN CASE WHEN pg_try_advisory_lock_shared(1095910217, (pick.key & 2147483647)::integer)
                                    THEN pg_advisory_unlock_shared(1095910217, (pick.key & 2147483647)::integer) ELSE false END
                           AND (v_all OR pick.id = (
                             SELECT f.id FROM archibald.jobs f
                              WHERE f.wake AND f.agent_id IS NULL AND archibald.lock_key(f.user_id) = pick.key
                              ORDER BY archibald.lock_key(f.user_id), (f.class = 'sync'), f.priority, f.id LIMIT 1))
                          THEN pg_try_advisory_lock(pick.key) END AS got
        FROM pick
    ), made AS (
      INSERT INTO archibald.agents (user_id, lock_key, state, head_kind, head_priority, head_waiting_since, epoch, worker_id, turn_job_ids, since)
      SELECT t.user_id, t.key, 'running', t.kind, t.priority, t.waiting_since, 1, p_worker, ARRAY[t.id], clock_timestamp()
        FROM tried t WHERE t.got
      ON CONFLICT (user_id) DO NOTHING
      RETURNING id, turn_job_ids[1] AS job, head_kind
    )
    SELECT array_agg(made.id), array_agg(made.job), array_agg(made.job) FILTER (WHERE made.head_kind <> ALL (p_short)),
           (SELECT count(*) FROM tried WHERE tried.got), (SELECT array_agg(tried.id) FROM tried WHERE tried.got IS NOT TRUE)
      INTO v_lanes, v_ran, v_marked, v_got, v_refused FROM made;
    IF v_got > coalesce(cardinality(v_ran), 0) THEN      -- somebody else made a lane at the same moment: the look above did not see it
      PERFORM archibald.drop_stray_locks(p_worker);
    END IF;
    IF v_marked IS NOT NULL THEN
      UPDATE archibald.jobs j
         SET state = 'running', worker_id = p_worker, agent_id = v_lanes[array_position(v_ran, j.id)], started_at = clock_timestamp(), wake = false,
             wait_reason = NULL
       WHERE j.ctid = ANY (ARRAY (SELECT i.place FROM unnest(v_jobs, v_places) AS i(job, place) WHERE i.job = ANY (v_marked)));
    END IF;
    RETURN QUERY
      SELECT 'run', i.lane, j.user_id, 1::bigint, j.id, j.kind, j.class, j.attempt, j.max_attempts, j.payload, j.saved_state,
             NULL::integer, NULL::double precision, j.id = ANY (coalesce(v_marked, '{}'))
        FROM unnest(v_lanes, v_ran) AS i(lane, job)
       CROSS JOIN LATERAL (SELECT * FROM archibald.jobs j WHERE j.id = i.job LIMIT 1) AS j
       ORDER BY j.priority, j.id;
    IF cardinality(v_ran) = cardinality(v_jobs) THEN
      RETURN;
    END IF;
    -- Those that could run at once, and were not wanted yet, stay as they are, unless consumers are left: those of agents that are locked.
    SELECT array_agg(i.job), array_agg(i.place), array_agg(i.user_id), array_agg(i.key) INTO v_jobs, v_places, v_users, v_keys
      FROM unnest(v_jobs, v_places, v_users, v_keys, v_alone) AS i(job, place, user_id, key, alone)
     WHERE NOT i.alone OR v_refused IS NOT NULL AND i.job <> ALL (coalesce(v_ran, '{}'));
    IF v_refused IS NULL AND (SELECT count(*) FROM unnest(v_alone) AS alone WHERE alone) > coalesce(cardinality(v_ran), 0) THEN
      what := 'left';
      RETURN NEXT;
    END IF;
    IF v_jobs IS NULL THEN
      RETURN;
    END IF;
  END IF;

  IF v_full AND (SELECT count(DISTINCT k) FROM unnest(v_keys) AS k) < p_limit / 2 THEN
    v_from := hashtextextended(random()::text, 0);
    v_key := v_from;
    FOR step IN 1..greatest(p_limit / 2, 100) LOOP
      v_key := (SELECT archibald.lock_key(j.user_id) FROM archibald.jobs j WHERE j.wake AND j.agent_id IS NULL AND archibald.lock_key(j.user_id) > v_key
                 ORDER BY archibald.lock_key(j.user_id), (j.class = 'sync'), j.priority, j.id LIMIT 1);
      IF v_key IS NULL AND NOT v_round THEN
        v_round := true;
        v_key := (SELECT archibald.lock_key(j.user_id) FROM archibald.jobs j WHERE j.wake AND j.agent_id IS NULL
                   ORDER BY archibald.lock_key(j.user_id), (j.class = 'sync'), j.priority, j.id LIMIT 1);
      END IF;
      EXIT WHEN v_key IS NULL OR v_round AND v_key >= v_from;
      CONTINUE WHEN v_key = ANY (v_keys);
      v_others := v_others || v_key;
    END LOOP;
    SELECT v_jobs || array_agg(j.id), v_places || array_agg(j.place), v_users || array_agg(j.user_id), v_keys || array_agg(k.key)
      INTO v_jobs, v_places, v_users, v_keys
      FROM unnest(v_others) AS k(key)
     CROSS JOIN LATERAL (
      SELECT j.id, j.ctid AS place, j.user_id FROM archibald.jobs j
       WHERE j.wake AND j.agent_id IS NULL AND archibald.lock_key(j.user_id) = k.key AND j.id <> ALL (v_jobs)
       ORDER BY archibald.lock_key(j.user_id), (j.class = 'sync'), j.priority, j.id LIMIT greatest(1, p_limit / cardinality(v_others))
         FOR NO KEY UPDATE SKIP LOCKED) AS j;
  END IF;

  IF EXISTS (SELECT FROM unnest(v_users) AS u
              CROSS JOIN LATERAL (SELECT count(*) AS lanes FROM (SELECT FROM archibald.agents a WHERE a.user_id = u LIMIT 1) AS a) AS a WHERE a.lanes = 0)
     AND pg_try_advisory_xact_lock(1095910216, 1001) THEN
    SELECT archibald.add_lanes(array_agg(k.key), array_agg(k.user_id)) INTO v_new
      FROM (SELECT DISTINCT i.key, i.user_id FROM unnest(v_keys, v_users) AS i(key, user_id)) AS k;
  END IF;
  SELECT array_agg(i.place), array_agg(a.id), array_agg(DISTINCT a.id) FILTER (WHERE a.state <> 'running' AND a.id <> ALL (v_new)),
         array_agg(DISTINCT a.id) FILTER (WHERE a.preemptable)
    INTO v_places, v_lanes, v_free, v_room
    FROM unnest(v_jobs, v_places, v_users) AS i(job, place, user_id)
   CROSS JOIN LATERAL (SELECT a.id, a.state, a.preemptable, a.turn_job_ids FROM archibald.agents a WHERE a.user_id = i.user_id
                          FOR NO KEY UPDATE SKIP LOCKED) AS a
   WHERE NOT a.turn_job_ids @> ARRAY[i.job];
  UPDATE archibald.jobs j SET wake = false, agent_id = w.lane FROM unnest(v_places, v_lanes) AS w(place, lane) WHERE j.ctid = w.place;
  IF v_free IS NOT NULL THEN
    PERFORM archibald.hint_lanes(array_agg(a.id), array_agg(a.place), NULL)
       FROM unnest(v_free) AS f(id) CROSS JOIN LATERAL (SELECT a.id, a.ctid AS place FROM archibald.agents a WHERE a.id = f.id LIMIT 1) AS a;
  END IF;
  IF v_room IS NOT NULL THEN
    PERFORM archibald.make_room(v_room, false);
  END IF;
  IF v_losses OR v_full OR cardinality(v_jobs) > coalesce(cardinality(v_places), 0) THEN
    what := 'again';
    delay_s := CASE WHEN v_losses THEN 0 ELSE greatest(0.2, extract(epoch FROM v_rest - clock_timestamp())) END;
    RETURN NEXT;
  END IF;
END $$;

-- A second look: lanes in doubt (oldest look first; also whether a write waits behind a running sync), pauses that have ended, agents whose foreign lock is gone. Bounded.
CREATE OR REPLACE FUNCTION archibald.look_again(p_limit integer) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
  v_lanes bigint[];
BEGIN
  -- One by one: a plan that was made while there were no agents passes over all of them instead, in each look (20 ms for 10,000: seen).
  SELECT array_agg(a.id) INTO v_lanes
    FROM (SELECT l.id FROM (
            SELECT id FROM (SELECT id FROM archibald.agents WHERE doubt_at <= now() ORDER BY doubt_at LIMIT p_limit) AS d
            UNION
            SELECT id FROM (SELECT id FROM archibald.agents WHERE paused_until <= now() ORDER BY paused_until LIMIT p_limit) AS p) AS l
           ORDER BY l.id) AS l
   CROSS JOIN LATERAL (SELECT a.id FROM archibald.agents a WHERE a.id = l.id FOR NO KEY UPDATE SKIP LOCKED) AS a;
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
