-- Lanes that contradict their jobs: finding them, and repairing those that no live worker is concerned with. The doctor's; workers never
-- call it. A contradiction comes from a change by hand, or is a defect of the queue.

-- Looks, by index, at up to p_limit agents with due jobs (those behind p_from; NULL: from a random one on and round), and as many ready
-- lanes, running lanes and lanes of running jobs. STABLE: all statements see what the caller's sees, so that a claim or a settle in between is no contradiction.
-- A lane that somebody is about to look at (a wake, a doubt, a pause with an end) is none either. A lost worker's lanes are the takeover's.
-- Returns a row for each odd lane, and one (fault NULL) with the number of lanes looked at and in `lane` the last agent with due jobs, from
-- which to go on (NULL: there are no more).
CREATE OR REPLACE FUNCTION archibald.odd_lanes(p_limit integer, p_from bigint DEFAULT NULL)
RETURNS TABLE (lane bigint, user_id text, fault text, mendable boolean, worker_id bigint, looked bigint)
LANGUAGE plpgsql STABLE SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off AS $$
#variable_conflict use_column
DECLARE
  v_from   bigint := coalesce(p_from, floor(random() * coalesce((SELECT max(id) FROM archibald.agents), 0))::bigint);
  v_next   bigint := v_from;
  v_round  boolean := p_from IS NOT NULL;     -- past the last agent, and on from the first
  v_lanes  bigint[] := '{}';
BEGIN
  WHILE cardinality(v_lanes) < p_limit LOOP
    v_next := (SELECT j.agent_id FROM archibald.jobs j WHERE j.state = 'queued' AND j.due AND j.agent_id > v_next
                ORDER BY j.agent_id, (j.class = 'sync'), j.priority, j.id LIMIT 1);
    IF v_next IS NULL AND NOT v_round THEN
      v_round := true;
      v_next := -1;
      CONTINUE;
    END IF;
    EXIT WHEN v_next IS NULL OR p_from IS NULL AND v_round AND v_next > v_from;
    v_lanes := v_lanes || v_next;
  END LOOP;
  v_lanes := ARRAY (
    SELECT unnest(v_lanes)
    UNION
    (SELECT a.id FROM archibald.agents a WHERE a.state = 'ready' ORDER BY a.head_is_sync, a.head_priority, a.ready_at LIMIT p_limit)
    UNION
    (SELECT a.id FROM archibald.agents a WHERE a.state = 'running' LIMIT p_limit)
    UNION
    (SELECT j.agent_id FROM archibald.jobs j WHERE j.state = 'running' LIMIT p_limit));
  RETURN QUERY
    WITH held AS MATERIALIZED (
      SELECT (l.classid::bigint << 32) | l.objid::bigint AS key FROM pg_locks l
       WHERE l.locktype = 'advisory' AND l.objsubid = 1 AND l.granted
         AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
    ), seen AS MATERIALIZED (
      SELECT a.id, a.user_id, a.lock_key, coalesce(a.worker_id, r.worker_id) AS worker_id,
             CASE WHEN a.state = 'running' AND w.id IS NULL THEN 'running_without_worker'
                  WHEN a.state = 'running' AND r.id IS NULL AND w.fenced_at IS NULL
                       AND NOT EXISTS (SELECT FROM archibald.jobs j WHERE j.id = ANY (a.turn_job_ids)) THEN 'running_without_job'
                  WHEN a.state <> 'running' AND r.id IS NOT NULL THEN 'job_without_lane'
                  WHEN a.state = 'running' OR a.doubt_at IS NOT NULL THEN NULL
                  WHEN EXISTS (SELECT FROM archibald.jobs j WHERE j.wake AND j.agent_id = a.id) THEN NULL
                  WHEN EXISTS (SELECT FROM archibald.jobs j WHERE j.wake AND j.agent_id IS NULL AND archibald.lock_key(j.user_id) = a.lock_key) THEN NULL
                  WHEN a.state = 'idle' AND h.id IS NOT NULL AND a.paused_until IS NULL THEN 'idle_with_job'
                  WHEN a.state = 'ready' AND h.id IS NULL THEN 'ready_without_job'
                  -- not the kind: of jobs that are equal in the order, the older one may have been committed later
                  WHEN a.state = 'ready' AND (a.head_is_sync, a.head_priority) <> (h.is_sync, h.priority) THEN 'wrong_hint'
             END AS fault
        FROM unnest(v_lanes) AS l(id)
        JOIN archibald.agents a ON a.id = l.id
        LEFT JOIN archibald.jobs r ON r.agent_id = a.id AND r.state = 'running'
        LEFT JOIN archibald.workers w ON w.id = a.worker_id
        LEFT JOIN LATERAL (SELECT j.id, j.class = 'sync' AS is_sync, j.priority FROM archibald.jobs j
                            WHERE j.agent_id = a.id AND j.state = 'queued' AND j.due
                            ORDER BY (j.class = 'sync'), j.priority, j.id LIMIT 1) AS h ON true
    )
    SELECT s.id, s.user_id, s.fault,
           CASE s.fault WHEN 'running_without_job' THEN false
                        WHEN 'running_without_worker' THEN s.lock_key NOT IN (SELECT key FROM held)
                        WHEN 'job_without_lane' THEN s.lock_key NOT IN (SELECT key FROM held)
                        ELSE true END,
           s.worker_id, NULL::bigint
      FROM seen s WHERE s.fault IS NOT NULL
     UNION ALL
    SELECT v_next, NULL, NULL, NULL, NULL, cardinality(v_lanes);
