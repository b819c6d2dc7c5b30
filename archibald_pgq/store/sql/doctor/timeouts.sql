-- Timeouts that a worker does not set for itself: of this role here (as set before this transaction), and of the live workers' roles.
-- lock_timeout and idle_in_transaction_session_timeout are not among them: a worker sets the one, and has no open transactions.
WITH timeout(name) AS (VALUES ('statement_timeout'), ('idle_session_timeout'), ('transaction_timeout')),
worker_role AS (
  SELECT DISTINCT s.usesysid AS role, s.usename
    FROM archibald.workers w JOIN pg_stat_activity s ON s.pid = w.backend_pid
   WHERE w.fenced_at IS NULL AND w.stopped_at IS NULL AND s.usename <> current_user
)
SELECT p.name, p.reset_val || coalesce(p.unit, '') AS value, 'for ' || current_user AS whose
  FROM pg_settings p JOIN timeout t ON t.name = p.name WHERE p.reset_val <> '0'
UNION ALL
SELECT t.name, split_part(c.setting, '=', 2), 'for ' || r.usename
  FROM pg_db_role_setting s JOIN worker_role r ON r.role = s.setrole
 CROSS JOIN LATERAL unnest(s.setconfig) AS c(setting) JOIN timeout t ON c.setting LIKE t.name || '=%%'
 WHERE s.setdatabase IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))
   AND split_part(c.setting, '=', 2) <> '0'
