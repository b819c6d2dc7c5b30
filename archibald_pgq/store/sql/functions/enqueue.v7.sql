-- Every way into the queue passes here: the trigger fills in the kind's policy, drops duplicates, and decides whether a worker must be
-- woken. It takes no row lock of a lane and creates no agent: it may run inside a caller's long transaction.
-- enqueue() and enqueue_many() pass by the trigger with a job that cannot be a duplicate or be refused: see the end of this file.
-- security.v1 makes the trigger's function and the two that callers call SECURITY DEFINER, so that who may only enqueue needs no right on the
-- keys, the agents or the policies.
-- Lock order: key rows of the caller, then the bucket (shared, until the caller commits), then the job row itself.

-- Is this key taken? Returns the job that has it, or NULL after giving it to p_job. Holds the key's row until the caller commits, so that
-- of a thousand callers with one key one goes first and the others see its job.
CREATE OR REPLACE FUNCTION archibald.take_key(p_user_id text, p_key text, p_job bigint, p_created_at timestamptz, p_window interval) RETURNS bigint
LANGUAGE plpgsql AS $$
DECLARE
  v_key archibald.idempotency_keys%ROWTYPE;
BEGIN
  -- A live job has it: the answer, without a lock. A caller that enqueues a duplicate and goes on for an hour then delays nobody.
  SELECT k.* INTO v_key FROM archibald.idempotency_keys k JOIN archibald.jobs j ON j.id = k.job_id
   WHERE k.user_id = p_user_id AND k.key = p_key;
  IF FOUND THEN
    RETURN v_key.job_id;
  END IF;
  LOOP
    INSERT INTO archibald.idempotency_keys (user_id, key, job_id, job_created_at, expires_at)
    VALUES (p_user_id, p_key, p_job, p_created_at, p_created_at + p_window)
    ON CONFLICT (user_id, key) DO NOTHING;
    IF FOUND THEN
      RETURN NULL;
    END IF;
    SELECT * INTO v_key FROM archibald.idempotency_keys WHERE user_id = p_user_id AND key = p_key FOR UPDATE;
    EXIT WHEN FOUND;                           -- else it was swept between the two statements
  END LOOP;
  -- A later statement sees every job that committed before the key's row could be locked.
  IF EXISTS (SELECT FROM archibald.jobs WHERE id = v_key.job_id) THEN
    RETURN v_key.job_id;
  END IF;
  IF v_key.expires_at > clock_timestamp() AND EXISTS (
       SELECT FROM archibald.job_history h
        WHERE h.id = v_key.job_id AND h.created_at = v_key.job_created_at AND h.state = 'completed') THEN
    RETURN v_key.job_id;
  END IF;
  UPDATE archibald.idempotency_keys
     SET job_id = p_job, job_created_at = p_created_at, expires_at = p_created_at + p_window
   WHERE user_id = p_user_id AND key = p_key;
  RETURN NULL;
END $$;

-- The queued sync of this user and kind, if there is one. Two enqueuers that both see none meet on a row of sync_keys.
CREATE OR REPLACE FUNCTION archibald.queued_sync(p_user_id text, p_kind text) RETURNS bigint
LANGUAGE plpgsql AS $$
DECLARE
  v_job bigint;
BEGIN
  FOR look IN 1..2 LOOP
    SELECT id INTO v_job FROM archibald.jobs
     WHERE user_id = p_user_id AND kind = p_kind AND class = 'sync' AND state = 'queued' ORDER BY id LIMIT 1;
    IF v_job IS NOT NULL OR look = 2 THEN
      RETURN v_job;
    END IF;
    INSERT INTO archibald.sync_keys (user_id, kind) VALUES (p_user_id, p_kind) ON CONFLICT DO NOTHING;
    IF NOT FOUND THEN
      PERFORM 1 FROM archibald.sync_keys WHERE user_id = p_user_id AND kind = p_kind FOR UPDATE;
    END IF;
  END LOOP;
END $$;

CREATE OR REPLACE FUNCTION archibald.jobs_before_insert() RETURNS trigger
LANGUAGE plpgsql SET enable_seqscan = off SET enable_bitmapscan = off AS $$
DECLARE
  v_op       record;
  v_lane     record;
  v_now      timestamptz := clock_timestamp();
  v_key      bigint;
  v_twin     bigint;
  v_window   interval;
  v_limit    integer;
  v_queued   bigint;
