-- Transactions for which others wait that have a table of the queue in use, one row for each; pid NULL: a prepared transaction.
-- An enqueue of a key, of a sync or of an agent that an open transaction enqueued for the first time waits for its commit.
WITH waiting AS MATERIALIZED (
  SELECT a.pid, pg_blocking_pids(a.pid) AS blockers,
         clock_timestamp() - coalesce((SELECT min(w.waitstart) FROM (SELECT (to_jsonb(l) ->> 'waitstart')::timestamptz AS waitstart FROM pg_locks l
                                                                      WHERE l.pid = a.pid AND NOT l.granted) AS w), a.query_start) AS length
    FROM pg_stat_activity a
   WHERE a.datname = current_database() AND a.wait_event_type = 'Lock'
     AND EXISTS (SELECT FROM pg_locks l JOIN pg_class c ON c.oid = l.relation
                  WHERE l.pid = a.pid AND l.locktype = 'relation' AND c.relnamespace = 'archibald'::regnamespace)
)
SELECT nullif(b.pid, 0) AS pid, s.application_name AS application, s.usename::text AS "user", s.state,
       clock_timestamp() - s.xact_start AS open_for,
       count(*)::integer AS waiting, array_agg(w.pid ORDER BY w.length DESC) AS waiting_pids, max(w.length) AS longest
  FROM waiting w CROSS JOIN LATERAL unnest(w.blockers) AS b(pid) LEFT JOIN pg_stat_activity s ON s.pid = b.pid
 WHERE b.pid NOT IN (SELECT pid FROM waiting)      -- it waits itself: what it waits for is named
 GROUP BY b.pid, s.application_name, s.usename, s.state, s.xact_start
