-- Enqueues many jobs at once; all or none. The arrays are parallel, one element per job. Returns the ids in the same order; of a duplicate,
-- of one of the others too, the id of the job that is already there.
-- The ids are drawn before, in the order given: jobs of one agent keep it, and whatever was not inserted is known to be a duplicate.
-- What can be a duplicate or is to be refused goes through the trigger, row by row, in the order of (user_id, key): two callers take the keys
-- that they share in the same order, and cannot deadlock on them. The rest, mostly all, is one statement for the set.
-- The policies are few: OFFSET 0 has them read once and not once a job. By user, so that neighbours in the index are written one after the other.
CREATE OR REPLACE FUNCTION archibald.enqueue_many(user_ids text[], kinds text[], payloads jsonb[], idempotency_keys text[], run_afters timestamptz[])
RETURNS bigint[]
LANGUAGE plpgsql SET enable_seqscan = off SET enable_bitmapscan = off AS $$
DECLARE
  v_sequence regclass := pg_get_serial_sequence('archibald.jobs', 'id');
  v_ids      bigint[] := ARRAY (SELECT nextval(v_sequence) FROM generate_series(1, cardinality(user_ids)));
  v_now      timestamptz := clock_timestamp();
  v_plain    boolean[];            -- the others go through the trigger
  v_limit    integer;
  v_new      bigint[] := '{}';
  v_lanes    bigint[];
  v_wakes    boolean[];            -- NULL: all of them
  v_wake     boolean;
  v_count    integer;
  v_place    integer;
