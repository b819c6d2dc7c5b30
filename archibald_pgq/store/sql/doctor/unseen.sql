-- Jobs that ask for a look, counted to 1001, and how long the longest of these has asked.
SELECT count(*) AS jobs, coalesce(max(clock_timestamp() - greatest(created_at, run_after)), interval '0') AS longest
  FROM (SELECT created_at, run_after FROM archibald.jobs WHERE wake ORDER BY agent_id, (class = 'sync'), priority, id LIMIT 1001) AS asking
