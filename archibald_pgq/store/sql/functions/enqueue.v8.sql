-- Every way into the queue passes here: see enqueue.v7, whose other functions stand. All of them look at a new payload themselves: the condition
-- of a trigger is read anew by each statement that writes the table, and asked for each row.

-- True; or raises what the table's constraints once raised. A payload is what every reader can be trusted with, the same as in Python. Who asks
-- may pass over what is not longer than 400 characters: 201 levels take 402.
CREATE OR REPLACE FUNCTION archibald.sound_payload(p_payload jsonb) RETURNS boolean
LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
  IF octet_length(p_payload::text) > 1048576 THEN
    RAISE EXCEPTION 'new row for relation "jobs" violates check constraint "jobs_payload_size"'
      USING ERRCODE = '23514', CONSTRAINT = 'jobs_payload_size', HINT = 'A payload is at most 1048576 bytes as JSON.';
  END IF;
  IF p_payload @? '$.**{201 to last}' THEN
    RAISE EXCEPTION 'new row for relation "jobs" violates check constraint "jobs_payload_depth"'
      USING ERRCODE = '23514', CONSTRAINT = 'jobs_payload_depth', HINT = 'A payload has at most 200 levels.';
  END IF;
  RETURN true;
END $$;

-- Of a payload that is changed later, by hand.
CREATE OR REPLACE FUNCTION archibald.check_payload() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
  PERFORM archibald.sound_payload(NEW.payload);
  RETURN NEW;
END $$;
DROP TRIGGER jobs_payload ON archibald.jobs;
CREATE TRIGGER jobs_payload BEFORE UPDATE OF payload ON archibald.jobs FOR EACH ROW EXECUTE FUNCTION archibald.check_payload();

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
  IF octet_length(NEW.payload::text) > 400 THEN
    PERFORM archibald.sound_payload(NEW.payload);
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
  v_set text;      -- of no interest: assigned, a function is called without a statement of its own
BEGIN
  IF idempotency_key IS NULL AND retried_from IS NULL THEN
    -- From the lock until the caller commits nobody may call this agent's lane empty; a later statement reads it.
    SELECT o.class, o.priority, o.max_attempts, set_config('archibald.checked', 'on', true),
           pg_advisory_xact_lock_shared(1095910216, archibald.bucket(archibald.lock_key(enqueue.user_id))) INTO v_op
      FROM archibald.operations o
     WHERE o.kind = enqueue.kind AND o.class <> 'sync'
       AND char_length(enqueue.user_id) BETWEEN 1 AND 200
       AND coalesce(jsonb_typeof(enqueue.payload) = 'object', true)
       AND coalesce(octet_length(enqueue.payload::text) <= 400 OR archibald.sound_payload(enqueue.payload), true)
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
      v_set := set_config('archibald.checked', '', true);
      IF v_new.wake THEN
        v_set := archibald.hint('wake');
      END IF;
      IF v_new.due AND v_new.agent_id IS NOT NULL THEN          -- a turn of several jobs: see the trigger
        PERFORM archibald.hint('turn ' || a.id) FROM archibald.agents a
          WHERE a.id = v_new.agent_id AND cardinality(a.turn_job_ids) > 1 AND (false, v_new.priority) < (a.head_is_sync, a.head_priority);
      END IF;
      RETURN v_new.id;
    END IF;
  END IF;
  IF current_setting('archibald.checked', true) = 'on' THEN       -- not the caller's to say
    v_set := set_config('archibald.checked', '', true);
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

-- Who may pass by the trigger: as in enqueue.v7, but with the table's oid in the place of its name, which would be looked up for each row.
DROP TRIGGER jobs_before_insert ON archibald.jobs;
CREATE TRIGGER jobs_before_insert BEFORE INSERT ON archibald.jobs
  FOR EACH ROW WHEN (current_setting('archibald.checked', true) IS DISTINCT FROM 'on'
                     OR NOT has_table_privilege('archibald.jobs'::regclass, 'TRIGGER'))
  EXECUTE FUNCTION archibald.jobs_before_insert();
