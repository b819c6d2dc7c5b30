-- One turn of a worker's dispatcher, one round trip, one commit: settle what ended, look at what woke, claim what may run.
--
-- A lane (a row of archibald.agents) says whether its agent is idle, ready or running, and who owns it. Only lanes are queued for;
-- jobs wait in their lane, ordered by (is a sync, priority, id). Whoever claims a lane raises its epoch; every later write of that run
-- says which epoch it belongs to.
-- Lock order: worker, lane, job, history. lock_timeout keeps a turn from waiting for a caller; SKIP LOCKED makes that rare.

-- Takes up to p_want ready lanes, best first, and the head job of each. p_elsewhere: kinds that only other live workers handle.
-- The agent's session advisory lock is tried after the rows were chosen and locked, never inside a scan. Refused: requeue.
CREATE FUNCTION archibald.claim(p_worker bigint, p_want integer, p_elsewhere text[])
RETURNS TABLE (what text, lane bigint, user_id text, epoch bigint, job bigint, kind text, job_class text, attempt integer, max_attempts integer,
               payload jsonb, requeue_count integer, delay_s double precision)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
  v_mine     bigint[];
  v_refused  bigint[];
  v_lanes    bigint[];    -- lanes whose head could be locked …
  v_jobs     bigint[];    -- … and that head
  v_odd      bigint[];
BEGIN
  WITH candidate AS MATERIALIZED (
    SELECT a.id, a.lock_key FROM archibald.agents a
     WHERE a.state = 'ready' AND a.ready_at <= now() AND a.head_kind <> ALL (p_elsewhere)
     ORDER BY a.head_is_sync, a.head_priority, a.ready_at
     LIMIT p_want FOR NO KEY UPDATE SKIP LOCKED
  ), tried AS MATERIALIZED (
    SELECT id, pg_try_advisory_lock(lock_key) AS got FROM candidate
  )
  SELECT array_agg(id) FILTER (WHERE got), array_agg(id) FILTER (WHERE NOT got) INTO v_mine, v_refused FROM tried;
  IF v_mine IS NULL AND v_refused IS NULL THEN
    RETURN;
  END IF;

  -- A lane that is ready while one of its jobs is marked running contradicts itself: set it aside, say so, and go on with the others.
  SELECT array_agg(l) INTO v_odd FROM unnest(v_mine) AS l
   WHERE EXISTS (SELECT FROM archibald.jobs j WHERE j.agent_id = l AND j.state = 'running');
  IF v_odd IS NOT NULL THEN
    v_mine := ARRAY (SELECT l FROM unnest(v_mine) AS l WHERE l <> ALL (v_odd));
    PERFORM pg_advisory_unlock(a.lock_key) FROM archibald.agents a WHERE a.id = ANY (v_odd);
    RETURN QUERY
      UPDATE archibald.agents a SET ready_at = now() + interval '30 s' WHERE a.id = ANY (v_odd)
      RETURNING 'contradiction', a.id, a.user_id, a.epoch, NULL::bigint, a.head_kind, NULL, NULL::integer, NULL::integer, NULL::jsonb,
                NULL::integer, 30::double precision;
  END IF;

  SELECT array_agg(h.lane), array_agg(h.job) INTO v_lanes, v_jobs FROM (
    SELECT head.lane, j.id AS job
      FROM (SELECT l.id AS lane, (SELECT q.id FROM archibald.jobs q
                                   WHERE q.agent_id = l.id AND q.state = 'queued' AND q.due
                                   ORDER BY (q.class = 'sync'), q.priority, q.id LIMIT 1) AS job
              FROM unnest(v_mine || v_refused) AS l(id)) AS head
      JOIN archibald.jobs j ON j.id = head.job
     WHERE j.state = 'queued' AND j.due AND j.kind <> ALL (p_elsewhere)
       FOR UPDATE OF j SKIP LOCKED) AS h;

  IF v_refused IS NOT NULL THEN
    RETURN QUERY
      WITH item AS (
        SELECT i.lane, i.job FROM unnest(v_lanes, v_jobs) AS i(lane, job) WHERE i.lane = ANY (v_refused)
      ), requeued AS (
        UPDATE archibald.jobs j
           SET run_after = now() + archibald.requeue_delay(j.requeue_count),
               requeue_count = least(j.requeue_count, 2147483646) + 1,
               wait_reason = 'requeue', wake = false
          FROM item WHERE j.id = item.job
        RETURNING j.agent_id, j.user_id, j.id, j.kind, j.class, j.requeue_count, j.run_after
      ), held AS (
        UPDATE archibald.agents a SET retry_at = r.run_after, ready_at = r.run_after FROM requeued r WHERE a.id = r.agent_id
      )
      SELECT 'requeued', r.agent_id, r.user_id, NULL::bigint, r.id, r.kind, r.class, NULL::integer, NULL::integer, NULL::jsonb,
             r.requeue_count, extract(epoch FROM r.run_after - now())::double precision
        FROM requeued r;
  END IF;

  -- A head that somebody holds, or that has gone: the lane goes back for a second. No later job is taken in its place.
  v_odd := ARRAY (SELECT l FROM unnest(v_mine || v_refused) AS l WHERE l <> ALL (coalesce(v_lanes, '{}')));
  IF v_odd <> '{}' THEN
    PERFORM pg_advisory_unlock(a.lock_key) FROM archibald.agents a WHERE a.id = ANY (v_odd) AND a.id = ANY (v_mine);
    PERFORM archibald.refresh_lanes(ARRAY (SELECT l FROM unnest(v_odd) AS l ORDER BY l));
    UPDATE archibald.agents a SET ready_at = greatest(a.ready_at, now() + interval '1 s') WHERE a.id = ANY (v_odd) AND a.state = 'ready';
  END IF;

  RETURN QUERY
    WITH item AS (
      SELECT i.lane, i.job FROM unnest(v_lanes, v_jobs) AS i(lane, job) WHERE i.lane = ANY (v_mine)
    ), taken AS (
      UPDATE archibald.agents a
         SET state = 'running', worker_id = p_worker, epoch = a.epoch + 1, turn_job_ids = ARRAY[item.job], since = clock_timestamp(),
             ready_at = NULL, retry_at = NULL, doubt_at = NULL, doubts = 0
        FROM item WHERE a.id = item.lane
      RETURNING a.id, a.epoch
    ), started AS (
      UPDATE archibald.jobs j
         SET state = 'running', worker_id = p_worker, started_at = coalesce(j.started_at, clock_timestamp()), wake = false, wait_reason = NULL
        FROM item WHERE j.id = item.job
      RETURNING j.id, j.agent_id, j.user_id, j.kind, j.class, j.attempt, j.max_attempts, j.payload
    )
    SELECT 'run', t.id, s.user_id, t.epoch, s.id, s.kind, s.class, s.attempt, s.max_attempts, s.payload, NULL::integer, NULL::double precision
      FROM taken t JOIN started s ON s.agent_id = t.id
     ORDER BY array_position(v_mine, t.id);
