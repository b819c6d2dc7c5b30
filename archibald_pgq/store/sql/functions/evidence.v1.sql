-- What failed runs last saw in their browser.

-- Keeps it; of one job the last five.
CREATE OR REPLACE FUNCTION archibald.keep_evidence(p_job bigint, p_attempt integer, p_url text, p_screenshot bytea, p_trace bytea) RETURNS void
LANGUAGE plpgsql SET enable_seqscan = off SET jit = off AS $$
BEGIN
  INSERT INTO archibald.job_evidence (job_id, attempt, url, screenshot, trace) VALUES (p_job, p_attempt, p_url, p_screenshot, p_trace);
  DELETE FROM archibald.job_evidence e
   WHERE e.id = ANY (ARRAY (SELECT o.id FROM archibald.job_evidence o WHERE o.job_id = p_job ORDER BY o.id DESC OFFSET 5));
END $$;

-- Removes up to 100 that were made so many days ago. Returns how many.
CREATE OR REPLACE FUNCTION archibald.drop_evidence(p_days integer) RETURNS integer
LANGUAGE plpgsql SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off AS $$
DECLARE
  v_count integer;
BEGIN
  DELETE FROM archibald.job_evidence WHERE id = ANY (ARRAY (
    SELECT e.id FROM archibald.job_evidence e WHERE e.made_at < now() - make_interval(days => p_days)
     ORDER BY e.made_at LIMIT 100 FOR UPDATE SKIP LOCKED));
  GET DIAGNOSTICS v_count = ROW_COUNT;
  RETURN v_count;
END $$;
