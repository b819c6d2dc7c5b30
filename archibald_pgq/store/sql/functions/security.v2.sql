-- With whose rights and by whose names the functions run. Every migration that makes or replaces a function ends with this file (or with its
-- next version): CREATE OR REPLACE forgets both.

DO $$
DECLARE
  v_function regprocedure;
  v_role     regrole;
BEGIN
  -- Names mean what pg_catalog has, whatever the caller's search_path is: nobody who can create a function or an operator in another schema
  -- gets it called by a worker, or with the owner's rights. pg_temp is last, for it would be first if it were not named.
  -- Not those that are inlined: lock_key and bucket name the schema of everything in them; next_write is only called by functions that have
  -- a fixed path, and is parsed with theirs.
  FOR v_function IN
    SELECT p.oid FROM pg_proc p
     WHERE p.pronamespace = 'archibald'::regnamespace AND p.proname NOT IN ('lock_key', 'bucket', 'next_write')
  LOOP
    EXECUTE format('ALTER FUNCTION %s SET search_path = pg_catalog, pg_temp', v_function);
  END LOOP;

  -- The doors: what a caller may do without a right on the tables, and what needs the tables' owner (partitions). They run with the owner's
  -- rights, so that not everybody may call them; `archibald-pgq roles` says who does.
  FOR v_function IN
    SELECT p.oid FROM pg_proc p
     WHERE p.pronamespace = 'archibald'::regnamespace
       AND p.proname IN ('jobs_before_insert', 'enqueue', 'enqueue_many', 'expect_agents', 'cancel_job', 'retry_job', 'discard_job', 'pause_agent',
                         'resume_agent', 'try_lock_agent', 'make_history_partitions', 'drop_history_partitions')
  LOOP
    EXECUTE format('ALTER FUNCTION %s SECURITY DEFINER', v_function);
    CONTINUE WHEN NOT EXISTS (SELECT FROM pg_proc p CROSS JOIN aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) AS a
                               WHERE p.oid = v_function AND a.grantee = 0);
    -- Whoever was given rights by hand, and could enqueue until now, goes on.
    FOR v_role IN
      SELECT a.grantee FROM pg_namespace n CROSS JOIN aclexplode(n.nspacl) AS a
       WHERE n.oid = 'archibald'::regnamespace AND a.privilege_type = 'USAGE' AND a.grantee NOT IN (0, n.nspowner)
         AND has_table_privilege(a.grantee, 'archibald.jobs', 'INSERT')
    LOOP
      EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO %s', v_function, v_role);
    END LOOP;
    EXECUTE format('REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC', v_function);
  END LOOP;
END $$;
