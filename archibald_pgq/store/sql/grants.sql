-- What each role may do: this, and nothing else. A migration repeats it, with what it has made, where archibald_owner owns the schema.
-- The history's partitions and the sequences are in no list: they are reached through their tables.
DO $$
DECLARE
  v_grant text;
BEGIN
  REVOKE ALL ON SCHEMA archibald FROM PUBLIC, archibald_enqueuer, archibald_worker, archibald_inspector;
  REVOKE ALL ON ALL TABLES IN SCHEMA archibald FROM PUBLIC, archibald_enqueuer, archibald_worker, archibald_inspector;
  REVOKE ALL ON ALL SEQUENCES IN SCHEMA archibald FROM PUBLIC, archibald_enqueuer, archibald_worker, archibald_inspector;
  REVOKE ALL ON ALL FUNCTIONS IN SCHEMA archibald FROM PUBLIC, archibald_enqueuer, archibald_worker, archibald_inspector;
  ALTER DEFAULT PRIVILEGES FOR ROLE archibald_owner REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC;
  GRANT USAGE ON SCHEMA archibald TO archibald_enqueuer, archibald_worker, archibald_inspector;
  FOR v_grant IN
    SELECT format('GRANT %s ON archibald.%I TO %I', g.rights, g.name, g.role)
      FROM (VALUES
        -- the columns are those of a caller; RETURNING id needs to read it
        ('archibald_enqueuer',  'jobs',             'INSERT (user_id, kind, payload, idempotency_key, run_after, priority), SELECT (id)'),
        ('archibald_enqueuer',  'all_jobs',         'SELECT'),
        ('archibald_enqueuer',  'schema_revisions', 'SELECT'),
        ('archibald_enqueuer',  'alembic_version',  'SELECT'),
        ('archibald_worker',    'jobs',             'INSERT (user_id, kind, payload, idempotency_key, run_after, priority), SELECT, UPDATE, DELETE'),
        ('archibald_worker',    'agents',           'SELECT, INSERT, UPDATE'),
        ('archibald_worker',    'job_history',      'SELECT, INSERT'),
        ('archibald_worker',    'idempotency_keys', 'SELECT, UPDATE, DELETE'),
        ('archibald_worker',    'operations',       'SELECT, INSERT, UPDATE'),
        ('archibald_worker',    'workers',          'SELECT, INSERT, UPDATE, DELETE'),
        ('archibald_worker',    'breakers',         'SELECT, INSERT, UPDATE, DELETE'),
        ('archibald_worker',    'job_evidence',     'SELECT, INSERT, UPDATE, DELETE'),
        ('archibald_worker',    'checkpoints',      'SELECT, INSERT, UPDATE, DELETE'),
        ('archibald_worker',    'all_jobs',         'SELECT'),
        ('archibald_worker',    'limits',           'SELECT'),
        ('archibald_worker',    'schema_revisions', 'SELECT'),
        ('archibald_worker',    'alembic_version',  'SELECT'),
        ('archibald_inspector', 'jobs',             'SELECT'),
        ('archibald_inspector', 'agents',           'SELECT'),
        ('archibald_inspector', 'job_history',      'SELECT'),
        ('archibald_inspector', 'idempotency_keys', 'SELECT'),
        ('archibald_inspector', 'operations',       'SELECT'),
        ('archibald_inspector', 'workers',          'SELECT'),
        ('archibald_inspector', 'breakers',         'SELECT'),
        ('archibald_inspector', 'job_evidence',     'SELECT'),
        ('archibald_inspector', 'checkpoints',      'SELECT'),
        ('archibald_inspector', 'all_jobs',         'SELECT'),
        ('archibald_inspector', 'limits',           'SELECT'),
        ('archibald_inspector', 'schema_revisions', 'SELECT'),
        ('archibald_inspector', 'alembic_version',  'SELECT')
      ) AS g(role, name, rights)
     WHERE to_regclass(format('archibald.%I', g.name)) IS NOT NULL
    UNION ALL
    SELECT format('GRANT EXECUTE ON FUNCTION %s TO %I', p.oid::regprocedure, r.role)
      FROM pg_proc p CROSS JOIN (VALUES ('archibald_enqueuer'), ('archibald_worker'), ('archibald_inspector')) AS r(role)
     WHERE p.pronamespace = 'archibald'::regnamespace
       AND CASE r.role
             -- an index of jobs is made of lock_key; unlock_agent, which runs with its caller's rights, gives a hint
             WHEN 'archibald_enqueuer' THEN p.proname IN ('enqueue', 'enqueue_many', 'expect_agents', 'cancel_job', 'try_lock_agent', 'unlock_agent', 'hint', 'lock_key')
             -- the parts of an enqueue and of a retry are not for anybody
             WHEN 'archibald_worker' THEN p.proname NOT IN ('jobs_before_insert', 'check_payload', 'refuse_job', 'take_key', 'queued_sync', 'steps_of_retry')
             ELSE p.proname IN ('lock_key', 'bucket', 'requeue_delay', 'odd_lanes') END
  LOOP
    EXECUTE v_grant;
  END LOOP;
END $$;
