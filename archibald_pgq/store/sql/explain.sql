-- What is known about one job and about what it may wait for, in one row; no row for an unknown id. Reads only.
-- Everything is found by index, and what is counted is counted up to 1001, so that it costs the same in a long queue (before the first
-- ANALYZE the planner may read all ready agents by their index). The exceptions are small: the table of workers, and the server's table of
-- locks, which is looked at once.
-- Whoever may not see other people's sessions is told the pid and the application of the one that holds the agent's lock, not from where.
WITH job AS (
  SELECT id, agent_id, user_id, kind, class, state, due, wait_reason, priority, run_after, attempt, max_attempts,
         losses, last_error AS error, worker_id, cancel_requested_at, NULL::timestamptz AS finished_at, xmax AS locker
    FROM archibald.jobs WHERE id = %(job)s
  UNION ALL
  SELECT id, agent_id, user_id, kind, class, state, false, NULL, priority, run_after, attempt, max_attempts,
         losses, error, worker_id, NULL, finished_at, NULL
    FROM archibald.job_history WHERE id = %(job)s
), lane AS (
  SELECT a.*, a.xmax AS locker, coalesce(a.state = 'running', false) AS runs,
         CASE WHEN a.paused_until > now() THEN a.paused_until END AS paused
    FROM job JOIN archibald.agents a ON a.user_id = job.user_id
), able AS (                  -- live workers that handle this kind
  SELECT w.concurrency, w.max_syncs, w.max_losses, r.jobs, r.syncs
    FROM job CROSS JOIN archibald.workers w
   CROSS JOIN LATERAL (SELECT count(*) AS jobs, count(*) FILTER (WHERE j.class = 'sync') AS syncs
                         FROM archibald.jobs j WHERE j.worker_id = w.id AND j.state = 'running') AS r
   WHERE w.fenced_at IS NULL AND w.stopped_at IS NULL AND w.beat > clock_timestamp() - make_interval(secs => w.lease_s)
     AND job.kind = ANY (w.kinds)
), capacity AS (
  SELECT count(*) AS able_workers, coalesce(sum(concurrency), 0) AS consumers, coalesce(sum(max_syncs), 0) AS sync_consumers,
         min(max_losses) AS max_losses,
         count(*) FILTER (WHERE jobs < concurrency) AS free_workers,
         count(*) FILTER (WHERE jobs < concurrency AND syncs < max_syncs) AS free_for_syncs
    FROM able
), held AS (                  -- who has the agent's lock, while no worker runs a job under it
  SELECT l.pid
    FROM pg_locks l
   WHERE l.locktype = 'advisory' AND l.objsubid = 1 AND l.granted
     AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
     AND (l.classid::bigint << 32) | l.objid::bigint = (SELECT archibald.lock_key(job.user_id) FROM job WHERE job.finished_at IS NULL)
     AND NOT EXISTS (SELECT FROM lane WHERE lane.runs)
     -- a worker has it for the moment in which it claims
     AND (NOT EXISTS (SELECT FROM archibald.workers w WHERE w.backend_pid = l.pid AND w.fenced_at IS NULL AND w.stopped_at IS NULL)
          OR EXISTS (SELECT FROM lane WHERE lane.retry_at > now()))
   LIMIT 1
), first AS (                 -- the due job of its agent that goes first
  SELECT f.*
    FROM lane
   CROSS JOIN LATERAL (SELECT j.id, j.kind, j.xmax AS locker FROM archibald.jobs j
                        WHERE j.agent_id = lane.id AND j.state = 'queued' AND j.due
                        ORDER BY (j.class = 'sync'), j.priority, j.id LIMIT 1) AS f
), row_held AS (              -- whose open transaction holds one of the rows that a claim needs, as far as the row names one; no worker's turn
  SELECT l.pid, s.application_name AS application, s.xact_start AS since
    FROM pg_locks l LEFT JOIN pg_stat_activity s ON s.pid = l.pid
   WHERE l.locktype = 'transactionid' AND l.granted AND l.mode = 'ExclusiveLock' AND l.pid IS NOT NULL
     AND l.transactionid IN (SELECT locker FROM job UNION ALL SELECT locker FROM lane UNION ALL SELECT locker FROM first)
     AND NOT EXISTS (SELECT FROM archibald.workers w WHERE w.backend_pid = l.pid AND w.fenced_at IS NULL AND w.stopped_at IS NULL)
   LIMIT 1
)
SELECT clock_timestamp() AS now, job.id, job.user_id, job.kind, job.class AS job_class, job.state, job.due, job.wait_reason, job.run_after,
       job.attempt, job.max_attempts, job.losses, coalesce(capacity.max_losses > 1 AND job.losses >= capacity.max_losses - 1, false) AS runs_alone,
       job.error, job.finished_at, job.cancel_requested_at,
       (SELECT coalesce(
          (SELECT max(j.id) FROM archibald.jobs j WHERE j.retried_from = job.id),
          (SELECT max(h.id) FROM archibald.job_history h WHERE h.retried_from = job.id))
         WHERE job.finished_at IS NOT NULL) AS retried_as,
       lane.id IS NOT NULL AS agent_known,
       coalesce(job.agent_id IS NOT NULL AND lane.state <> 'idle' OR job.id = ANY (lane.turn_job_ids), false) AS looked_at,
       CASE WHEN lane.paused < '9999-12-30Z' THEN lane.paused END AS paused_until,
       lane.paused IS NOT NULL AS paused, CASE WHEN lane.paused IS NOT NULL THEN lane.paused_reason END AS paused_reason,
       lane.ready_at,
       running.id AS running_id, running.kind AS running_kind, running.preempt_requested_at,
       CASE WHEN lane.runs THEN lane.since END AS running_since,
       worker.id AS worker_id, worker.host, worker.pid,
       CASE WHEN worker.beat < clock_timestamp() - make_interval(secs => worker.lease_s) THEN worker.beat END AS silent_since,
       CASE WHEN lane.retry_at > now() THEN lane.retry_at END AS retry_at,
       refused.id AS refused_id, refused.kind AS refused_kind, refused.run_after AS refused_until, refused.requeue_count,
       held.pid AS holder_pid, session.application_name AS holder_application, host(session.client_addr) AS holder_address,
       session.backend_start AS holder_since,
       row_held.pid AS row_holder_pid, row_held.application AS row_holder_application, row_held.since AS row_holder_since,
       first.id AS first_id, first.kind AS first_kind,
       (SELECT count(*)
          FROM (SELECT FROM archibald.jobs j
                 WHERE j.agent_id = lane.id AND j.state = 'queued' AND j.due
                   AND ((j.class = 'sync'), j.priority, j.id) < (job.class = 'sync', job.priority, job.id)
                 ORDER BY (j.class = 'sync'), j.priority, j.id LIMIT 1001) AS b
         WHERE job.state = 'queued') AS jobs_before,
       (SELECT count(*)
          FROM (SELECT a.ready_at FROM archibald.agents a
                 WHERE a.state = 'ready' AND (a.head_is_sync, a.head_priority, a.ready_at) < (lane.head_is_sync, lane.head_priority, lane.ready_at)
                 ORDER BY a.head_is_sync, a.head_priority, a.ready_at LIMIT 1001) AS b
         WHERE lane.state = 'ready' AND b.ready_at <= now()) AS agents_before,
       (SELECT count(*) FROM archibald.workers w
         WHERE w.fenced_at IS NULL AND w.stopped_at IS NULL AND w.beat > clock_timestamp() - make_interval(secs => w.lease_s)) AS live_workers,
       breaker.failures AS breaker_failures, breaker.reason AS breaker_reason, breaker.open_until AS breaker_until,
       capacity.able_workers, capacity.consumers, capacity.sync_consumers, capacity.free_workers, capacity.free_for_syncs
  FROM job
 CROSS JOIN capacity
  LEFT JOIN lane ON true
  LEFT JOIN archibald.jobs running ON running.agent_id = lane.id AND running.state = 'running'
  LEFT JOIN archibald.workers worker ON worker.id = coalesce(lane.worker_id, job.worker_id)
  LEFT JOIN first ON true
  LEFT JOIN LATERAL (SELECT j.id, j.kind, j.requeue_count, j.run_after FROM archibald.jobs j
                      WHERE j.agent_id = lane.id AND j.state = 'queued' AND j.wait_reason = 'requeue' AND j.run_after > now()
                      ORDER BY j.run_after LIMIT 1) AS refused ON true
  LEFT JOIN archibald.breakers breaker
         ON breaker.user_id = job.user_id AND breaker.kind = job.kind AND breaker.open_until > now() AND job.class = 'sync'
  LEFT JOIN held ON true
  LEFT JOIN row_held ON true
  LEFT JOIN pg_stat_activity session ON session.pid = held.pid
