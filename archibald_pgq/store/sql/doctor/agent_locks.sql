-- Sessions that hold an agent's lock and are not the worker of its lane. A worker has the lock for a moment before its lane says so.
-- Where such a lock is held at all, agents are read once; pg_locks is looked at once.
WITH held AS MATERIALIZED (
  SELECT l.pid, (l.classid::bigint << 32) | l.objid::bigint AS key
    FROM pg_locks l
   WHERE l.locktype = 'advisory' AND l.objsubid = 1 AND l.granted AND l.pid <> pg_backend_pid()
     AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
), worker AS MATERIALIZED (
  SELECT w.id, w.backend_pid FROM archibald.workers w WHERE w.stopped_at IS NULL AND w.fenced_at IS NULL
), foreign_lock AS MATERIALIZED (
  SELECT h.pid, a.user_id, a.state = 'running' AS runs
    FROM held h JOIN archibald.agents a ON a.lock_key = h.key
   WHERE CASE WHEN a.state = 'running'
              THEN NOT EXISTS (SELECT FROM archibald.workers w WHERE w.id = a.worker_id AND w.backend_pid = h.pid)
              ELSE NOT EXISTS (SELECT FROM worker w WHERE w.backend_pid = h.pid) OR a.retry_at > now() END
   LIMIT 1000
)
SELECT f.user_id, f.pid, s.application_name AS application, host(s.client_addr) AS address,
       clock_timestamp() - s.backend_start AS connected_for, f.runs
  FROM foreign_lock f LEFT JOIN pg_stat_activity s ON s.pid = f.pid
 ORDER BY s.backend_start, f.user_id