BEGIN
  SELECT o.class, o.priority, o.max_attempts, (SELECT l.agent_backlog FROM archibald.limits l WHERE l.one) AS agent_backlog INTO v_op
    FROM archibald.operations o WHERE o.kind = NEW.kind;
  IF NOT FOUND THEN
    RAISE EXCEPTION 'unknown kind %: it is not in archibald.operations', quote_literal(coalesce(NEW.kind, ''))
      USING ERRCODE = 'AQ001', HINT = 'Declare it with @app.operation(…) and start that app once, or correct the name.';
  END IF;
  IF NEW.user_id IS NULL OR char_length(NEW.user_id) NOT BETWEEN 1 AND 200 THEN
    RAISE EXCEPTION 'user_id must be a text of 1 to 200 characters' USING ERRCODE = 'AQ002';
  END IF;
  IF jsonb_typeof(NEW.payload) <> 'object' THEN
    RAISE EXCEPTION 'the payload must be a JSON object, such as {"order": 7}' USING ERRCODE = 'AQ002';
  END IF;
  NEW.class := v_op.class;
  NEW.priority := coalesce(NEW.priority, v_op.priority);
  NEW.max_attempts := v_op.max_attempts;
  NEW.payload := coalesce(NEW.payload, '{}');
  NEW.run_after := coalesce(NEW.run_after, v_now);
  IF NEW.class = 'sync' THEN                   -- one that keeps failing is left alone: breaker.v1
    NEW.run_after := greatest(NEW.run_after, (SELECT b.open_until FROM archibald.breakers b WHERE b.user_id = NEW.user_id AND b.kind = NEW.kind));
  END IF;
  IF NEW.priority < 0 THEN
    RAISE EXCEPTION 'priority must be 0 to 32767' USING ERRCODE = 'AQ002';
  END IF;
  IF NOT char_length(NEW.idempotency_key) BETWEEN 1 AND 200 OR NEW.requeue_count < 0 THEN
    RAISE EXCEPTION 'new row for relation "jobs" violates check constraint "%"', CASE WHEN NEW.requeue_count < 0 THEN 'jobs_counts' ELSE 'jobs_key' END
      USING ERRCODE = '23514', SCHEMA = 'archibald', TABLE = 'jobs', CONSTRAINT = CASE WHEN NEW.requeue_count < 0 THEN 'jobs_counts' ELSE 'jobs_key' END;
  END IF;
  -- 'infinity' and years that no client can read would break those who look at the queue, and who calculate with it
  IF NEW.run_after NOT BETWEEN '0001-01-02Z' AND '9999-12-30Z' THEN
    RAISE EXCEPTION 'run_after must be a time in the years 1 to 9999' USING ERRCODE = 'AQ002';
  END IF;
  NEW.created_at := v_now;                     -- decides about the partition and the key's window: not the caller's to choose
  NEW.due := NEW.run_after <= v_now;
  NEW.wait_reason := CASE WHEN NOT NEW.due THEN 'delay' END;
  NEW.waiting_since := greatest(NEW.run_after, v_now);
  NEW.state := 'queued';
  NEW.attempt := 0;
  NEW.losses := 0;
  NEW.progress := NULL;
  NEW.progress_label := NULL;
  NEW.last_error := NULL;
  NEW.agent_id := NULL;
  NEW.worker_id := NULL;
  NEW.started_at := NULL;
  NEW.cancel_requested_at := NULL;
  NEW.preempt_requested_at := NULL;
  NEW.preempted_by := NULL;
  NEW.preemptions := 0;
  NEW.saved_state := NULL;

  -- Duplicates: nothing is inserted and nothing is raised. archibald.enqueue() finds the twin's id.
  IF NEW.idempotency_key IS NOT NULL THEN
    v_window := make_interval(secs => coalesce(nullif(current_setting('archibald.dedup_window', true), '')::double precision, 30));
    IF archibald.take_key(NEW.user_id, NEW.idempotency_key, NEW.id, NEW.created_at, v_window) IS NOT NULL THEN
      RETURN NULL;
    END IF;
  END IF;
  IF NEW.class = 'sync' THEN
    LOOP
      v_twin := archibald.queued_sync(NEW.user_id, NEW.kind);
      EXIT WHEN v_twin IS NULL;
      IF NEW.idempotency_key IS NULL THEN
        RETURN NULL;
      END IF;
      UPDATE archibald.idempotency_keys k SET job_id = j.id, job_created_at = j.created_at
        FROM archibald.jobs j
       WHERE j.id = v_twin AND k.user_id = NEW.user_id AND k.key = NEW.idempotency_key;
      IF FOUND THEN
        RETURN NULL;
      END IF;
      -- the twin has run and gone meanwhile: were the key left as it is, it would name a job that never was
    END LOOP;
  END IF;

  -- The agent's backlog: the database's limit, or the caller's where that is lower. Counted no further than the limit, in an index. What
  -- others enqueue at this moment and have not committed is not seen: so much it may be exceeded by. A person's retry is never refused.
  -- (The limit of the count is a subquery, so that the planner does not see its value and plan it anew each time.)
  v_limit := least(v_op.agent_backlog, nullif(current_setting('archibald.agent_backlog', true), '')::integer);
  IF v_limit IS NOT NULL THEN
    v_queued := (SELECT count(*) FROM (SELECT FROM archibald.jobs j WHERE j.user_id = NEW.user_id AND j.state = 'queued'
                                        ORDER BY j.id LIMIT (SELECT v_limit)) AS b);
    IF v_queued >= v_limit THEN
      IF NEW.retried_from IS NULL
         OR EXISTS (SELECT FROM archibald.jobs j WHERE j.retried_from = NEW.retried_from)
         OR NOT EXISTS (SELECT FROM archibald.job_history h WHERE h.id = NEW.retried_from AND h.user_id = NEW.user_id
                                                              AND h.kind = NEW.kind AND h.state <> 'completed') THEN
        RAISE EXCEPTION 'the agent % has % queued jobs, and may have no more; enqueue again when some of them have run',
                        quote_literal(NEW.user_id), v_queued
          USING ERRCODE = 'AQ003', HINT = 'The limit is ARCHIBALD_AGENT_BACKLOG, or agent_backlog in archibald.limits.';
      END IF;
    END IF;
  END IF;

  -- From here until the caller commits nobody may call this agent's lane empty.
  v_key := archibald.lock_key(NEW.user_id);
  PERFORM pg_advisory_xact_lock_shared(1095910216, archibald.bucket(v_key));
  SELECT id, state, head_is_sync, head_priority, preemptable, cardinality(turn_job_ids) AS jobs INTO v_lane
    FROM archibald.agents WHERE user_id = NEW.user_id;
  NEW.agent_id := v_lane.id;     -- before others that wait for it: the claim looks for those
  -- In an explicit transaction the lane may change before the commit, and outside READ COMMITTED what was read may be old: always wake.
  -- Not by now() <> statement_timestamp(): the extended protocol (every driver with parameters) sets the latter again at Bind and
  -- Execute, so that in autocommit too they differ by 2 to 20 µs, and each enqueue for a busy agent would notify; after a BEGIN of its
  -- own they differ by a round trip, over 60 µs on a local socket (measured). To be wrong costs a notification, or nothing but time:
  -- a settle cannot get the bucket that this transaction holds, and the lane is looked at again.
  NEW.wake := NEW.due AND (
       NEW.agent_id IS NULL
    OR v_lane.state = 'idle'
    OR (v_lane.state = 'ready' AND (NEW.class = 'sync', NEW.priority) < (v_lane.head_is_sync, v_lane.head_priority))
    OR (v_lane.state = 'running' AND v_lane.preemptable AND NEW.class = 'write')
    OR statement_timestamp() - now() > interval '50 microseconds'
    OR current_setting('transaction_isolation') <> 'read committed');
  IF NEW.wake THEN
    PERFORM archibald.hint('wake');
  END IF;
  -- A turn of several jobs is under way, and this one goes before those of them that have not begun.
  IF v_lane.jobs > 1 AND NEW.due AND (NEW.class = 'sync', NEW.priority) < (v_lane.head_is_sync, v_lane.head_priority) THEN
    PERFORM archibald.hint('turn ' || v_lane.id);
  END IF;
  RETURN NEW;
