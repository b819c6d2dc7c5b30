-- Jobs that could run now, counted to 1001.
SELECT count(*) AS due_jobs FROM (SELECT FROM archibald.jobs WHERE state = 'queued' AND due LIMIT 1001) AS due
