-- Nothing looks for jobs by it: what a worker runs is found by the worker's lanes, and all that runs by jobs_one_running. Each enqueue opened it.
DROP INDEX archibald.jobs_of_worker;