END $$;

-- Looks as odd_lanes(p_look) does, and repairs up to p_limit lanes; returns those that it repaired. Whatever somebody holds is left to the next call, nothing waits.
-- A wrong hint is computed anew by refresh_lanes(). A lane, or a running job, whose worker is not there is given to a worker made for this
-- that is fenced already, and goes the way of every lost worker's lanes: to needs_review, back, or to its end after p_max_losses.
-- Only under the agent's lock: while a worker or a person holds it, handler code may run.
-- Lock order: worker, lane, job.
CREATE OR REPLACE FUNCTION archibald.mend_lanes(p_from bigint, p_look integer, p_limit integer, p_max_losses integer)
RETURNS TABLE (user_id text, fault text, next bigint)
LANGUAGE plpgsql SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off AS $$
#variable_conflict use_column
DECLARE
  v_hints   bigint[];
  v_lost    bigint[];
  v_lanes   bigint[];
  v_users   text[];
  v_faults  text[];
  v_worker  bigint;
BEGIN
  WITH odd AS MATERIALIZED (SELECT * FROM archibald.odd_lanes(p_look, p_from)),
  picked AS (SELECT * FROM odd o WHERE o.mendable ORDER BY random() LIMIT p_limit)
  SELECT array_agg(s.lane), array_agg(s.user_id), array_agg(s.fault), (SELECT o.lane FROM odd o WHERE o.fault IS NULL)
    INTO v_lanes, v_users, v_faults, next FROM picked s;
  fault := NULL;
  RETURN NEXT;
  IF v_lanes IS NULL THEN
    RETURN;
  END IF;
  IF v_faults && ARRAY['running_without_worker', 'job_without_lane'] THEN
    INSERT INTO archibald.workers (host, pid, version, concurrency, max_syncs, kinds, lease_s, fenced_at)
    VALUES ('(made by doctor --fix)', 0, '', 0, 0, '{}', 0, clock_timestamp()) RETURNING id INTO v_worker;
  END IF;
  WITH locked AS MATERIALIZED (
    SELECT a.id, a.lock_key, a.state, a.worker_id FROM archibald.agents a
     WHERE a.id = ANY (v_lanes) ORDER BY a.id FOR NO KEY UPDATE SKIP LOCKED
  ), judged AS MATERIALIZED (
    SELECT l.id, l.lock_key,
           CASE WHEN l.state = 'running' THEN NOT EXISTS (SELECT FROM archibald.workers w WHERE w.id = l.worker_id)
                ELSE EXISTS (SELECT FROM archibald.jobs j WHERE j.agent_id = l.id AND j.state = 'running') END AS lost,
           l.state <> 'running' AS free
      FROM locked l
  ), alone AS MATERIALIZED (
    SELECT j.id, pg_try_advisory_xact_lock(j.lock_key) AS got FROM judged j WHERE j.lost
  )
  SELECT (SELECT array_agg(j.id ORDER BY j.id) FROM judged j WHERE j.free AND NOT j.lost),
         (SELECT array_agg(a.id ORDER BY a.id) FROM alone a WHERE a.got AND v_worker IS NOT NULL)
    INTO v_hints, v_lost;
  IF v_hints IS NOT NULL THEN
    PERFORM archibald.refresh_lanes(v_hints);
    PERFORM archibald.hint('wake');
  END IF;
  IF v_lost IS NOT NULL THEN
    UPDATE archibald.agents a
       SET state = 'running', worker_id = v_worker, ready_at = NULL, retry_at = NULL, preemptable = false, preempt_at = NULL,
           turn_job_ids = ARRAY (SELECT j.id FROM archibald.jobs j WHERE j.agent_id = a.id AND j.state = 'running')
     WHERE a.id = ANY (v_lost);
    PERFORM archibald.release_fenced_lanes(p_limit, p_max_losses);
  END IF;
  RETURN QUERY
    SELECT o.user_id, o.fault, NULL::bigint FROM unnest(v_lanes, v_users, v_faults) AS o(lane, user_id, fault)
     WHERE o.lane = ANY (coalesce(v_hints, '{}') || coalesce(v_lost, '{}'));
END $$;