END $$;

-- Enqueues one job and returns its id; of a duplicate, the id of the job that is already there.
-- What can be neither a duplicate nor refused does not need the trigger: one statement looks up the policy, the next one the lane. Anything
-- else goes through the trigger, which knows why; without the bucket, which comes after the rows of the keys.
CREATE OR REPLACE FUNCTION archibald.enqueue(user_id text, kind text, payload jsonb DEFAULT '{}', idempotency_key text DEFAULT NULL,
                                  run_after timestamptz DEFAULT NULL, retried_from bigint DEFAULT NULL) RETURNS bigint
LANGUAGE plpgsql SET enable_seqscan = off SET enable_bitmapscan = off AS $$
#variable_conflict use_column
DECLARE
  v_now timestamptz := clock_timestamp();
  v_op  record;
  v_new record;
  v_job bigint;
BEGIN
  IF idempotency_key IS NULL AND retried_from IS NULL THEN
    -- From the lock until the caller commits nobody may call this agent's lane empty; a later statement reads it.
    SELECT o.class, o.priority, o.max_attempts, set_config('archibald.checked', 'on', true),
           pg_advisory_xact_lock_shared(1095910216, archibald.bucket(archibald.lock_key(enqueue.user_id))) INTO v_op
      FROM archibald.operations o
     WHERE o.kind = enqueue.kind AND o.class <> 'sync'
       AND char_length(enqueue.user_id) BETWEEN 1 AND 200
       AND coalesce(jsonb_typeof(enqueue.payload) = 'object', true)
       AND coalesce(enqueue.run_after, v_now) BETWEEN '0001-01-02Z' AND '9999-12-30Z'
       AND coalesce(current_setting('archibald.agent_backlog', true), '') = ''
       AND (SELECT l.agent_backlog FROM archibald.limits l WHERE l.one) IS NULL;
    IF FOUND THEN
      INSERT INTO archibald.jobs (agent_id, user_id, kind, class, due, wake, wait_reason, priority, run_after, max_attempts, payload, created_at,
                                  waiting_since)
      SELECT a.id, enqueue.user_id, enqueue.kind, v_op.class, t.due,
             t.due AND (a.id IS NULL OR a.state = 'idle'     -- see the trigger
                        OR (a.state = 'ready' AND (false, v_op.priority) < (a.head_is_sync, a.head_priority))
                        OR (a.state = 'running' AND a.preemptable AND v_op.class = 'write')
                        OR statement_timestamp() - now() > interval '50 microseconds'
                        OR current_setting('transaction_isolation') <> 'read committed'),
             CASE WHEN NOT t.due THEN 'delay' END, v_op.priority, coalesce(enqueue.run_after, v_now), v_op.max_attempts,
             coalesce(enqueue.payload, '{}'), v_now, greatest(enqueue.run_after, v_now)
        FROM (SELECT coalesce(enqueue.run_after <= v_now, true) AS due) AS t
        LEFT JOIN archibald.agents a ON a.user_id = enqueue.user_id
      RETURNING id, agent_id, due, wake, priority INTO v_new;
      PERFORM set_config('archibald.checked', '', true);
      IF v_new.wake THEN
        PERFORM archibald.hint('wake');
      END IF;
      IF v_new.due AND v_new.agent_id IS NOT NULL THEN          -- a turn of several jobs: see the trigger
        PERFORM archibald.hint('turn ' || a.id) FROM archibald.agents a
          WHERE a.id = v_new.agent_id AND cardinality(a.turn_job_ids) > 1 AND (false, v_new.priority) < (a.head_is_sync, a.head_priority);
      END IF;
      RETURN v_new.id;
    END IF;
  END IF;
  IF current_setting('archibald.checked', true) = 'on' THEN       -- not the caller's to say
    PERFORM set_config('archibald.checked', '', true);
  END IF;
  -- A twin can end between "it is there" and "which one is it": then there is room for this job after all.
  FOR round IN 1..100 LOOP
    INSERT INTO archibald.jobs (user_id, kind, payload, idempotency_key, run_after, retried_from)
    VALUES (enqueue.user_id, enqueue.kind, enqueue.payload, enqueue.idempotency_key, enqueue.run_after, enqueue.retried_from)
    RETURNING id INTO v_job;
    IF v_job IS NOT NULL THEN
      RETURN v_job;
    END IF;
    SELECT k.job_id INTO v_job FROM archibald.idempotency_keys k
     WHERE k.user_id = enqueue.user_id AND k.key = enqueue.idempotency_key;
    IF v_job IS NOT NULL THEN
      RETURN v_job;
    END IF;
    v_job := (SELECT j.id FROM archibald.jobs j
               WHERE j.user_id = enqueue.user_id AND j.kind = enqueue.kind AND j.class = 'sync' AND j.state = 'queued'
               ORDER BY j.id LIMIT 1);
    IF v_job IS NOT NULL THEN
      RETURN v_job;
    END IF;
  END LOOP;
  RAISE EXCEPTION 'the sync % of % started 100 times while it was enqueued', kind, user_id USING ERRCODE = '40001';
