-- The days that the history has a partition for (by name: to look into them would be to read them), and today in UTC.
SELECT (now() AT TIME ZONE 'UTC')::date AS today,
       ARRAY (SELECT to_date(right(c.relname, 8), 'YYYYMMDD')
                FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
               WHERE i.inhparent = 'archibald.job_history'::regclass AND c.relname ~ '^job_history_\d{8}$' ORDER BY 1) AS days
