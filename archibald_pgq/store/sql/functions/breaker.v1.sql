-- Circuit breakers: what keeps failing is not tried again and again. Only the owner of the job's lane writes here.
-- Lock order: lane, job, breaker.

-- The agent's system could not be reached, or refused the login: the third time in a row, and each time after it, the agent is paused, for 5
-- minutes, then twice as long, at most an hour. The first job after the pause is the probe. A person's pause is left as it is.
-- Returns the seconds of the pause, 0 if there is none, NULL if the job is no longer this worker's.
CREATE OR REPLACE FUNCTION archibald.note_outage(p_worker bigint, p_lane bigint, p_epoch bigint, p_job bigint, p_reason text) RETURNS double precision
LANGUAGE plpgsql SET enable_seqscan = off SET jit = off AS $$
DECLARE
  v_user     text;
  v_failures integer;
  v_pause    double precision;
BEGIN
  SELECT a.user_id INTO v_user FROM archibald.agents a
   WHERE a.id = p_lane AND a.epoch = p_epoch AND a.worker_id = p_worker AND p_job = ANY (a.turn_job_ids) FOR NO KEY UPDATE;
  IF NOT FOUND THEN
    RETURN NULL;
  END IF;
  INSERT INTO archibald.breakers AS b (user_id, failures, reason) VALUES (v_user, 1, p_reason)
  ON CONFLICT (user_id, kind) DO UPDATE SET failures = b.failures + 1, reason = excluded.reason, failed_at = clock_timestamp()
  RETURNING b.failures INTO v_failures;
  IF v_failures < 3 THEN
    RETURN 0;
  END IF;
  v_pause := least(300 * 2 ^ least(v_failures - 3, 10), 3600);
  UPDATE archibald.breakers b SET open_until = clock_timestamp() + make_interval(secs => v_pause) WHERE b.user_id = v_user AND b.kind = '';
  UPDATE archibald.agents a
     SET paused_until = clock_timestamp() + make_interval(secs => v_pause),
         paused_reason = format('breaker: %s failures in a row, the last: %s', v_failures, p_reason)
   WHERE a.id = p_lane AND coalesce(a.paused_until, '-infinity') < clock_timestamp() + make_interval(secs => v_pause);
  RETURN v_pause;
END $$;

-- The agent's system has answered: failures are counted from the beginning.
CREATE OR REPLACE FUNCTION archibald.note_recovery(p_worker bigint, p_lane bigint, p_epoch bigint, p_job bigint) RETURNS boolean
LANGUAGE plpgsql SET enable_seqscan = off SET jit = off AS $$
BEGIN
  IF NOT archibald.owns_job(p_worker, p_lane, p_epoch, p_job) THEN
    RETURN NULL;
  END IF;
  DELETE FROM archibald.breakers b USING archibald.agents a WHERE a.id = p_lane AND b.user_id = a.user_id AND b.kind = '';
  RETURN FOUND;
END $$;

-- The login was refused, as with a wrong password: the agent is paused until somebody resumes it. False: the job is no longer this worker's.
CREATE OR REPLACE FUNCTION archibald.note_refused_login(p_worker bigint, p_lane bigint, p_epoch bigint, p_job bigint, p_reason text) RETURNS boolean
LANGUAGE plpgsql SET enable_seqscan = off SET jit = off AS $$
BEGIN
  UPDATE archibald.agents a SET paused_until = '9999-12-30Z', paused_reason = 'login refused: ' || p_reason
   WHERE a.id = p_lane AND a.epoch = p_epoch AND a.worker_id = p_worker AND p_job = ANY (a.turn_job_ids);
  RETURN FOUND;
END $$;

-- A sync has failed for good: the third time in a row it is left alone for 2 hours, the sixth time within a day for 24. One that waits, and
-- one that is enqueued meanwhile (enqueue.v6), keeps its place and waits until then. Returns the seconds, 0 if there are none, NULL if the job
-- is no longer this worker's.
CREATE OR REPLACE FUNCTION archibald.note_failed_sync(p_worker bigint, p_lane bigint, p_epoch bigint, p_job bigint, p_reason text) RETURNS double precision
LANGUAGE plpgsql SET enable_seqscan = off SET jit = off AS $$
DECLARE
  v_job   record;
  v_row   integer;
  v_day   integer;
  v_pause double precision;
BEGIN
  IF NOT archibald.owns_job(p_worker, p_lane, p_epoch, p_job) THEN
    RETURN NULL;
  END IF;
  SELECT j.user_id, j.kind INTO STRICT v_job FROM archibald.jobs j WHERE j.id = p_job;
  -- of the agent's last thousand jobs: the look is bounded
  SELECT count(*) FILTER (WHERE NOT s.succeeded), count(*) FILTER (WHERE s.state = 'failed' AND s.finished_at > now() - interval '1 day')
    INTO v_row, v_day
    FROM (SELECT h.state, h.finished_at, bool_or(h.state = 'completed') OVER (ORDER BY h.id DESC) AS succeeded
            FROM (SELECT * FROM archibald.job_history l WHERE l.user_id = v_job.user_id ORDER BY l.id DESC LIMIT 1000) AS h
           WHERE h.kind = v_job.kind AND h.state IN ('completed', 'failed')) AS s;
  v_pause := CASE WHEN v_day + 1 >= 6 THEN 86400 WHEN v_row + 1 >= 3 THEN 7200 ELSE 0 END;
  IF v_pause = 0 THEN
    RETURN 0;
  END IF;
  INSERT INTO archibald.breakers AS b (user_id, kind, failures, reason, open_until)
  VALUES (v_job.user_id, v_job.kind, v_row + 1, p_reason, clock_timestamp() + make_interval(secs => v_pause))
  ON CONFLICT (user_id, kind) DO UPDATE
     SET failures = excluded.failures, reason = excluded.reason, failed_at = clock_timestamp(), open_until = excluded.open_until;
  UPDATE archibald.jobs j
     SET due = false, wait_reason = 'delay', run_after = greatest(j.run_after, clock_timestamp() + make_interval(secs => v_pause)),
         waiting_since = greatest(j.run_after, clock_timestamp() + make_interval(secs => v_pause))
   WHERE j.user_id = v_job.user_id AND j.kind = v_job.kind AND j.class = 'sync' AND j.state = 'queued' AND j.id <> p_job;
  RETURN v_pause;
END $$;
