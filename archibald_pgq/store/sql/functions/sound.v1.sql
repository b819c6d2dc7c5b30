-- What a job may never be, whoever writes it: the rules that were constraints of the table. They keep their names and their error, so that
-- whoever knows them is told the same. Their conditions stand twice: in the trigger, where Postgres looks at them without calling
-- anything, and here, to say which it was.

CREATE OR REPLACE FUNCTION archibald.refuse_job() RETURNS trigger
LANGUAGE plpgsql AS $$
DECLARE
  v_rule text := CASE
    WHEN NOT char_length(NEW.user_id) BETWEEN 1 AND 200 THEN 'jobs_user_id'
    WHEN NOT NEW.class IN ('write', 'read', 'sync') THEN 'jobs_class'
    WHEN NOT NEW.state IN ('queued', 'running', 'needs_review') THEN 'jobs_state'
    WHEN NOT NEW.wait_reason IN ('delay', 'requeue', 'retry') THEN 'jobs_wait_reason'
    WHEN NOT NEW.priority >= 0 THEN 'jobs_priority'
    WHEN NOT NEW.progress BETWEEN 0 AND 100 THEN 'jobs_progress'
    WHEN NEW.state = 'running' AND (NEW.worker_id IS NULL OR NEW.agent_id IS NULL) THEN 'jobs_running'
    WHEN NOT char_length(NEW.idempotency_key) BETWEEN 1 AND 200 THEN 'jobs_key'
    WHEN NOT jsonb_typeof(NEW.payload) = 'object' THEN 'jobs_payload_object'
    WHEN NOT octet_length(NEW.saved_state::text) <= 65536 THEN 'jobs_saved_state_size'
    ELSE 'jobs_counts' END;
BEGIN
  RAISE EXCEPTION 'new row for relation "jobs" violates check constraint "%"', v_rule
    USING ERRCODE = '23514', SCHEMA = 'archibald', TABLE = 'jobs', CONSTRAINT = v_rule;
END $$;

DROP TRIGGER IF EXISTS jobs_sound ON archibald.jobs;
CREATE TRIGGER jobs_sound BEFORE UPDATE ON archibald.jobs FOR EACH ROW WHEN ((
      char_length(NEW.user_id) BETWEEN 1 AND 200
  AND NEW.class IN ('write', 'read', 'sync')
  AND NEW.state IN ('queued', 'running', 'needs_review')
  AND NEW.wait_reason IN ('delay', 'requeue', 'retry')
  AND NEW.priority >= 0
  AND NEW.progress BETWEEN 0 AND 100
  AND (NEW.state <> 'running' OR NEW.worker_id IS NOT NULL AND NEW.agent_id IS NOT NULL)
  AND char_length(NEW.idempotency_key) BETWEEN 1 AND 200
  AND jsonb_typeof(NEW.payload) = 'object'
  AND octet_length(NEW.saved_state::text) <= 65536
  AND NEW.requeue_count >= 0 AND NEW.losses >= 0 AND NEW.attempt >= 0 AND NEW.max_attempts >= 1 AND NEW.preemptions >= 0
) IS FALSE) EXECUTE FUNCTION archibald.refuse_job();
