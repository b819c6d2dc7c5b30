-- What the server carries, and how much of it is in use.
SELECT current_setting('max_connections')::integer - current_setting('superuser_reserved_connections')::integer
         - coalesce(current_setting('reserved_connections', true), '0')::integer AS max_connections,
       (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend')::integer AS sessions,
       current_setting('max_locks_per_transaction')::integer
         * (current_setting('max_connections')::integer + current_setting('max_prepared_transactions')::integer) AS lock_places,
       (SELECT count(*) FROM pg_locks WHERE NOT fastpath)::integer AS locks,
       current_setting('track_activities')::boolean AS track_activities
