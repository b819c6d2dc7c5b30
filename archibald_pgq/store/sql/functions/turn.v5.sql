-- One turn of a worker's dispatcher, one round trip, one commit: settle what ended, look at what woke, claim what may run.
--
-- A lane (a row of archibald.agents) says whether its agent is idle, ready or running, and who owns it. Only lanes are queued for;
-- jobs wait in their lane, ordered by (is a sync, priority, id). Whoever claims a lane raises its epoch; every later write of that run
-- says which epoch it belongs to.
-- Lock order: worker, lane, job, history. lock_timeout keeps a turn from waiting for a caller; SKIP LOCKED makes that rare.

-- Takes up to p_want ready lanes, best first, and the head job of each; of these at most p_syncs syncs, so that consumers are left for what
-- people ask for, and first of all up to p_aged of the syncs that have waited longer than p_max_wait, whatever their priority.
-- p_short, p_each: kinds whose jobs are short, and of each how many of them one turn of a lane may have: where the head is one of these the
-- lane's next jobs of such kinds come with it, in order. They are not marked running: they have ended before anybody looks, or are marked by
-- the settle. Never a sync (requests for it merge with what is queued), a job whose worker died, or a job of a lane that must be careful.
-- p_ahead: up to so many lanes more, of such heads only, for consumers that will be free in a moment.
-- p_elsewhere: kinds that only other live workers handle. A sync that made room p_max_preemptions times in a row is left alone in this run.
-- The agent's session advisory lock is tried after the rows were chosen and locked, never inside a scan. Refused: requeue.
-- p_solo_from: a job with so many losses runs alone, because one more would fail it: p_solo claims one such job and no other,
-- not p_solo all but those. NULL: makes no difference.
CREATE OR REPLACE FUNCTION archibald.claim(p_worker bigint, p_want integer, p_syncs integer, p_aged integer, p_ahead integer, p_short text[], p_each integer[],
                                p_elsewhere text[], p_max_wait interval, p_max_preemptions integer, p_solo_from integer, p_solo boolean)
RETURNS TABLE (what text, lane bigint, user_id text, epoch bigint, job bigint, kind text, job_class text, attempt integer, max_attempts integer,
               payload jsonb, saved_state jsonb, requeue_count integer, delay_s double precision, marked boolean)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
  v_mine     bigint[];
  v_each     integer[];   -- of each of them how many jobs may come …
  v_keys     bigint[];    -- … and its lock's key
  v_refused  bigint[];
  v_lanes    bigint[];    -- lanes whose head could be locked, once for each job …
  v_jobs     bigint[];    -- … that job …
  v_places   tid[];       -- … and where it is
  v_marked   bigint[];    -- jobs that are marked running: those that come alone
  v_odd      bigint[];
  v_back     bigint[];    -- heads that are syncs which ran before and went back
  v_people   bigint[];    -- lanes whose head is no sync, as far as known
  v_extra    bigint[];    -- lanes that were taken ahead
  v_behind   bigint[];    -- lanes of which some jobs wait …
  v_unseen   tid[];       -- … that have not been given their lane yet …
  v_theirs   bigint[];    -- … and that lane
  v_blocked  bigint[];    -- lanes of which somebody holds one of those jobs
  v_yielding bigint[];    -- lanes whose head is a sync that may be asked to make room
  v_start    timestamptz := clock_timestamp();
  v_left     integer := p_want;
  v_ahead    integer := CASE WHEN p_solo THEN 0 ELSE p_ahead END;
  v_syncs    integer := p_syncs;
  v_aged     integer := p_aged;
  v_tried    integer;
  v_found    integer;     -- lanes whose head could be locked: so many …
  v_ran      integer;     -- … of those whose lock was had, and of these …
  v_ran_syncs  integer;   -- … so many where a sync goes first
