-- How many jobs of each class there are of each sort; finished ones as far back as the history goes.
WITH live AS (
  SELECT class,
         count(*) FILTER (WHERE state = 'queued' AND due AND wait_reason IS DISTINCT FROM 'requeue') AS waiting,
         count(*) FILTER (WHERE state = 'running') AS active,
         count(*) FILTER (WHERE state = 'queued' AND NOT due) AS delayed,
         count(*) FILTER (WHERE state = 'queued' AND wait_reason = 'requeue') AS requeued,
         count(*) FILTER (WHERE state = 'needs_review') AS needs_review
    FROM archibald.jobs
   GROUP BY class
), ended AS (
  SELECT class,
         count(*) FILTER (WHERE state = 'completed') AS completed,
         count(*) FILTER (WHERE state = 'failed') AS failed,
         count(*) FILTER (WHERE state = 'cancelled') AS cancelled
    FROM archibald.job_history
   GROUP BY class
)
SELECT c.class AS job_class, coalesce(waiting, 0) AS waiting, coalesce(active, 0) AS active, coalesce(delayed, 0) AS delayed,
       coalesce(requeued, 0) AS requeued, coalesce(needs_review, 0) AS needs_review,
       coalesce(completed, 0) AS completed, coalesce(failed, 0) AS failed, coalesce(cancelled, 0) AS cancelled
  FROM (VALUES (1, 'write'), (2, 'read'), (3, 'sync')) AS c(place, class)
  LEFT JOIN live ON live.class = c.class
  LEFT JOIN ended ON ended.class = c.class
 ORDER BY c.place
