-- Whether workers are well: of the host %(host)s (NULL: of any), or worker %(worker)s. One row for each.
-- Of one host and process id only the newest counts (in a container they stay the same over a restart), and those that said goodbye do not
-- unless that one was asked for.
WITH newest AS (
  SELECT DISTINCT ON (w.host, w.pid) w.* FROM archibald.workers w
   WHERE %(worker)s::bigint IS NULL AND (%(host)s::text IS NULL OR w.host = %(host)s)
   ORDER BY w.host, w.pid, w.id DESC
), wanted AS (
  SELECT * FROM newest WHERE stopped_at IS NULL
   UNION ALL
  SELECT * FROM archibald.workers WHERE id = %(worker)s
)
SELECT w.id, CASE WHEN w.stopped_at IS NOT NULL THEN 'stopped'
                  WHEN w.fenced_at IS NOT NULL THEN 'lost'
                  WHEN w.beat < clock_timestamp() - make_interval(secs => w.lease_s) THEN 'silent'
                  ELSE 'alive' END AS health,
       clock_timestamp() - w.beat AS beat_ago, w.lease_s,
       (SELECT count(*) FROM archibald.agents a WHERE a.worker_id = w.id AND a.state = 'running') AS busy, w.concurrency
  FROM wanted w
 ORDER BY w.id