BEGIN
  IF current_setting('archibald.checked', true) = 'on' THEN       -- not the caller's to say
    PERFORM set_config('archibald.checked', '', true);
  END IF;
  v_plain := ARRAY (
    SELECT o.kind IS NOT NULL
      FROM unnest(user_ids, kinds, payloads, idempotency_keys, run_afters) WITH ORDINALITY AS i(user_id, kind, payload, key, run_after, n)
      LEFT JOIN (SELECT p.kind FROM archibald.operations p WHERE p.class <> 'sync' OFFSET 0) AS o
        ON o.kind = i.kind AND i.key IS NULL AND char_length(i.user_id) BETWEEN 1 AND 200
           AND jsonb_typeof(i.payload) = 'object' AND coalesce(i.run_after, v_now) BETWEEN '0001-01-02Z' AND '9999-12-30Z'
           AND (octet_length(i.payload::text) <= 400 OR archibald.sound_payload(i.payload))
     ORDER BY i.n);

  IF false = ANY (v_plain) THEN
    WITH new AS (
      INSERT INTO archibald.jobs (id, user_id, kind, payload, idempotency_key, run_after) OVERRIDING SYSTEM VALUE
      SELECT i.id, i.user_id, i.kind, i.payload, i.key, i.run_after
        FROM unnest(v_ids, user_ids, kinds, payloads, idempotency_keys, run_afters, v_plain)
             AS i(id, user_id, kind, payload, key, run_after, plain)
       WHERE NOT i.plain
       ORDER BY i.user_id, i.key, i.id
      RETURNING id
    )
    SELECT coalesce(array_agg(id), '{}') INTO v_new FROM new;
  END IF;

  -- Of an agent whose backlog has no room for all of its jobs the trigger finds the one to refuse.
  v_limit := least((SELECT l.agent_backlog FROM archibald.limits l WHERE l.one),
                   nullif(current_setting('archibald.agent_backlog', true), '')::integer);
  IF v_limit IS NOT NULL THEN
    INSERT INTO archibald.jobs (user_id, kind, payload, run_after)
    SELECT i.user_id, i.kind, i.payload, i.run_after
      FROM unnest(user_ids, kinds, payloads, run_afters, v_plain) AS i(user_id, kind, payload, run_after, plain)
     WHERE i.plain AND i.user_id IN (
             SELECT u.user_id FROM (SELECT k.user_id, count(*) AS jobs FROM unnest(user_ids, v_plain) AS k(user_id, plain)
                                     WHERE k.plain GROUP BY k.user_id) AS u
              WHERE u.jobs + (SELECT count(*) FROM (SELECT FROM archibald.jobs j WHERE j.user_id = u.user_id AND j.state = 'queued'
                                                     ORDER BY j.id LIMIT (SELECT v_limit)) AS b) > v_limit);
    IF FOUND THEN
      -- a job of theirs ended meanwhile, so that the trigger found room: not for us to tell which
      RAISE EXCEPTION 'the backlog of an agent changed while its jobs were enqueued; enqueue again' USING ERRCODE = '40001';
    END IF;
  END IF;

  -- From here until the caller commits nobody may call the lane of one of these agents empty; a later statement reads the lanes.
  PERFORM pg_advisory_xact_lock_shared(1095910216, b.bucket)
     FROM (SELECT DISTINCT archibald.bucket(archibald.lock_key(i.user_id)) AS bucket FROM unnest(user_ids, v_plain) AS i(user_id, plain)
            WHERE i.plain ORDER BY 1) AS b;
  v_lanes := ARRAY (SELECT a.id FROM unnest(user_ids) WITH ORDINALITY AS i(user_id, n)
                      LEFT JOIN LATERAL (SELECT l.id FROM archibald.agents l WHERE l.user_id = i.user_id LIMIT 1) AS a ON true ORDER BY i.n);
  -- When to wake: see the trigger. Between Bind and Execute lies here what the arrays take to be read, some µs for each job.
  v_wake := statement_timestamp() - now() > interval '50 microseconds' + cardinality(user_ids) * interval '5 microseconds'
            OR current_setting('transaction_isolation') <> 'read committed';
  IF array_remove(v_lanes, NULL) <> '{}' THEN
    v_wakes := ARRAY (
      -- of an agent's jobs the first one wakes for all; but each of them that has no lane yet is to be given it
      SELECT i.lane IS NULL
             OR row_number() OVER (PARTITION BY i.lane, i.plain
                                       ORDER BY coalesce(i.run_after <= v_now, true) DESC, o.priority, o.class, i.n) = 1
                AND (v_wake OR a.state = 'idle'
                     OR (a.state = 'ready' AND (false, o.priority) < (a.head_is_sync, a.head_priority))
                     OR (a.state = 'running' AND a.preemptable AND o.class = 'write'))
        FROM unnest(v_lanes, kinds, run_afters, v_plain) WITH ORDINALITY AS i(lane, kind, run_after, plain, n)
        LEFT JOIN archibald.operations o ON o.kind = i.kind
        LEFT JOIN LATERAL (SELECT l.state, l.head_is_sync, l.head_priority, l.preemptable FROM archibald.agents l
                            WHERE l.id = i.lane LIMIT 1) AS a ON true
       ORDER BY i.n);
  END IF;
  PERFORM set_config('archibald.checked', 'on', true);
  WITH new AS (
    INSERT INTO archibald.jobs (id, agent_id, user_id, kind, class, due, wake, wait_reason, priority, run_after, max_attempts, payload,
                                created_at, waiting_since) OVERRIDING SYSTEM VALUE
    SELECT i.id, i.lane, i.user_id, i.kind, o.class, t.due, t.due AND coalesce(i.wake, true), CASE WHEN NOT t.due THEN 'delay' END,
           o.priority, coalesce(i.run_after, v_now), o.max_attempts, i.payload, v_now, greatest(i.run_after, v_now)
      FROM unnest(v_ids, v_lanes, v_wakes, user_ids, kinds, payloads, run_afters, v_plain)
           AS i(id, lane, wake, user_id, kind, payload, run_after, plain)
     CROSS JOIN LATERAL (SELECT coalesce(i.run_after <= v_now, true) AS due) AS t
      JOIN (SELECT p.* FROM archibald.operations p WHERE p.class <> 'sync' OFFSET 0) AS o ON o.kind = i.kind
     WHERE i.plain ORDER BY i.user_id
    RETURNING wake
  )
  SELECT count(*), bool_or(new.wake) INTO v_count, v_wake FROM new;
  PERFORM set_config('archibald.checked', '', true);
  IF v_count < cardinality(array_positions(v_plain, true)) THEN
    RAISE EXCEPTION 'a kind became a sync, or went, while jobs of it were enqueued; enqueue again' USING ERRCODE = '40001';
  END IF;
  IF v_wake THEN
    PERFORM archibald.hint('wake');
  END IF;
  IF v_wakes IS NOT NULL THEN     -- a turn of several jobs: see the trigger
    PERFORM archibald.hint('turn ' || a.id)
       FROM (SELECT i.lane, min(o.priority) AS priority
               FROM unnest(v_lanes, kinds, run_afters, v_plain) AS i(lane, kind, run_after, plain)
               JOIN archibald.operations o ON o.kind = i.kind
              WHERE i.plain AND coalesce(i.run_after <= v_now, true) GROUP BY i.lane) AS u
      CROSS JOIN LATERAL (SELECT l.id, l.head_is_sync, l.head_priority FROM archibald.agents l
                           WHERE l.id = u.lane AND cardinality(l.turn_job_ids) > 1 LIMIT 1) AS a
      WHERE (false, u.priority) < (a.head_is_sync, a.head_priority);
  END IF;

  IF false = ANY (v_plain) THEN
    FOR v_place IN
      SELECT i.n FROM unnest(v_ids, v_plain) WITH ORDINALITY AS i(id, plain, n)
       WHERE NOT i.plain AND NOT EXISTS (SELECT FROM unnest(v_new) AS new(id) WHERE new.id = i.id)
    LOOP
      v_ids[v_place] := archibald.enqueue(user_ids[v_place], kinds[v_place], payloads[v_place], idempotency_keys[v_place], run_afters[v_place]);
    END LOOP;
  END IF;
  RETURN v_ids;
END $$;
