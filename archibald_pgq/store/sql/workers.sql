-- The workers, those that are alive first, then the newest.
WITH worker AS (
  SELECT w.*,
         CASE WHEN w.stopped_at IS NOT NULL THEN 'stopped'
              WHEN w.fenced_at IS NOT NULL THEN 'lost'
              WHEN w.beat < clock_timestamp() - make_interval(secs => w.lease_s) THEN 'silent'
              ELSE 'alive' END AS health
    FROM archibald.workers w
)
SELECT w.id, w.host, w.pid, w.version, w.health,
       (SELECT count(*) FROM archibald.agents a WHERE a.worker_id = w.id AND a.state = 'running') AS running,
       w.concurrency, w.kinds, w.started_at, w.beat, w.lease_s, w.browsers
  FROM worker w
 ORDER BY w.health IN ('stopped', 'lost'), w.id DESC
 LIMIT %(limit)s
