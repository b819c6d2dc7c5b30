-- What each agent is doing: the one whose job has run longest first, then the paused, the locked, and those that wait, the longest first.
-- An agent with nothing to do is left out. One whose first job no worker has adopted yet has no lane, only jobs.
WITH work AS (
  SELECT user_id,
         count(*) FILTER (WHERE state = 'queued' AND due) AS waiting,
         count(*) FILTER (WHERE state = 'queued' AND NOT due) AS delayed,
         count(*) FILTER (WHERE state = 'needs_review') AS needs_review,
         min(waiting_since) FILTER (WHERE state = 'queued' AND due) AS waiting_since,
         min(run_after) FILTER (WHERE state = 'queued' AND NOT due) AS due_at
    FROM archibald.jobs
   GROUP BY user_id
), agent AS (
  SELECT coalesce(a.user_id, w.user_id) AS user_id, a.id, a.since, a.paused_until, a.paused_reason,
         coalesce(a.state = 'running', false) AS running,
         coalesce(a.paused_until > now(), false) AS paused,
         CASE WHEN a.retry_at > now() THEN a.retry_at END AS retry_at,
         coalesce(w.waiting, 0) AS waiting, coalesce(w.delayed, 0) AS delayed, coalesce(w.needs_review, 0) AS needs_review,
         w.waiting_since, w.due_at
    FROM work w FULL JOIN archibald.agents a ON a.user_id = w.user_id
   WHERE w.user_id IS NOT NULL OR a.state = 'running' OR a.paused_until > now()
), doing AS (
  SELECT agent.*,
         CASE WHEN running THEN 1 WHEN paused THEN 2 WHEN retry_at IS NOT NULL THEN 3 WHEN waiting > 0 THEN 4 WHEN delayed > 0 THEN 5 ELSE 6 END AS place
    FROM agent
   ORDER BY place, coalesce(since, waiting_since, due_at), user_id
   LIMIT %(limit)s
)
SELECT d.user_id,
       (ARRAY['running', 'paused', 'requeued', 'waiting', 'delayed', 'needs_review'])[d.place] AS doing,
       r.id AS job_id, r.kind, r.progress, r.progress_label, r.worker_id, d.since,
       d.waiting, d.delayed, d.needs_review, d.waiting_since, d.due_at, d.retry_at, d.paused,
       CASE WHEN d.paused AND d.paused_until < '9999-12-30Z' THEN d.paused_until END AS paused_until,
       CASE WHEN d.paused THEN d.paused_reason END AS paused_reason,
       ARRAY (SELECT json_build_object('kind', b.kind, 'until', b.open_until, 'failures', b.failures, 'reason', b.reason)
                FROM archibald.breakers b
               WHERE b.user_id = d.user_id AND b.kind <> '' AND b.open_until > now() ORDER BY b.kind) AS left_alone
  FROM doing d LEFT JOIN archibald.jobs r ON r.agent_id = d.id AND r.state = 'running'
 ORDER BY d.place, coalesce(d.since, d.waiting_since, d.due_at), d.user_id