BEGIN
 -- Again and again, until so many run or no lane is left: an agent whose lock is taken must not cost another its place in this turn.
 -- Whatever is refused or odd is not ready at once again, so each round sees others. Bounded, and not by time: a slow machine must not
 -- leave ready agents to the next turn.
 FOR v_round IN 1..100 LOOP
  WITH solo AS MATERIALIZED (
    SELECT a.id, a.lock_key FROM archibald.agents a
     WHERE a.state = 'ready' AND a.head_losses > 0 AND a.head_losses >= p_solo_from
       AND a.ready_at <= v_start AND a.head_kind <> ALL (p_elsewhere)
     ORDER BY a.head_is_sync, a.head_priority, a.ready_at
     LIMIT p_solo::integer FOR NO KEY UPDATE SKIP LOCKED
  ), aged AS MATERIALIZED (
    SELECT a.id, a.lock_key FROM archibald.agents a
     WHERE a.state = 'ready' AND a.head_is_sync AND a.head_waiting_since < v_start - p_max_wait
       AND a.ready_at <= v_start AND a.head_kind <> ALL (p_elsewhere) AND (p_solo_from IS NULL OR a.head_losses < p_solo_from)
     ORDER BY a.head_waiting_since
     LIMIT CASE WHEN p_solo THEN 0 ELSE greatest(least(v_aged, v_syncs, v_left), 0) END FOR NO KEY UPDATE SKIP LOCKED
  ), next AS MATERIALIZED (
    SELECT a.id, a.lock_key, a.head_priority, a.ready_at,
           CASE WHEN a.careful OR a.head_losses > 0 THEN 1 ELSE coalesce(p_each[array_position(p_short, a.head_kind)], 1) END AS jobs
      FROM archibald.agents a
     WHERE a.state = 'ready' AND NOT a.head_is_sync AND a.ready_at <= v_start AND a.head_kind <> ALL (p_elsewhere)
       AND (p_solo_from IS NULL OR a.head_losses < p_solo_from)
     ORDER BY a.head_priority, a.ready_at
     LIMIT CASE WHEN p_solo THEN 0 ELSE v_left + v_ahead - (SELECT count(*) FROM aged) END FOR NO KEY UPDATE SKIP LOCKED
  ), people AS MATERIALIZED (
    SELECT n.id, n.lock_key, n.jobs, n.place > v_left - (SELECT count(*) FROM aged) AS extra
      FROM (SELECT next.*, row_number() OVER (ORDER BY head_priority, ready_at) AS place FROM next) AS n
     WHERE n.place <= v_left - (SELECT count(*) FROM aged) OR n.jobs > 1
  ), syncs AS MATERIALIZED (
    SELECT a.id, a.lock_key FROM archibald.agents a
     WHERE a.state = 'ready' AND a.head_is_sync AND a.ready_at <= v_start AND a.head_kind <> ALL (p_elsewhere)
       AND (p_solo_from IS NULL OR a.head_losses < p_solo_from) AND NOT EXISTS (SELECT FROM aged WHERE aged.id = a.id)
     ORDER BY a.head_priority, a.ready_at
     LIMIT CASE WHEN p_solo THEN 0
                ELSE greatest(least(v_syncs, v_left - (SELECT count(*) FROM people WHERE NOT extra)) - (SELECT count(*) FROM aged), 0) END
       FOR NO KEY UPDATE SKIP LOCKED
  ), tried AS MATERIALIZED (
    SELECT c.id, c.lock_key, c.sort, c.jobs, c.extra, pg_try_advisory_lock(c.lock_key) AS got
      FROM (SELECT 0 AS sort, id, lock_key, 1 AS jobs, false AS extra FROM solo UNION ALL SELECT 1, id, lock_key, 1, false FROM aged
            UNION ALL SELECT 2, id, lock_key, jobs, extra FROM people UNION ALL SELECT 3, id, lock_key, 1, false FROM syncs) AS c
  )
  SELECT array_agg(id) FILTER (WHERE got), array_agg(jobs) FILTER (WHERE got), array_agg(lock_key) FILTER (WHERE got),
         array_agg(id) FILTER (WHERE NOT got), array_agg(id) FILTER (WHERE sort = 2), array_agg(id) FILTER (WHERE extra), count(*)
    INTO v_mine, v_each, v_keys, v_refused, v_people, v_extra, v_tried FROM tried;
  IF v_mine IS NULL AND v_refused IS NULL THEN
    RETURN;
  END IF;

  -- A lane that is ready while one of its jobs is marked running contradicts itself: set it aside, say so, and go on with the others.
  SELECT array_agg(m.lane) FILTER (WHERE EXISTS (SELECT FROM archibald.jobs j WHERE j.agent_id = m.lane AND j.state = 'running')),
         array_agg(m.lane) FILTER (WHERE EXISTS (SELECT FROM archibald.jobs j
                                                  WHERE j.wake AND j.agent_id IS NULL AND archibald.lock_key(j.user_id) = m.key))
    INTO v_odd, v_behind FROM unnest(v_mine, v_keys) AS m(lane, key);
  IF v_odd IS NOT NULL THEN
    SELECT array_agg(m.lane), array_agg(m.jobs) INTO v_mine, v_each FROM unnest(v_mine, v_each) AS m(lane, jobs) WHERE m.lane <> ALL (v_odd);
    PERFORM pg_advisory_unlock(a.lock_key) FROM archibald.agents a WHERE a.id = ANY (v_odd);
    RETURN QUERY
      UPDATE archibald.agents a SET ready_at = now() + interval '30 s' WHERE a.id = ANY (v_odd)
      RETURNING 'contradiction', a.id, a.user_id, a.epoch, NULL::bigint, a.head_kind, NULL, NULL::integer, NULL::integer, NULL::jsonb, NULL::jsonb,
                NULL::integer, 30::double precision, NULL::boolean;
  END IF;

  -- Jobs that belong before the last one that comes now, and were enqueued before their agent had a lane: the look for what woke may rest.
  IF v_behind IS NOT NULL THEN
   SELECT array_agg(w.place), array_agg(m.lane) INTO v_unseen, v_theirs
    FROM unnest(v_mine, v_each) AS m(lane, jobs)
   CROSS JOIN LATERAL (
    SELECT q.is_sync, q.priority, q.id
      FROM (SELECT q.class = 'sync' AS is_sync, q.priority, q.id FROM archibald.jobs q
             WHERE q.agent_id = m.lane AND q.state = 'queued' AND q.due
             ORDER BY (q.class = 'sync'), q.priority, q.id LIMIT m.jobs) AS q
     ORDER BY q.is_sync DESC, q.priority DESC, q.id DESC LIMIT 1) AS last
   CROSS JOIN LATERAL (SELECT a.user_id, a.lock_key FROM archibald.agents a WHERE a.id = m.lane) AS a
   CROSS JOIN LATERAL (
    SELECT j.ctid AS place FROM archibald.jobs j
     WHERE j.wake AND j.agent_id IS NULL AND archibald.lock_key(j.user_id) = a.lock_key AND j.user_id = a.user_id
       AND (j.class = 'sync', j.priority, j.id) < (last.is_sync, last.priority, last.id)
     ORDER BY archibald.lock_key(j.user_id), (j.class = 'sync'), j.priority, j.id LIMIT m.jobs FOR NO KEY UPDATE SKIP LOCKED) AS w
   WHERE m.lane = ANY (v_behind);
   UPDATE archibald.jobs j SET wake = false, agent_id = w.lane FROM unnest(v_unseen, v_theirs) AS w(place, lane) WHERE j.ctid = w.place;
   -- Is one of them held (by a caller, or a worker that is about to adopt it)? Then none behind it is taken: the lane goes back for a moment.
   SELECT array_agg(m.lane) INTO v_blocked
    FROM unnest(v_mine, v_each) AS m(lane, jobs)
   CROSS JOIN LATERAL (
    SELECT q.is_sync, q.priority, q.id
      FROM (SELECT q.class = 'sync' AS is_sync, q.priority, q.id FROM archibald.jobs q
             WHERE q.agent_id = m.lane AND q.state = 'queued' AND q.due
             ORDER BY (q.class = 'sync'), q.priority, q.id LIMIT m.jobs) AS q
     ORDER BY q.is_sync DESC, q.priority DESC, q.id DESC LIMIT 1) AS last
   CROSS JOIN LATERAL (SELECT a.user_id, a.lock_key FROM archibald.agents a WHERE a.id = m.lane) AS a
   CROSS JOIN LATERAL (
    SELECT j.id FROM archibald.jobs j
     WHERE j.wake AND j.agent_id IS NULL AND archibald.lock_key(j.user_id) = a.lock_key AND j.user_id = a.user_id
       AND (j.class = 'sync', j.priority, j.id) < (last.is_sync, last.priority, last.id)
     ORDER BY archibald.lock_key(j.user_id), (j.class = 'sync'), j.priority, j.id LIMIT 1) AS held
   WHERE m.lane = ANY (v_behind);
   IF v_blocked IS NOT NULL THEN
    SELECT array_agg(m.lane), array_agg(m.jobs) INTO v_mine, v_each FROM unnest(v_mine, v_each) AS m(lane, jobs) WHERE m.lane <> ALL (v_blocked);
    PERFORM pg_advisory_unlock(a.lock_key) FROM archibald.agents a WHERE a.id = ANY (v_blocked);
    UPDATE archibald.agents a SET ready_at = now() + interval '0.1 s' WHERE a.id = ANY (v_blocked);
   END IF;
  END IF;

  -- The jobs of each lane in their order, as far as they can be locked and belong together: where one cannot be had, none behind it is.
  SELECT array_agg(h.lane), array_agg(h.job), array_agg(h.place), array_agg(h.job) FILTER (WHERE NOT h.short),
         array_agg(h.job) FILTER (WHERE h.back AND h.lane = ANY (v_mine)),
         array_agg(h.lane) FILTER (WHERE h.sync AND h.preemptions < p_max_preemptions),
         count(*) FILTER (WHERE h.n = 1), count(*) FILTER (WHERE h.n = 1 AND h.lane = ANY (v_mine)),
         count(*) FILTER (WHERE h.n = 1 AND h.lane = ANY (v_mine) AND h.lane <> ALL (coalesce(v_people, '{}')))
    INTO v_lanes, v_jobs, v_places, v_marked, v_back, v_yielding, v_found, v_ran, v_ran_syncs
    FROM (
    SELECT l.lane, l.n, j.id AS job, j.place, j.back, j.sync, j.preemptions,
           bool_and(j.short AND l.jobs > 1) OVER behind AS short,
           row_number() OVER behind AS found
      FROM (SELECT i.lane, i.jobs, q.id, row_number() OVER (PARTITION BY i.lane ORDER BY q.is_sync, q.priority, q.id) AS n
              FROM (SELECT m.lane, m.jobs FROM unnest(v_mine, v_each) AS m(lane, jobs) UNION ALL SELECT r, 1 FROM unnest(v_refused) AS r) AS i
             CROSS JOIN LATERAL (SELECT q.id, q.class = 'sync' AS is_sync, q.priority FROM archibald.jobs q
                                  WHERE q.agent_id = i.lane AND q.state = 'queued' AND q.due
                                  ORDER BY (q.class = 'sync'), q.priority, q.id LIMIT i.jobs) AS q) AS l
     CROSS JOIN LATERAL (
      SELECT j.id, j.ctid AS place, j.class = 'sync' AND j.started_at IS NOT NULL AS back, j.class = 'sync' AS sync, j.preemptions,
             j.kind = ANY (p_short) AND j.class <> 'sync' AND j.losses = 0 AS short
        FROM archibald.jobs j
       WHERE j.id = l.id AND j.state = 'queued' AND j.due AND j.kind <> ALL (p_elsewhere)
         AND NOT (j.class = 'sync' AND l.lane = ANY (coalesce(v_people, '{}')))    -- the hint was old: it may be one sync too many
         AND (p_solo_from IS NULL OR (j.losses >= p_solo_from) = p_solo)             -- the hint was old: it may be one that runs alone
         FOR UPDATE SKIP LOCKED) AS j
    WINDOW behind AS (PARTITION BY l.lane ORDER BY l.n)) AS h
   WHERE h.found = h.n AND (h.n = 1 OR h.short)
     AND NOT (NOT h.short AND h.lane = ANY (coalesce(v_extra, '{}')));                -- the hint was old: nobody is free for a long one

  IF v_refused IS NOT NULL THEN
    RETURN QUERY
      WITH item AS (
        SELECT i.lane, i.place FROM unnest(v_lanes, v_places) AS i(lane, place) WHERE i.lane = ANY (v_refused)
      ), requeued AS (
        UPDATE archibald.jobs j
           SET run_after = now() + archibald.requeue_delay(j.requeue_count),
               requeue_count = least(j.requeue_count, 2147483646) + 1,
               wait_reason = 'requeue', wake = false
         WHERE j.ctid = ANY (ARRAY (SELECT item.place FROM item))
        RETURNING j.agent_id, j.user_id, j.id, j.kind, j.class, j.requeue_count, j.run_after
      ), held AS (
        UPDATE archibald.agents a SET retry_at = r.run_after, ready_at = r.run_after
          FROM requeued r WHERE a.id = r.agent_id AND a.id = ANY (v_refused)
      )
      SELECT 'requeued', r.agent_id, r.user_id, NULL::bigint, r.id, r.kind, r.class, NULL::integer, NULL::integer, NULL::jsonb, NULL::jsonb,
             r.requeue_count, extract(epoch FROM r.run_after - now())::double precision, NULL::boolean
        FROM requeued r;
  END IF;

  -- A head that somebody holds, or that has gone: the lane goes back for a second. No later job is taken in its place.
  IF v_found < coalesce(cardinality(v_mine), 0) + coalesce(cardinality(v_refused), 0) THEN
    v_odd := ARRAY (SELECT l FROM unnest(v_mine || v_refused) AS l WHERE l <> ALL (coalesce(v_lanes, '{}')));
    PERFORM pg_advisory_unlock(a.lock_key) FROM archibald.agents a WHERE a.id = ANY (v_odd) AND a.id = ANY (v_mine);
    PERFORM archibald.refresh_lanes(ARRAY (SELECT l FROM unnest(v_odd) AS l ORDER BY l));
    UPDATE archibald.agents a SET ready_at = greatest(a.ready_at, now() + interval '1 s') WHERE a.id = ANY (v_odd) AND a.state = 'ready';
  END IF;

  -- A follow-up that was enqueued while the sync went back (neither saw the other) waits for a run that begins only now.
  IF v_back IS NOT NULL THEN
    PERFORM archibald.absorb_followups(v_back);
  END IF;

  IF v_marked IS NOT NULL THEN
    UPDATE archibald.jobs j
       SET state = 'running', worker_id = p_worker, started_at = coalesce(j.started_at, clock_timestamp()), wake = false, wait_reason = NULL
     WHERE j.ctid = ANY (v_places) AND j.id = ANY (v_marked) AND j.agent_id = ANY (v_mine);
  END IF;
  RETURN QUERY
    WITH item AS MATERIALIZED (
      SELECT i.lane, i.jobs, i.lane = ANY (coalesce(v_yielding, '{}')) AS yields, a.place
        FROM (SELECT i.lane, array_agg(i.job ORDER BY i.n) AS jobs
                FROM unnest(v_lanes, v_jobs) WITH ORDINALITY AS i(lane, job, n) WHERE i.lane = ANY (v_mine) GROUP BY i.lane) AS i
       CROSS JOIN LATERAL (SELECT a.ctid AS place FROM archibald.agents a WHERE a.id = i.lane LIMIT 1) AS a
    ), taken AS (
      UPDATE archibald.agents a
         SET state = 'running', worker_id = p_worker, epoch = a.epoch + 1, turn_job_ids = item.jobs, since = clock_timestamp(),
             ready_at = NULL, retry_at = NULL, doubts = 0,
             -- a write that saw the lane before, and set no wake because there was nothing to preempt, may be about to commit
             preemptable = item.yields, doubt_at = CASE WHEN item.yields THEN clock_timestamp() + interval '10 ms' END
        FROM item WHERE a.ctid = item.place
      RETURNING a.id, a.epoch, item.jobs
    )
    SELECT 'run', t.id, j.user_id, t.epoch, j.id, j.kind, j.class, j.attempt, j.max_attempts, j.payload, j.saved_state,
           NULL::integer, NULL::double precision, j.id = ANY (coalesce(v_marked, '{}'))
      FROM taken t
     CROSS JOIN LATERAL unnest(t.jobs) WITH ORDINALITY AS i(job, n)
     CROSS JOIN LATERAL (SELECT * FROM archibald.jobs j WHERE j.id = i.job LIMIT 1) AS j
     ORDER BY array_position(v_mine, t.id), i.n;
  EXIT WHEN v_ran >= v_left OR (v_ran = v_tried AND v_tried < v_left);
  v_left := v_left - v_ran;
  v_syncs := v_syncs - v_ran_syncs;
  v_aged := 0;
 END LOOP;
