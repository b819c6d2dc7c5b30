-- Steps of jobs whose effects lie outside Postgres, so that a run after a crash knows what was done. A step is begun, and that committed,
-- before it acts; done, with its result, after it. Only the owner of the job's lane writes: a worker that lost it meets the epoch.
-- Lock order: lane (shared, so that no takeover comes between the look and the write), then the step's row.

-- True while this owner has the lane, and the job is in its turn.
CREATE OR REPLACE FUNCTION archibald.owns_job(p_worker bigint, p_lane bigint, p_epoch bigint, p_job bigint) RETURNS boolean
LANGUAGE plpgsql AS $$
BEGIN
  PERFORM 1 FROM archibald.agents a
    WHERE a.id = p_lane AND a.epoch = p_epoch AND a.worker_id = p_worker AND p_job = ANY (a.turn_job_ids) FOR SHARE;
  RETURN FOUND;
END $$;

-- Begins a step, or tells what became of it: 'begun' (act now), 'done' with the result, or 'unknown' (an earlier run began it, and its end
-- is not known) with the seconds since. No row: the job is no longer this worker's. p_token names the call, which may be repeated.
-- p_absent: whoever could tell says that the unknown step did not happen; it is begun again.
CREATE OR REPLACE FUNCTION archibald.begin_step(p_worker bigint, p_lane bigint, p_epoch bigint, p_job bigint, p_step text, p_key text,
                                     p_token uuid, p_verifiable boolean, p_absent boolean)
RETURNS TABLE (state text, result jsonb, age_s double precision)
LANGUAGE plpgsql SET enable_seqscan = off SET jit = off AS $$
#variable_conflict use_column
DECLARE
  v_job   record;
  v_step  archibald.checkpoints%ROWTYPE;
BEGIN
  IF NOT archibald.owns_job(p_worker, p_lane, p_epoch, p_job) THEN
    RETURN;
  END IF;
  SELECT j.user_id, j.kind INTO STRICT v_job FROM archibald.jobs j WHERE j.id = p_job;
  LOOP
    IF p_key IS NULL THEN
      SELECT * INTO v_step FROM archibald.checkpoints c WHERE c.job_id = p_job AND c.step = p_step AND c.key IS NULL FOR UPDATE;
    ELSE
      SELECT * INTO v_step FROM archibald.checkpoints c
       WHERE c.user_id = v_job.user_id AND c.kind = v_job.kind AND c.key = p_key AND c.step = p_step FOR UPDATE;
    END IF;
    EXIT WHEN FOUND;
    INSERT INTO archibald.checkpoints (user_id, kind, job_id, step, key, verifiable, epoch, token)
    VALUES (v_job.user_id, v_job.kind, p_job, p_step, p_key, p_verifiable, p_epoch, p_token)
    ON CONFLICT DO NOTHING;
    IF FOUND THEN
      RETURN QUERY SELECT 'begun', NULL::jsonb, 0.0::double precision;
      RETURN;
    END IF;
  END LOOP;
  IF v_step.state = 'done' THEN
    RETURN QUERY SELECT 'done', v_step.result, 0.0::double precision;
  ELSIF v_step.token = p_token THEN
    RETURN QUERY SELECT 'begun', NULL::jsonb, 0.0::double precision;
  ELSIF p_absent THEN
    UPDATE archibald.checkpoints c
       SET job_id = p_job, verifiable = p_verifiable, epoch = p_epoch, token = p_token, began_at = clock_timestamp()
     WHERE c.id = v_step.id;
    RETURN QUERY SELECT 'begun', NULL::jsonb, 0.0::double precision;
  ELSE
    RETURN QUERY SELECT 'unknown', NULL::jsonb, extract(epoch FROM clock_timestamp() - v_step.began_at)::double precision;
  END IF;
END $$;