END $$;

-- Makes the lanes of agents that have none, for a caller who is about to enqueue several jobs of each: these then need not be given their lane
-- one by one. In a transaction of its own (others who make lanes wait for its end), and only a help: where somebody else makes lanes at this
-- moment nothing is done.
CREATE OR REPLACE FUNCTION archibald.expect_agents(user_ids text[]) RETURNS void
LANGUAGE plpgsql SET enable_seqscan = off SET enable_bitmapscan = off AS $$
BEGIN
  user_ids := ARRAY (
    SELECT u FROM unnest(user_ids) AS u
     CROSS JOIN LATERAL (SELECT count(*) AS lanes FROM (SELECT FROM archibald.agents a WHERE a.user_id = u LIMIT 1) AS a) AS a
     WHERE a.lanes = 0 AND char_length(u) BETWEEN 1 AND 200
       -- a caller's open transaction may be making that lane: this one would wait for its end
       AND CASE WHEN pg_try_advisory_lock_shared(1095910217, (archibald.lock_key(u) & 2147483647)::integer)
                THEN pg_advisory_unlock_shared(1095910217, (archibald.lock_key(u) & 2147483647)::integer) ELSE false END);
  IF user_ids <> '{}' AND pg_try_advisory_xact_lock(1095910216, 1001) THEN
    INSERT INTO archibald.agents (user_id, lock_key) SELECT u, archibald.lock_key(u) FROM unnest(user_ids) AS u ORDER BY u
    ON CONFLICT (user_id) DO NOTHING;
  END IF;
