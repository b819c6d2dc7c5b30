-- Jobs that need a person and began over p_days ago, counted to 1001.
SELECT count(*) AS jobs, (array_agg(id ORDER BY began, id))[1] AS oldest_id, clock_timestamp() - min(began) AS oldest_for
  FROM (SELECT id, coalesce(started_at, created_at) AS began FROM archibald.jobs WHERE state = 'needs_review' ORDER BY id LIMIT 1001) AS waiting
 WHERE began < now() - %(review)s
