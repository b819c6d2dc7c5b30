-- Workers that have neither stopped nor were fenced.
SELECT id, host, pid, concurrency, lease_s, max_wait_s, max_preemptions, clock_timestamp() - beat AS beat_ago,
       beat < clock_timestamp() - make_interval(secs => lease_s) AS silent
  FROM archibald.workers
 WHERE fenced_at IS NULL AND stopped_at IS NULL
 ORDER BY id
