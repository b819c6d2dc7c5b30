-- The roles of archibald-pgq in this database. Run it once as a superuser, or as a role with CREATEROLE that owns the schema (or may create
-- it), before or after `archibald-pgq migrate`; again whenever you like: it changes nothing that is so already.
--
--   archibald-pgq roles | archibald-pgq psql -v ON_ERROR_STOP=1
--
-- None of these roles can log in. Give them to your own:
--
--   CREATE ROLE shop LOGIN;           GRANT archibald_enqueuer TO shop;             -- applications that enqueue
--   CREATE ROLE shop_worker LOGIN;    GRANT archibald_worker TO shop_worker;        -- `archibald-pgq run`; one login for all workers
--   CREATE ROLE dashboard LOGIN;      GRANT archibald_inspector TO dashboard;       -- who only looks
--   GRANT archibald_owner TO deployer;                                              -- who runs `archibald-pgq migrate`
--
-- archibald_owner      owns the schema and all that is in it; migrations run with it, whichever of its members starts them
-- archibald_enqueuer   enqueues in every way, sees all jobs with payload and result, cancels jobs, keeps an agent's lock
-- archibald_worker     runs jobs: reads and writes all of the queue, makes and drops days of the history, declares operations, and decides
--                      about jobs and agents (retry, discard, pause, resume)
-- archibald_inspector  reads everything, payloads and results too, and changes nothing

BEGIN;
SET LOCAL search_path = pg_catalog, pg_temp;
SET LOCAL lock_timeout = '5s';         -- a new owner needs each table for a moment

DO $$
DECLARE
  v_role  text;
  v_alter text;
BEGIN
  FOREACH v_role IN ARRAY ARRAY['archibald_owner', 'archibald_enqueuer', 'archibald_worker', 'archibald_inspector'] LOOP
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = v_role) THEN
      EXECUTE format('CREATE ROLE %I NOLOGIN', v_role);
    END IF;
  END LOOP;
  -- Only who could become the owner may give something to it.
  IF NOT (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) AND NOT pg_has_role('archibald_owner', 'USAGE') THEN
    EXECUTE format('GRANT archibald_owner TO %I', current_user);
  END IF;
  IF to_regnamespace('archibald') IS NULL THEN
    CREATE SCHEMA archibald AUTHORIZATION archibald_owner;
  ELSIF (SELECT nspowner <> 'archibald_owner'::regrole FROM pg_namespace WHERE nspname = 'archibald') THEN
    ALTER SCHEMA archibald OWNER TO archibald_owner;
  END IF;
  FOR v_alter IN
    SELECT format('ALTER %s %s OWNER TO archibald_owner', CASE relkind WHEN 'v' THEN 'VIEW' ELSE 'TABLE' END, oid::regclass)
      FROM pg_class
     WHERE relnamespace = 'archibald'::regnamespace AND relkind IN ('r', 'p', 'v') AND relowner <> 'archibald_owner'::regrole
    UNION ALL
    SELECT format('ALTER FUNCTION %s OWNER TO archibald_owner', oid::regprocedure)
      FROM pg_proc WHERE pronamespace = 'archibald'::regnamespace AND proowner <> 'archibald_owner'::regrole
  LOOP
    EXECUTE v_alter;
  END LOOP;
END $$;

