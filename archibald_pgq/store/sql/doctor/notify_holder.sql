-- The session with this pid, which the server named; without one, that with the oldest transaction. The queue of notifications is the
-- server's, so the session may be of any database. Who listens, and how far each has read, is in no view.
SELECT a.pid, a.application_name AS application, a.usename::text AS "user", a.datname::text AS database, a.state,
       CASE WHEN a.state = 'active' THEN a.wait_event_type || ':' || a.wait_event END AS waits,
       clock_timestamp() - a.xact_start AS open_for, %(pid)s::integer IS NOT NULL AS named
  FROM pg_stat_activity a
 WHERE CASE WHEN %(pid)s::integer IS NULL THEN a.xact_start IS NOT NULL AND a.backend_type = 'client backend' AND a.pid <> pg_backend_pid()
            ELSE a.pid = %(pid)s::integer END
 ORDER BY a.xact_start
 LIMIT 1
