-- What the database allows, whoever asks: one row, changed by the owner.
CREATE TABLE archibald.limits (
  one            boolean PRIMARY KEY DEFAULT true,
  agent_backlog  integer,                      -- queued jobs that an agent may have; NULL: any number
  CONSTRAINT limits_one CHECK (one),
  CONSTRAINT limits_agent_backlog CHECK (agent_backlog >= 1)
);
INSERT INTO archibald.limits DEFAULT VALUES;