END $$;

-- Further jobs for lanes of ours whose turn is nearly over, so that an agent with many short jobs loses no round trip between two turns. Of the
-- lanes given those that are still ours. Only for who has a consumer free and found no other lane: else the agent goes behind the others.
-- Not if the next job is not of a kind that shares a turn, if a better one has come, if some wait for their lane, or the agent is paused.
CREATE OR REPLACE FUNCTION archibald.claim_on(p_worker bigint, p_lanes bigint[], p_epochs bigint[], p_short text[], p_each integer[], p_elsewhere text[])
RETURNS TABLE (what text, lane bigint, user_id text, epoch bigint, job bigint, kind text, job_class text, attempt integer, max_attempts integer,
               payload jsonb, saved_state jsonb, requeue_count integer, delay_s double precision, marked boolean)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
  v_lanes  bigint[];
  v_jobs   bigint[];
BEGIN
  SELECT array_agg(h.lane ORDER BY h.lane, h.n), array_agg(h.job ORDER BY h.lane, h.n) INTO v_lanes, v_jobs
    FROM (
    SELECT l.lane, l.n, l.old, j.id AS job, count(*) OVER behind AS found
      FROM (SELECT a.id AS lane, q.id, cardinality(a.turn_job_ids) AS old, a.turn_job_ids @> ARRAY[q.id] AS ours,
                   row_number() OVER (PARTITION BY a.id ORDER BY q.is_sync, q.priority, q.id) AS n
              FROM unnest(p_lanes, p_epochs) AS i(lane, epoch)
             CROSS JOIN LATERAL (
              SELECT a.id, a.turn_job_ids, a.lock_key, a.careful FROM archibald.agents a
               WHERE a.id = i.lane AND a.epoch = i.epoch AND (a.state = 'running' AND a.worker_id = p_worker) IS TRUE
                 AND a.turn_job_ids <> '{}' AND NOT a.careful AND a.paused_until IS NULL
                 FOR NO KEY UPDATE SKIP LOCKED) AS a
             CROSS JOIN LATERAL (SELECT coalesce(p_each[array_position(p_short, j.kind)], 1) AS jobs FROM archibald.jobs j
                                  WHERE j.id = a.turn_job_ids[1] LIMIT 1) AS e
             CROSS JOIN LATERAL (SELECT q.id, q.class = 'sync' AS is_sync, q.priority FROM archibald.jobs q
                                  WHERE q.agent_id = a.id AND q.state = 'queued' AND q.due
                                  ORDER BY (q.class = 'sync'), q.priority, q.id LIMIT e.jobs) AS q
             WHERE (SELECT count(*) FROM (SELECT FROM archibald.jobs w WHERE w.wake AND w.agent_id IS NULL AND archibald.lock_key(w.user_id) = a.lock_key
                                           LIMIT 1) AS w) = 0
           ) AS l
     CROSS JOIN LATERAL (
      SELECT j.id FROM archibald.jobs j
       WHERE j.id = l.id AND j.state = 'queued' AND j.due
         AND (l.ours AND l.n <= l.old
              OR NOT l.ours AND l.n > l.old AND j.kind = ANY (p_short) AND j.kind <> ALL (p_elsewhere) AND j.class <> 'sync' AND j.losses = 0)
         FOR UPDATE SKIP LOCKED) AS j
    WINDOW behind AS (PARTITION BY l.lane ORDER BY l.n)) AS h
   WHERE h.found = h.n AND h.n > h.old;
  IF v_lanes IS NULL THEN
    RETURN;
  END IF;
  RETURN QUERY
    WITH item AS MATERIALIZED (
      SELECT i.lane, i.jobs, a.place
        FROM (SELECT i.lane, array_agg(i.job ORDER BY i.n) AS jobs FROM unnest(v_lanes, v_jobs) WITH ORDINALITY AS i(lane, job, n) GROUP BY i.lane) AS i
       CROSS JOIN LATERAL (SELECT a.ctid AS place FROM archibald.agents a WHERE a.id = i.lane LIMIT 1) AS a
    ), taken AS (
      UPDATE archibald.agents a SET turn_job_ids = a.turn_job_ids || item.jobs FROM item WHERE a.ctid = item.place RETURNING a.id, a.epoch, item.jobs
    )
    SELECT 'run', t.id, j.user_id, t.epoch, j.id, j.kind, j.class, j.attempt, j.max_attempts, j.payload, j.saved_state,
           NULL::integer, NULL::double precision, false
      FROM taken t
     CROSS JOIN LATERAL unnest(t.jobs) WITH ORDINALITY AS i(job, n)
     CROSS JOIN LATERAL (SELECT * FROM archibald.jobs j WHERE j.id = i.job LIMIT 1) AS j
     ORDER BY t.id, i.n;
