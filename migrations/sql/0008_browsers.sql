-- What a failed run that drove a browser last saw. Bounded by the worker, removed with the history.
CREATE TABLE archibald.job_evidence (
  id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  job_id      bigint NOT NULL,
  attempt     integer NOT NULL,
  made_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
  url         text,
  screenshot  bytea,          -- PNG
  trace       bytea           -- Playwright's, a ZIP
);
CREATE INDEX job_evidence_of_job ON archibald.job_evidence (job_id);
CREATE INDEX job_evidence_age ON archibald.job_evidence (made_at);
-- What keeps failing is left alone for a while: an agent whose ERP cannot be reached, a sync of an agent that fails. A row is a failure that has
-- not been followed by a success.
CREATE TABLE archibald.breakers (
  user_id    text NOT NULL,
  kind       text NOT NULL DEFAULT '',       -- of the sync; empty: the agent's own
  failures   integer NOT NULL,               -- in a row
  reason     text NOT NULL,                  -- of the last one
  failed_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
  open_until timestamptz,                    -- nothing is tried before
  PRIMARY KEY (user_id, kind)
) WITH (fillfactor = 80);
