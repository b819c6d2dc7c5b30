-- Jobs that ask for a look: by their lane, one agent's beside the other's, and at the end those that have none, in the order in which they
-- would run. (By lock_key alone, a look read 500 jobs from 500 pages of a long queue.)
DROP INDEX archibald.jobs_wake;
CREATE INDEX jobs_wake ON archibald.jobs (agent_id, (class = 'sync'), priority, id) WHERE wake;
-- A job without a lane is in no lane's queue.
DROP INDEX archibald.jobs_head;
CREATE INDEX jobs_head ON archibald.jobs (agent_id, (class = 'sync'), priority, id) WHERE state = 'queued' AND due AND agent_id IS NOT NULL;