END $$;

-- True if a job waits that runs alone (it has p_from losses, and this worker may run its kind) and this session is the one to run it.
-- p_holds: it may have been before; then it lets go where nothing is left to run alone.
CREATE OR REPLACE FUNCTION archibald.drain_for_solo(p_holds boolean, p_from integer, p_elsewhere text[]) RETURNS boolean
LANGUAGE plpgsql AS $$
DECLARE
  v_waits boolean := EXISTS (SELECT FROM archibald.agents a
                              WHERE a.state = 'ready' AND a.head_losses > 0 AND a.head_losses >= p_from
                                AND a.ready_at <= clock_timestamp() AND a.head_kind <> ALL (p_elsewhere));
  v_holds boolean := (p_holds OR v_waits) AND EXISTS (
    SELECT FROM pg_locks l WHERE l.locktype = 'advisory' AND l.classid = 1095910216 AND l.objid = 256 AND l.objsubid = 2
       AND l.pid = pg_backend_pid() AND l.granted AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()));
BEGIN
  IF v_waits THEN
    RETURN v_holds OR pg_try_advisory_lock(1095910216, 256);    -- behind the buckets, which are 0 to 255
  END IF;
  IF v_holds THEN
    PERFORM pg_advisory_unlock(1095910216, 256);
  END IF;
  RETURN false;