-- Writes down that a step is done, and what came of it. False: the job is no longer this worker's, or the step is not there. May be repeated.
CREATE OR REPLACE FUNCTION archibald.finish_step(p_worker bigint, p_lane bigint, p_epoch bigint, p_job bigint, p_step text, p_key text,
                                      p_result jsonb) RETURNS boolean
LANGUAGE plpgsql SET enable_seqscan = off SET jit = off AS $$
BEGIN
  IF NOT archibald.owns_job(p_worker, p_lane, p_epoch, p_job) THEN
    RETURN false;
  END IF;
  IF p_key IS NULL THEN
    UPDATE archibald.checkpoints c SET state = 'done', result = p_result, epoch = p_epoch, done_at = clock_timestamp()
     WHERE c.job_id = p_job AND c.step = p_step AND c.key IS NULL;
  ELSE
    UPDATE archibald.checkpoints c SET state = 'done', result = p_result, epoch = p_epoch, job_id = p_job, done_at = clock_timestamp()
      FROM archibald.jobs j
     WHERE j.id = p_job AND c.user_id = j.user_id AND c.kind = j.kind AND c.key = p_key AND c.step = p_step;
  END IF;
  RETURN FOUND;
END $$;

-- Forgets the steps of a key, which then may be done anew. Returns how many, or NULL if the job is no longer this worker's.
CREATE OR REPLACE FUNCTION archibald.forget_steps(p_worker bigint, p_lane bigint, p_epoch bigint, p_job bigint, p_key text) RETURNS integer
LANGUAGE plpgsql SET enable_seqscan = off SET jit = off AS $$
DECLARE
  v_count integer;
BEGIN
  IF NOT archibald.owns_job(p_worker, p_lane, p_epoch, p_job) THEN
    RETURN NULL;
  END IF;
  DELETE FROM archibald.checkpoints c USING archibald.jobs j
   WHERE j.id = p_job AND c.user_id = j.user_id AND c.kind = j.kind AND c.key = p_key;
  GET DIAGNOSTICS v_count = ROW_COUNT;
  RETURN v_count;
END $$;

-- Removes up to 500 steps that were begun so many days ago, but not those of a live job. Returns how many.
CREATE OR REPLACE FUNCTION archibald.drop_checkpoints(p_days integer) RETURNS integer
LANGUAGE plpgsql SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off AS $$
DECLARE
  v_count integer;
BEGIN
  DELETE FROM archibald.checkpoints WHERE id = ANY (ARRAY (
    SELECT c.id FROM archibald.checkpoints c
     WHERE c.began_at < now() - make_interval(days => p_days) AND NOT EXISTS (SELECT FROM archibald.jobs j WHERE j.id = c.job_id)
     ORDER BY c.began_at LIMIT 500 FOR UPDATE SKIP LOCKED));
  GET DIAGNOSTICS v_count = ROW_COUNT;
  RETURN v_count;
END $$;

-- A person wants p_job to run again, as p_again, which is the same job or a new one. What it had done stays done. What it had begun, and nobody
-- can look up, is the person's decision: it did not happen. Called by retry_job() only.
CREATE OR REPLACE FUNCTION archibald.steps_of_retry(p_job bigint, p_again bigint) RETURNS void
LANGUAGE plpgsql SET enable_seqscan = off SET jit = off AS $$
BEGIN
  DELETE FROM archibald.checkpoints c WHERE c.job_id = p_job AND c.state = 'begun' AND NOT c.verifiable;
  IF p_again <> p_job THEN
    INSERT INTO archibald.checkpoints (user_id, kind, job_id, step, key, state, verifiable, result, epoch, token, began_at, done_at)
    SELECT c.user_id, c.kind, p_again, c.step, c.key, c.state, c.verifiable, c.result, c.epoch, c.token, c.began_at, c.done_at
      FROM archibald.checkpoints c WHERE c.job_id = p_job AND c.key IS NULL
    ON CONFLICT DO NOTHING;
  END IF;
END $$;
