-- For the doctor, and for `archibald-pgq review`: the jobs that need a person, which are few.
CREATE INDEX jobs_review ON archibald.jobs (id) WHERE state = 'needs_review';