END $$;

-- p_lanes … p_ended: what the settle gets. p_want: lanes that consumers are free for; of these at most p_syncs syncs, and up to p_aged syncs
-- that waited too long before all others. p_ahead, p_short, p_each: lanes taken ahead, and turns of several jobs; see the claim.
-- p_look: look again at lanes in doubt, ended pauses and foreign locks (once a second, and when an unlock was announced).
-- Every statement in here finds a bounded number of rows by an index, one after the other, whatever the statistics say. A plan that was
-- made while the queue was nearly empty, or before the first ANALYZE, scans the whole table in each turn when 200,000 jobs come in at
-- once, and stays until autovacuum has looked: so the other kinds of plan are ruled out (and jit, which takes their cost at face value).
-- With one plan left it need not be made anew for each length of the arrays, which took a third of a turn's time.
-- The row `next` says in how many seconds something will become due that no NOTIFY announces; fenced: this worker is no longer one. Of lanes
-- that are settled nothing is said.
-- p_solo: true if the last answer was `solo`; NULL from code that does not know of it. `solo` means: a job waits that runs alone, and it is
-- this worker's to run it. Nothing else is claimed until then; once nothing runs here it is claimed, and not marked running before. Which
-- worker drains for it is decided by a session lock, as a hint: two would only claim less than they could.
CREATE OR REPLACE FUNCTION archibald.turn(p_worker bigint, p_lanes bigint[], p_epochs bigint[], p_marks bigint[], p_marks_ago double precision[],
                               p_of bigint[], p_jobs bigint[], p_events text[], p_results text[], p_errors text[], p_delays double precision[],
                               p_began double precision[], p_ended double precision[], p_want integer, p_syncs integer, p_aged integer,
                               p_ahead integer, p_short text[], p_each integer[], p_look boolean, p_solo boolean)
