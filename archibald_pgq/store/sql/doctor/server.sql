-- The server's version, and how full its queue of notifications is.
SELECT current_setting('server_version') AS version, current_setting('server_version_num')::integer AS version_num,
       pg_notification_queue_usage() AS notify_usage
