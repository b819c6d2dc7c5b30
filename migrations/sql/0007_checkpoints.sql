-- A step of a job whose effect lies outside Postgres: begun before it acts, done with its result after it. What is begun and not done when
-- a later run comes to it may or may not have happened.
CREATE TABLE archibald.checkpoints (
  id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  user_id    text NOT NULL,
  kind       text NOT NULL,
  job_id     bigint NOT NULL,               -- the job that began it last; without a key it is this job's own
  step       text NOT NULL CHECK (char_length(step) BETWEEN 1 AND 200),
  key        text CHECK (char_length(key) BETWEEN 1 AND 200),    -- of an entity of the user and kind, such as an order: for all its jobs
  state      text NOT NULL DEFAULT 'begun' CHECK (state IN ('begun', 'done')),
  verifiable boolean NOT NULL,              -- it can be looked up whether it happened; else a person decides
  result     jsonb CHECK (result IS NULL OR state = 'done'),
  epoch      bigint NOT NULL,               -- of the owner that wrote it last
  token      uuid NOT NULL,                 -- of the call that began it: that call may ask again when the answer was lost
  began_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
  done_at    timestamptz
) WITH (fillfactor = 80);
CREATE UNIQUE INDEX checkpoints_of_job ON archibald.checkpoints (job_id, step) WHERE key IS NULL;
CREATE UNIQUE INDEX checkpoints_of_key ON archibald.checkpoints (user_id, kind, key, step) WHERE key IS NOT NULL;
CREATE INDEX checkpoints_age ON archibald.checkpoints (began_at);