RETURNS TABLE (what text, lane bigint, user_id text, epoch bigint, job bigint, kind text, job_class text, attempt integer, max_attempts integer,
               payload jsonb, saved_state jsonb, requeue_count integer, delay_s double precision, marked boolean, timeout_s double precision,
               backoff text, backoff_s double precision, idempotent boolean)
LANGUAGE plpgsql SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off AS $$
#variable_conflict use_column
DECLARE
  v_me         record;
  v_solo_from  integer;           -- losses with which a job runs alone
  v_solo       boolean := false;  -- this worker is the one to run such a job
  v_rests      boolean;           -- a slow look's rest lasts
  v_left       boolean := false;  -- new agents' jobs that could run go before what is taken ahead
  v_new        integer := 0;      -- agents that were adopted running
  v_ran        integer := 0;
  v_syncs      integer := 0;
  v_now        timestamptz;
  v_limit      integer;           -- how many jobs of new agents are looked at, and how many that woke
  v_again      timestamptz;       -- when to look for what woke again
  v_soon       timestamptz;
BEGIN
  IF current_setting('transaction_isolation') <> 'read committed' THEN
    RAISE EXCEPTION 'archibald.turn needs READ COMMITTED: each of its statements must see what was committed before it';
  END IF;
  -- FOR KEY SHARE: a takeover that fences this worker (FOR UPDATE) leaves it alone until this turn has ended, or this turn sees the
  -- fence. Not FOR SHARE: the heartbeat would wait for each turn, and a slow one would cost the lease.
  SELECT w.max_wait_s, w.max_preemptions, w.max_losses,
         (SELECT coalesce(array_agg(DISTINCT k), '{}')
            FROM archibald.workers o CROSS JOIN unnest(o.kinds) AS k
           WHERE o.id <> w.id AND o.fenced_at IS NULL AND o.stopped_at IS NULL
             AND o.beat > clock_timestamp() - make_interval(secs => o.lease_s) AND k <> ALL (w.kinds)) AS elsewhere
    INTO v_me
    FROM archibald.workers w WHERE w.id = p_worker AND w.fenced_at IS NULL FOR KEY SHARE;
  IF NOT FOUND THEN
    what := 'fenced';
    RETURN NEXT;
    RETURN;
  END IF;
  IF p_lanes <> '{}' THEN
    FOR what, lane, epoch IN
      SELECT s.fate, s.lane, s.epoch
        FROM archibald.settle(p_worker, p_lanes, p_epochs, p_marks, p_marks_ago, p_of, p_jobs, p_events, p_results, p_errors, p_delays, p_began,
                              p_ended) AS s
    LOOP
      RETURN NEXT;
    END LOOP;
  END IF;
  -- Who wants nothing leaves it to those who do, and settles alone: an error in here must not pass for the error of an outcome.
  IF p_want + p_ahead > 0 OR p_look THEN
    -- While the look for what woke rests, a person's job may wait unseen: no sync takes the place that it would get.
    v_rests := NOT p_look AND coalesce(nullif(current_setting('archibald.wake_rest', true), '')::timestamptz > clock_timestamp(), false);
    IF v_rests THEN
      p_syncs := 0;
      p_aged := 0;
    END IF;
    -- As many as may be claimed: more of them would delay this turn for later ones.
    v_limit := CASE WHEN p_look AND p_want + p_ahead = 0 THEN 500 ELSE greatest(20, p_want + p_ahead) END;
    v_again := archibald.wake_lanes(CASE WHEN p_look THEN 500 ELSE v_limit END, CASE WHEN p_look THEN 500 ELSE 20 END, NOT p_look);
  END IF;
  IF p_look THEN
    PERFORM archibald.look_again(100);
    FOR what, lane, user_id, epoch, job, kind, job_class, requeue_count, delay_s IN
      SELECT 'requeued', w.lane, w.user_id, NULL::bigint, w.job, w.kind, w.job_class, w.requeue_count, w.delay_s FROM archibald.requeue_waiting(100) AS w
    LOOP
      RETURN NEXT;
    END LOOP;
  END IF;
  -- While a job waits that runs alone, nobody's job is begun before it is clear which worker is to run it.
  IF p_want + p_ahead > 0 AND p_solo IS NOT NULL AND v_me.max_losses > 1 THEN
    v_solo_from := v_me.max_losses - 1;
    v_solo := (p_solo OR EXISTS (SELECT FROM archibald.agents a WHERE a.state = 'ready' AND a.head_losses > 0))
              AND archibald.drain_for_solo(p_solo, v_solo_from, v_me.elsewhere);
    IF v_solo THEN
      what := 'solo';
      lane := NULL; user_id := NULL; epoch := NULL; job := NULL; kind := NULL; job_class := NULL; requeue_count := NULL; delay_s := NULL;
      RETURN NEXT;
      p_ahead := 0;
      IF EXISTS (SELECT FROM archibald.agents a WHERE a.worker_id = p_worker AND a.state = 'running') THEN
        p_want := 0;
      END IF;
    END IF;
  END IF;
  -- Of a kind whose policy somebody deleted, jobs run under the limit of a sync.
  -- A rest that began in this turn does not keep new agents from being seen in it: a session's first look is slow for its plans alone.
  IF v_limit IS NOT NULL AND NOT v_rests THEN
    FOR what, lane, user_id, epoch, job, kind, job_class, attempt, max_attempts, payload, saved_state, requeue_count, delay_s, marked, timeout_s,
        backoff, backoff_s, idempotent IN
      SELECT c.*, coalesce(o.timeout_s, 300), o.backoff, coalesce(o.backoff_s, 0), coalesce(o.idempotent, false)
        FROM archibald.adopt(p_worker, CASE WHEN v_solo THEN 0 ELSE p_want END, p_ahead, p_short, v_me.elsewhere,
                             make_interval(secs => v_me.max_wait_s), v_limit) AS c
        LEFT JOIN archibald.operations o ON o.kind = c.kind
    LOOP
      IF what = 'left' THEN
        v_left := true;
        CONTINUE;
      END IF;
      IF what = 'again' THEN
        v_again := least(v_again, clock_timestamp() + make_interval(secs => delay_s));
        p_want := CASE WHEN delay_s > 0 THEN p_want ELSE 0 END;
        p_ahead := CASE WHEN delay_s > 0 THEN p_ahead ELSE 0 END;
        p_look := true;       -- say when
        CONTINUE;
      END IF;
      v_new := v_new + 1;
      RETURN NEXT;
    END LOOP;
    p_ahead := CASE WHEN v_left THEN 0 ELSE least(p_ahead, p_want + p_ahead - v_new) END;
    p_want := greatest(p_want - v_new, 0);
  END IF;
  IF p_want + p_ahead > 0 THEN
    IF EXISTS (SELECT FROM archibald.agents a WHERE a.state = 'ready') THEN      -- else a claim of nothing would take a third of a short turn
      FOR what, lane, user_id, epoch, job, kind, job_class, attempt, max_attempts, payload, saved_state, requeue_count, delay_s, marked, timeout_s,
          backoff, backoff_s, idempotent IN
        SELECT c.*, coalesce(o.timeout_s, 300), o.backoff, coalesce(o.backoff_s, 0), coalesce(o.idempotent, false)
          FROM archibald.claim(p_worker, CASE WHEN v_solo THEN 1 ELSE p_want END, p_syncs, p_aged, p_ahead, p_short, p_each, v_me.elsewhere,
                               make_interval(secs => v_me.max_wait_s), v_me.max_preemptions, v_solo_from, v_solo) AS c
          LEFT JOIN archibald.operations o ON o.kind = c.kind
      LOOP
        v_ran := v_ran + (what = 'run')::integer;
        v_syncs := v_syncs + (what = 'run' AND job_class = 'sync')::integer;
        RETURN NEXT;
      END LOOP;
    END IF;
    -- A lane that goes on, and marks no job, asks for more.
    IF v_ran < p_want AND NOT v_solo AND array_position(p_marks, NULL) IS NOT NULL THEN
      FOR what, lane, user_id, epoch, job, kind, job_class, attempt, max_attempts, payload, saved_state, requeue_count, delay_s, marked, timeout_s,
          backoff, backoff_s, idempotent IN
        SELECT c.*, coalesce(o.timeout_s, 300), o.backoff, coalesce(o.backoff_s, 0), coalesce(o.idempotent, false)
          FROM archibald.claim_on(p_worker, p_lanes, p_epochs, p_short, p_each, v_me.elsewhere) AS c
          LEFT JOIN archibald.operations o ON o.kind = c.kind
      LOOP
        RETURN NEXT;
      END LOOP;
    END IF;
  END IF;
  -- What was overdue when this turn began was looked at, and somebody holds it: soon, but not in a tight loop. What became overdue since
  -- then was not: at once. Doubts and pauses are only looked at when asked for; a worker whose rest is over asks.
  -- Not where a job waits for this answer to be started: who sees no such row, and has consumers left, asks again in a moment.
  IF v_new + v_ran = 0 AND (p_want > 0 OR p_look) THEN
    v_now := clock_timestamp();
    v_soon := v_now + interval '0.2 s';
    RETURN QUERY
      SELECT 'next', NULL::bigint, NULL, NULL::bigint, NULL::bigint, NULL, NULL, NULL::integer, NULL::integer, NULL::jsonb, NULL::jsonb, NULL::integer,
             extract(epoch FROM least(
               (SELECT CASE WHEN min(j.run_after) <= now() THEN v_soon ELSE min(j.run_after) END
                  FROM archibald.jobs j WHERE j.state = 'queued' AND NOT j.due),
               (SELECT min(a.retry_at) FROM archibald.agents a WHERE a.retry_at > v_now AND a.state = 'ready'),
               (SELECT CASE WHEN p_look AND min(a.doubt_at) <= now() THEN v_soon ELSE min(a.doubt_at) END
                  FROM archibald.agents a WHERE a.doubt_at IS NOT NULL),
               (SELECT CASE WHEN p_look AND min(a.paused_until) <= now() THEN v_soon ELSE min(a.paused_until) END
                  FROM archibald.agents a WHERE a.paused_until IS NOT NULL),
               (SELECT CASE WHEN p_look AND min(a.preempt_at) <= now() THEN v_soon ELSE min(a.preempt_at) END
                  FROM archibald.agents a WHERE a.preempt_at IS NOT NULL),
               v_again,
               CASE WHEN EXISTS (SELECT FROM archibald.agents a
                                  WHERE a.state = 'ready' AND NOT a.head_is_sync AND a.ready_at <= v_now AND a.head_kind <> ALL (v_me.elsewhere)
                                    AND (v_solo_from IS NULL OR a.head_losses < v_solo_from) AND p_want > 0 AND NOT v_solo)
                      OR EXISTS (SELECT FROM archibald.agents a
                                  WHERE a.state = 'ready' AND a.head_is_sync AND a.ready_at <= v_now AND a.head_kind <> ALL (v_me.elsewhere)
                                    AND (v_solo_from IS NULL OR a.head_losses < v_solo_from) AND p_want > 0 AND NOT v_solo
                                    AND v_syncs < p_syncs) THEN v_soon END
             ) - clock_timestamp())::double precision,
             NULL::boolean, NULL::double precision, NULL, NULL::double precision, NULL::boolean;
  END IF;