END $$;

-- Enqueues many jobs at once; all or none. The arrays are parallel, one element per job. Returns the ids in the same order; of a duplicate,
-- of one of the others too, the id of the job that is already there.
-- The ids are drawn before, in the order given: jobs of one agent keep it, and whatever was not inserted is known to be a duplicate.
-- What can be a duplicate or is to be refused goes through the trigger, row by row, in the order of (user_id, key): two callers take the keys
-- that they share in the same order, and cannot deadlock on them. The rest, mostly all, is one statement for the set.
CREATE OR REPLACE FUNCTION archibald.enqueue_many(user_ids text[], kinds text[], payloads jsonb[], idempotency_keys text[], run_afters timestamptz[])
RETURNS bigint[]
LANGUAGE plpgsql SET enable_seqscan = off SET enable_bitmapscan = off AS $$
DECLARE
  v_sequence   regclass := pg_get_serial_sequence('archibald.jobs', 'id');
  v_ids        bigint[] := ARRAY (SELECT nextval(v_sequence) FROM generate_series(1, cardinality(user_ids)));
  v_now        timestamptz := clock_timestamp();
  v_classes    text[];        -- NULL: through the trigger
  v_priorities smallint[];
  v_attempts   integer[];
  v_limit      integer;
  v_new        bigint[] := '{}';
  v_wake       boolean;
  v_place      integer;
