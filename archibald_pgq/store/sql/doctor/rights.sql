-- What this role lacks of what a worker and an enqueuer need on the tables and functions, by its privileges and not by its name.
-- A right on some columns counts: an enqueuer need not have it on all.
WITH needed (who, thing, has) AS (
  SELECT 'both', 'USAGE of the schema archibald', has_schema_privilege('archibald', 'USAGE')
  UNION ALL
  SELECT n.who, n.privilege || ' on ' || n.relation, CASE n.privilege WHEN 'DELETE' THEN has_table_privilege('archibald.' || n.relation, 'DELETE')
                          ELSE has_any_column_privilege('archibald.' || n.relation, n.privilege) END
    FROM (VALUES ('enqueuer', 'jobs', 'INSERT'), ('worker', 'jobs', 'SELECT'),
                 ('worker', 'workers', 'INSERT'), ('worker', 'workers', 'SELECT'), ('worker', 'workers', 'UPDATE'),
                 ('worker', 'operations', 'SELECT')) AS n(who, relation, privilege)
  UNION ALL
  SELECT n.who, 'EXECUTE of ' || n.name, coalesce((SELECT bool_and(has_function_privilege(p.oid, 'EXECUTE')) FROM pg_proc p
                                                    WHERE p.pronamespace = 'archibald'::regnamespace AND p.proname = n.name), false)
    FROM (VALUES ('enqueuer', 'enqueue'), ('worker', 'turn'), ('worker', 'retake'), ('worker', 'fence_stale_workers'),
                 ('worker', 'end_lost_backends'), ('worker', 'release_fenced_lanes'), ('worker', 'preempt_requests'),
                 ('worker', 'make_history_partitions'), ('worker', 'drop_history_partitions')) AS n(who, name)
  UNION ALL
  -- functions that run with the caller's own rights need these on the tables
  SELECT n.who, n.privilege || ' on ' || n.relation, CASE n.privilege WHEN 'DELETE' THEN has_table_privilege('archibald.' || n.relation, 'DELETE')
                          ELSE has_any_column_privilege('archibald.' || n.relation, n.privilege) END
    FROM (VALUES ('enqueuer', 'jobs_before_insert', 'agents', 'SELECT'), ('enqueuer', 'jobs_before_insert', 'operations', 'SELECT'),
                 ('enqueuer', 'jobs_before_insert', 'idempotency_keys', 'INSERT'),
                 ('enqueuer', 'jobs_before_insert', 'idempotency_keys', 'UPDATE'),
                 ('enqueuer', 'jobs_before_insert', 'sync_keys', 'INSERT'),
                 ('worker', 'turn', 'agents', 'INSERT'), ('worker', 'turn', 'agents', 'UPDATE'), ('worker', 'turn', 'jobs', 'UPDATE'),
                 ('worker', 'turn', 'jobs', 'DELETE'), ('worker', 'turn', 'job_history', 'INSERT')) AS n(who, name, relation, privilege)
   WHERE NOT coalesce((SELECT bool_and(p.prosecdef) FROM pg_proc p
                        WHERE p.pronamespace = 'archibald'::regnamespace AND p.proname = n.name), false)
)
SELECT current_user::text AS role,
       ARRAY (SELECT thing FROM needed WHERE who IN ('both', 'worker') AND NOT has) AS worker_lacks,
       ARRAY (SELECT thing FROM needed WHERE who IN ('both', 'enqueuer') AND NOT has) AS enqueuer_lacks,
       pg_has_role('pg_read_all_stats', 'USAGE') AS sees_sessions