END $$;

-- What workers of the code before 0003 call: outcomes of turns of one job each, and each outcome is answered.
CREATE OR REPLACE FUNCTION archibald.turn(p_worker bigint, p_lanes bigint[], p_epochs bigint[], p_jobs bigint[], p_events text[], p_results text[],
                               p_errors text[], p_delays double precision[], p_want integer, p_syncs integer, p_aged integer, p_look boolean,
                               p_solo boolean DEFAULT NULL)
RETURNS TABLE (what text, lane bigint, user_id text, epoch bigint, job bigint, kind text, job_class text, attempt integer, max_attempts integer,
               payload jsonb, saved_state jsonb, requeue_count integer, delay_s double precision, timeout_s double precision, backoff text,
               backoff_s double precision, idempotent boolean)
LANGUAGE sql AS $$
  WITH turn AS MATERIALIZED (
    SELECT * FROM archibald.turn(p_worker, p_lanes, p_epochs, array_fill(NULL::bigint, ARRAY[cardinality(p_lanes)]), NULL, p_lanes, p_jobs, p_events,
                                 p_results, p_errors, p_delays, array_fill(0::double precision, ARRAY[cardinality(p_lanes)]),
                                 array_fill(0::double precision, ARRAY[cardinality(p_lanes)]), p_want, p_syncs, p_aged, 0, '{}', '{}', p_look, p_solo)
  )
  SELECT 'settled', i.lane, NULL, i.epoch, i.job, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL
    FROM unnest(p_lanes, p_epochs, p_jobs) AS i(lane, epoch, job)
   WHERE NOT EXISTS (SELECT FROM turn t WHERE t.what = 'fenced' OR t.what IN ('lost', 'locked') AND t.lane = i.lane)
   UNION ALL
  SELECT what, lane, user_id, epoch, job, kind, job_class, attempt, max_attempts, payload, saved_state, requeue_count, delay_s, timeout_s, backoff,
         backoff_s, idempotent
    FROM turn
$$;