BEGIN
  IF current_setting('archibald.checked', true) = 'on' THEN       -- not the caller's to say
    PERFORM set_config('archibald.checked', '', true);
  END IF;
  SELECT array_agg(o.class ORDER BY i.n), array_agg(o.priority ORDER BY i.n), array_agg(o.max_attempts ORDER BY i.n)
    INTO v_classes, v_priorities, v_attempts
    FROM unnest(user_ids, kinds, payloads, idempotency_keys, run_afters) WITH ORDINALITY AS i(user_id, kind, payload, key, run_after, n)
    LEFT JOIN archibald.operations o
      ON o.kind = i.kind AND o.class <> 'sync' AND i.key IS NULL AND char_length(i.user_id) BETWEEN 1 AND 200
         AND jsonb_typeof(i.payload) = 'object' AND coalesce(i.run_after, v_now) BETWEEN '0001-01-02Z' AND '9999-12-30Z';

  IF array_position(v_classes, NULL) IS NOT NULL THEN
    WITH new AS (
      INSERT INTO archibald.jobs (id, user_id, kind, payload, idempotency_key, run_after) OVERRIDING SYSTEM VALUE
      SELECT i.id, i.user_id, i.kind, i.payload, i.key, i.run_after
        FROM unnest(v_ids, user_ids, kinds, payloads, idempotency_keys, run_afters, v_classes)
             AS i(id, user_id, kind, payload, key, run_after, class)
       WHERE i.class IS NULL
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
      FROM unnest(user_ids, kinds, payloads, run_afters, v_classes) AS i(user_id, kind, payload, run_after, class)
     WHERE i.class IS NOT NULL AND i.user_id IN (
             SELECT u.user_id FROM (SELECT k.user_id, count(*) AS jobs FROM unnest(user_ids, v_classes) AS k(user_id, class)
                                     WHERE k.class IS NOT NULL GROUP BY k.user_id) AS u
              WHERE u.jobs + (SELECT count(*) FROM (SELECT FROM archibald.jobs j WHERE j.user_id = u.user_id AND j.state = 'queued'
                                                     ORDER BY j.id LIMIT (SELECT v_limit)) AS b) > v_limit);
    IF FOUND THEN
      -- a job of theirs ended meanwhile, so that the trigger found room: not for us to tell which
      RAISE EXCEPTION 'the backlog of an agent changed while its jobs were enqueued; enqueue again' USING ERRCODE = '40001';
    END IF;
  END IF;

  -- From here until the caller commits nobody may call the lane of one of these agents empty; a later statement reads the lanes.
  PERFORM pg_advisory_xact_lock_shared(1095910216, b.bucket)
     FROM (SELECT DISTINCT archibald.bucket(archibald.lock_key(i.user_id)) AS bucket FROM unnest(user_ids, v_classes) AS i(user_id, class)
            WHERE i.class IS NOT NULL ORDER BY 1) AS b;
  -- When to wake: see the trigger. Between Bind and Execute lies here what the arrays take to be read, some µs for each job.
  v_wake := statement_timestamp() - now() > interval '50 microseconds' + cardinality(user_ids) * interval '5 microseconds'
            OR current_setting('transaction_isolation') <> 'read committed';
  PERFORM set_config('archibald.checked', 'on', true);
  WITH new AS (
    INSERT INTO archibald.jobs (id, agent_id, user_id, kind, class, due, wake, wait_reason, priority, run_after, max_attempts, payload,
                                created_at, waiting_since) OVERRIDING SYSTEM VALUE
    SELECT i.id, a.id, i.user_id, i.kind, i.class, t.due,
           -- of an agent's jobs the first one wakes for all; but each of them that has no lane yet is to be given it
           t.due AND (a.id IS NULL
                      OR row_number() OVER (PARTITION BY i.user_id ORDER BY t.due DESC, i.priority, i.class, i.id) = 1
                         AND (v_wake OR a.state = 'idle'
                              OR (a.state = 'ready' AND (false, i.priority) < (a.head_is_sync, a.head_priority))
                              OR (a.state = 'running' AND a.preemptable AND i.class = 'write'))),
           CASE WHEN NOT t.due THEN 'delay' END, i.priority, coalesce(i.run_after, v_now), i.attempts, i.payload,
           v_now, greatest(i.run_after, v_now)
      FROM unnest(v_ids, user_ids, kinds, payloads, run_afters, v_classes, v_priorities, v_attempts)
           AS i(id, user_id, kind, payload, run_after, class, priority, attempts)
     CROSS JOIN LATERAL (SELECT coalesce(i.run_after <= v_now, true) AS due) AS t
      LEFT JOIN LATERAL (SELECT l.id, l.state, l.head_is_sync, l.head_priority, l.preemptable FROM archibald.agents l
                          WHERE l.user_id = i.user_id LIMIT 1) AS a ON true
     WHERE i.class IS NOT NULL
    RETURNING wake
  )
  SELECT bool_or(new.wake) INTO v_wake FROM new;
  PERFORM set_config('archibald.checked', '', true);
  IF v_wake THEN
    PERFORM archibald.hint('wake');
  END IF;
  PERFORM archibald.hint('turn ' || a.id)     -- see the trigger
     FROM (SELECT i.user_id, min(i.priority) AS priority FROM unnest(user_ids, v_classes, v_priorities, run_afters) AS i(user_id, class, priority, run_after)
            WHERE i.class IS NOT NULL AND coalesce(i.run_after <= v_now, true) GROUP BY i.user_id) AS u
    CROSS JOIN LATERAL (SELECT l.id, l.head_is_sync, l.head_priority FROM archibald.agents l
                         WHERE l.user_id = u.user_id AND cardinality(l.turn_job_ids) > 1 LIMIT 1) AS a
    WHERE (false, u.priority) < (a.head_is_sync, a.head_priority);

  FOR v_place IN
    SELECT i.n FROM unnest(v_ids, v_classes) WITH ORDINALITY AS i(id, class, n)
     WHERE i.class IS NULL AND NOT EXISTS (SELECT FROM unnest(v_new) AS new(id) WHERE new.id = i.id)
  LOOP
    v_ids[v_place] := archibald.enqueue(user_ids[v_place], kinds[v_place], payloads[v_place], idempotency_keys[v_place], run_afters[v_place]);
  END LOOP;
  RETURN v_ids;
END $$;

-- A payload never changes, and to write it out as text takes long when it is long: it is looked at where it is written, and not by a
-- constraint, which every turn that marks or puts back a job would check again, and every statement read anew.
CREATE OR REPLACE FUNCTION archibald.check_payload() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
  IF octet_length(NEW.payload::text) > 1048576 THEN
    RAISE EXCEPTION 'new row for relation "jobs" violates check constraint "jobs_payload_size"'
      USING ERRCODE = '23514', CONSTRAINT = 'jobs_payload_size', HINT = 'A payload is at most 1048576 bytes as JSON.';
  END IF;
  -- deeper than any reader's stack can be trusted with; the same limit as in Python
  IF NEW.payload @? '$.**{201 to last}' THEN
    RAISE EXCEPTION 'new row for relation "jobs" violates check constraint "jobs_payload_depth"'
      USING ERRCODE = '23514', CONSTRAINT = 'jobs_payload_depth', HINT = 'A payload has at most 200 levels.';
  END IF;
  RETURN NEW;
END $$;
DROP TRIGGER IF EXISTS jobs_payload ON archibald.jobs;
-- 201 levels take 402 characters
CREATE TRIGGER jobs_payload BEFORE INSERT OR UPDATE OF payload ON archibald.jobs
  FOR EACH ROW WHEN (octet_length(NEW.payload::text) > 400) EXECUTE FUNCTION archibald.check_payload();

-- Who may pass by the trigger: enqueue_many(), which says so by a setting, for the length of one statement. Anybody may set it; but it counts
-- only for who has the right to make triggers on this table, which the functions here have from their owner and no caller has. They take it
-- back at their beginning, so that no caller passes it to them. (Not by a SET clause: only a superuser may name a setting of ours there.)
DROP TRIGGER IF EXISTS jobs_before_insert ON archibald.jobs;
CREATE TRIGGER jobs_before_insert BEFORE INSERT ON archibald.jobs
  FOR EACH ROW WHEN (current_setting('archibald.checked', true) IS DISTINCT FROM 'on' OR NOT has_table_privilege('archibald.jobs', 'TRIGGER'))
  EXECUTE FUNCTION archibald.jobs_before_insert();