END $$;

-- p_look: look again at lanes in doubt, ended pauses and foreign locks (once a second, and when an unlock was announced).
-- The row `next` says in how many seconds something will become due that no NOTIFY announces; fenced: this worker is no longer one.
CREATE FUNCTION archibald.turn(p_worker bigint, p_lanes bigint[], p_epochs bigint[], p_jobs bigint[], p_events text[], p_results text[],
                               p_errors text[], p_delays double precision[], p_want integer, p_look boolean)
RETURNS TABLE (what text, lane bigint, user_id text, epoch bigint, job bigint, kind text, job_class text, attempt integer, max_attempts integer,
               payload jsonb, requeue_count integer, delay_s double precision, timeout_s double precision, backoff text,
               backoff_s double precision, idempotent boolean)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
  v_kinds      text[];
  v_elsewhere  text[];
  v_claimed    integer := 0;
BEGIN
  -- FOR KEY SHARE: a takeover that fences this worker (FOR UPDATE) leaves it alone until this turn has ended, or this turn sees the
  -- fence. Not FOR SHARE: the heartbeat would wait for each turn, and a slow one would cost the lease.
  SELECT w.kinds INTO v_kinds FROM archibald.workers w WHERE w.id = p_worker AND w.fenced_at IS NULL FOR KEY SHARE;
  IF NOT FOUND THEN
    RETURN QUERY SELECT 'fenced', NULL::bigint, NULL, NULL::bigint, NULL::bigint, NULL, NULL, NULL::integer, NULL::integer, NULL::jsonb,
                        NULL::integer, NULL::double precision, NULL::double precision, NULL, NULL::double precision, NULL::boolean;
    RETURN;
  END IF;
  IF p_lanes <> '{}' THEN
    RETURN QUERY
      SELECT s.fate, s.lane, NULL, s.epoch, s.job, NULL, NULL, NULL::integer, NULL::integer, NULL::jsonb,
             NULL::integer, NULL::double precision, NULL::double precision, NULL, NULL::double precision, NULL::boolean
        FROM archibald.settle(p_worker, p_lanes, p_epochs, p_jobs, p_events, p_results, p_errors, p_delays) AS s;
  END IF;
  PERFORM archibald.wake_lanes(500);
  IF p_look THEN
    PERFORM archibald.look_again(100);
  END IF;
  IF p_want > 0 THEN
    SELECT coalesce(array_agg(DISTINCT k), '{}') INTO v_elsewhere
      FROM archibald.workers w CROSS JOIN unnest(w.kinds) AS k
     WHERE w.id <> p_worker AND w.fenced_at IS NULL AND w.stopped_at IS NULL
       AND w.beat > clock_timestamp() - make_interval(secs => w.lease_s) AND k <> ALL (v_kinds);
    RETURN QUERY
      SELECT c.*, o.timeout_s, o.backoff, o.backoff_s, o.idempotent
        FROM archibald.claim(p_worker, p_want, v_elsewhere) AS c LEFT JOIN archibald.operations o ON o.kind = c.kind;
    GET DIAGNOSTICS v_claimed = ROW_COUNT;
  END IF;
  IF v_claimed < p_want THEN
    RETURN QUERY
      SELECT 'next', NULL::bigint, NULL, NULL::bigint, NULL::bigint, NULL, NULL, NULL::integer, NULL::integer, NULL::jsonb, NULL::integer,
             extract(epoch FROM least(
               (SELECT min(j.run_after) FROM archibald.jobs j WHERE j.state = 'queued' AND NOT j.due),
               (SELECT min(a.retry_at) FROM archibald.agents a WHERE a.retry_at IS NOT NULL AND a.state = 'ready'),
               (SELECT min(a.doubt_at) FROM archibald.agents a WHERE a.doubt_at IS NOT NULL),
               (SELECT min(a.paused_until) FROM archibald.agents a WHERE a.paused_until IS NOT NULL),
               CASE WHEN EXISTS (SELECT FROM archibald.jobs j WHERE j.wake) THEN clock_timestamp() + interval '0.2 s' END
             ) - clock_timestamp())::double precision,
             NULL::double precision, NULL, NULL::double precision, NULL::boolean;
  END IF;
END $$;
