-- What keeps dead rows of this database from being removed, the oldest first. Autovacuum's own transactions do not.
SELECT *
  FROM (SELECT 'session' AS sort, a.pid, a.application_name AS name, a.usename::text AS "user", clock_timestamp() - a.xact_start AS open_for,
               a.state, greatest(age(a.backend_xid), age(a.backend_xmin)) AS xids
          FROM pg_stat_activity a
         WHERE (a.datid = (SELECT oid FROM pg_database WHERE datname = current_database()) OR a.datid IS NULL)
           AND a.pid <> pg_backend_pid() AND coalesce(a.backend_xid, a.backend_xmin) IS NOT NULL AND a.backend_type <> 'autovacuum worker'
        UNION ALL
        SELECT 'prepared', NULL, p.gid, p.owner::text, clock_timestamp() - p.prepared, NULL, age(p.transaction)
          FROM pg_prepared_xacts p WHERE p.database = current_database()
        UNION ALL
        SELECT 'slot', s.active_pid, s.slot_name::text, NULL, NULL, CASE WHEN s.active THEN 'in use' ELSE 'not in use' END, age(s.xmin)
          FROM pg_replication_slots s WHERE s.xmin IS NOT NULL) AS holder
 ORDER BY xids DESC, open_for DESC NULLS LAST
 LIMIT 100
