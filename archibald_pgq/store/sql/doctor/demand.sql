-- Jobs that could run now, counted to 1001: those with a lane, and those that wait for one.
SELECT count(*) AS due_jobs
  FROM ((SELECT FROM archibald.jobs WHERE state = 'queued' AND due AND agent_id IS NOT NULL LIMIT 1001)
        UNION ALL
        (SELECT FROM archibald.jobs WHERE state = 'queued' AND due AND wake AND agent_id IS NULL LIMIT 1001)
        LIMIT 1001) AS due
