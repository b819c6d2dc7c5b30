-- The tables of the queue. Frozen with migration 0001: later changes are later migrations.
-- Lock order of everything that writes here: worker, lane (agents), job, history.

CREATE TABLE archibald.operations (            -- one row per kind: its policy
  kind          text PRIMARY KEY,
  class         text NOT NULL,
  priority      smallint NOT NULL,             -- lower runs first
  timeout_s     double precision NOT NULL,
  max_attempts  integer NOT NULL,
  backoff       text,                          -- wait between attempts: NULL = none
  backoff_s     double precision NOT NULL DEFAULT 0,
  idempotent    boolean NOT NULL DEFAULT false,
  CONSTRAINT operations_kind CHECK (kind ~ '^[a-z0-9][a-z0-9._:-]{0,99}$'),
  CONSTRAINT operations_class CHECK (class IN ('write', 'read', 'sync')),
  CONSTRAINT operations_priority CHECK (priority >= 0),
  CONSTRAINT operations_timeout CHECK (timeout_s > 0 AND timeout_s <= 86400),
  CONSTRAINT operations_attempts CHECK (max_attempts BETWEEN 1 AND 100),
  CONSTRAINT operations_backoff CHECK (backoff IN ('fixed', 'exponential') AND backoff_s BETWEEN 0 AND 3600)
);

CREATE TABLE archibald.workers (               -- one row per daemon process
  id             bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  host           text NOT NULL,
  pid            integer NOT NULL,
  version        text NOT NULL,
  concurrency    integer NOT NULL,
  max_syncs      integer NOT NULL DEFAULT 8,   -- of its consumers, those that syncs may use
  kinds          text[] NOT NULL,              -- the operations that it has handlers for
  lease_s        double precision NOT NULL,
  max_wait_s     double precision NOT NULL DEFAULT 900,   -- a sync that waited longer is no longer overtaken by other agents
  max_preemptions  integer NOT NULL DEFAULT 5, -- so often in a row a sync makes room; its next run is left alone
  started_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
  beat           timestamptz NOT NULL DEFAULT clock_timestamp(),
  fenced_at      timestamptz,                  -- its lanes are given to others; its late writes are refused
  stopped_at     timestamptz,                  -- it said goodbye
  backend_pid    integer,                      -- the connection that holds its agents' locks
  backend_start  timestamptz
) WITH (fillfactor = 50);                      -- a heartbeat a second stays on its page

CREATE TABLE archibald.agents (                -- the lane: one row per agent
  id                  bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  user_id             text NOT NULL,
  lock_key            bigint NOT NULL,         -- the key of its session advisory lock
  state               text NOT NULL DEFAULT 'idle',
  head_kind           text,                    -- hints about the job it would run next, as far as known;
  head_is_sync        boolean NOT NULL DEFAULT false,   -- only archibald.refresh_lanes() writes them
  head_priority       smallint NOT NULL DEFAULT 0,
  head_waiting_since  timestamptz,
  ready_at            timestamptz,             -- its place among the ready lanes; not before
  retry_at            timestamptz,             -- end of a requeue's backoff
  doubt_at            timestamptz,             -- looked empty while an enqueue was in flight: look again then
  doubts              integer NOT NULL DEFAULT 0,
  epoch               bigint NOT NULL DEFAULT 0,   -- fencing number: +1 at every change of owner, never reused
  worker_id           bigint,
  turn_job_ids        bigint[] NOT NULL DEFAULT '{}',
  since               timestamptz,             -- owned since
  preemptable         boolean NOT NULL DEFAULT false,  -- runs a sync that may be asked to make room, and was not asked yet
  preempt_at          timestamptz,             -- it was asked; when the write that waits for it is requeued (again)
  paused_until        timestamptz,
  paused_reason       text,
  CONSTRAINT agents_user_id_key UNIQUE (user_id),
  CONSTRAINT agents_user_id CHECK (char_length(user_id) BETWEEN 1 AND 200),
  CONSTRAINT agents_state CHECK (state IN ('idle', 'ready', 'running')),
  CONSTRAINT agents_owner CHECK ((state = 'running') = (worker_id IS NOT NULL)),
  CONSTRAINT agents_ready CHECK (state <> 'ready' OR ready_at IS NOT NULL)
) WITH (fillfactor = 50);
-- The claim's order. It leads with "head is a sync", so that consumers reserved for people scan no syncs.
CREATE INDEX agents_ready ON archibald.agents (head_is_sync, head_priority, ready_at) WHERE state = 'ready';
-- Syncs that waited too long, whatever their priority.
CREATE INDEX agents_aged ON archibald.agents (head_waiting_since) WHERE state = 'ready' AND head_is_sync;
CREATE INDEX agents_running ON archibald.agents (worker_id) WHERE state = 'running';
CREATE INDEX agents_retry ON archibald.agents (retry_at) WHERE retry_at IS NOT NULL;
CREATE INDEX agents_doubt ON archibald.agents (doubt_at) WHERE doubt_at IS NOT NULL;
CREATE INDEX agents_preempt ON archibald.agents (preempt_at) WHERE preempt_at IS NOT NULL;
CREATE INDEX agents_paused ON archibald.agents (paused_until) WHERE paused_until IS NOT NULL;

CREATE TABLE archibald.jobs (                  -- live jobs only
  id                   bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  agent_id             bigint,                 -- NULL until a worker has adopted a new agent
  user_id              text NOT NULL,
  kind                 text NOT NULL,
  class                text NOT NULL,          -- from the kind's policy, like priority and max_attempts
  state                text NOT NULL DEFAULT 'queued',
  due                  boolean NOT NULL DEFAULT true,    -- false: not before run_after, and out of the lane's sight
  wake                 boolean NOT NULL DEFAULT false,   -- its lane must be looked at; the truth behind NOTIFY
  wait_reason          text,                   -- why run_after is (or was last) later than the enqueue
  priority             smallint NOT NULL,
  run_after            timestamptz NOT NULL DEFAULT clock_timestamp(),
  requeue_count        integer NOT NULL DEFAULT 0,
  losses               integer NOT NULL DEFAULT 0,
  attempt              integer NOT NULL DEFAULT 0,       -- attempts spent
  max_attempts         integer NOT NULL,
  idempotency_key      text,
  payload              jsonb NOT NULL DEFAULT '{}',
  progress             smallint,
  progress_label       text,
  cancel_requested_at  timestamptz,
  worker_id            bigint,
  created_at           timestamptz NOT NULL DEFAULT clock_timestamp(),
  waiting_since        timestamptz NOT NULL DEFAULT clock_timestamp(),  -- first due; never reset by a requeue
  started_at           timestamptz,            -- first start
  last_error           text,
  preempt_requested_at timestamptz,            -- a running sync was asked to make room for a write of its agent
  preempted_by         bigint,                 -- the write that it last made room for
  preemptions          integer NOT NULL DEFAULT 0,       -- in a row
  saved_state          jsonb,                  -- what a sync has reached; its next run finds it
  retried_from         bigint,                 -- the finished job that a person had run again as this one
  CONSTRAINT jobs_user_id CHECK (char_length(user_id) BETWEEN 1 AND 200),
  CONSTRAINT jobs_class CHECK (class IN ('write', 'read', 'sync')),
  CONSTRAINT jobs_state CHECK (state IN ('queued', 'running', 'needs_review')),
  CONSTRAINT jobs_wait_reason CHECK (wait_reason IN ('delay', 'requeue', 'retry')),
  CONSTRAINT jobs_counts CHECK (requeue_count >= 0 AND losses >= 0 AND attempt >= 0 AND max_attempts >= 1 AND preemptions >= 0),
  CONSTRAINT jobs_saved_state_size CHECK (octet_length(saved_state::text) <= 65536),
  CONSTRAINT jobs_key CHECK (char_length(idempotency_key) BETWEEN 1 AND 200),
  CONSTRAINT jobs_payload_object CHECK (jsonb_typeof(payload) = 'object'),
  -- deeper than any reader's stack can be trusted with; the same limit as in Python
  CONSTRAINT jobs_payload_depth CHECK (NOT payload @? '$.**{201 to last}'),
  CONSTRAINT jobs_payload_size CHECK (octet_length(payload::text) <= 1048576),
  CONSTRAINT jobs_priority CHECK (priority >= 0),
  CONSTRAINT jobs_progress CHECK (progress BETWEEN 0 AND 100),
  CONSTRAINT jobs_running CHECK (state <> 'running' OR (worker_id IS NOT NULL AND agent_id IS NOT NULL))
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 1000);
CREATE INDEX jobs_head ON archibald.jobs (agent_id, (class = 'sync'), priority, id) WHERE state = 'queued' AND due;
CREATE INDEX jobs_not_due ON archibald.jobs (run_after) WHERE state = 'queued' AND NOT due;
-- By agent, and by its hash, so that a look can begin anywhere.
CREATE INDEX jobs_wake ON archibald.jobs (archibald.lock_key(user_id), id) WHERE wake;
CREATE INDEX jobs_sync ON archibald.jobs (user_id, kind) WHERE state = 'queued' AND class = 'sync';
CREATE INDEX jobs_of_user ON archibald.jobs (user_id, id);
CREATE INDEX jobs_of_worker ON archibald.jobs (worker_id) WHERE state = 'running';
CREATE INDEX jobs_retried ON archibald.jobs (retried_from) WHERE retried_from IS NOT NULL;
CREATE INDEX jobs_requeued ON archibald.jobs (agent_id) WHERE state = 'queued' AND wait_reason = 'requeue';
-- An assertion, not a lock: two running jobs of one agent cannot be stored.
CREATE UNIQUE INDEX jobs_one_running ON archibald.jobs (agent_id) WHERE state = 'running';

CREATE TABLE archibald.idempotency_keys (      -- it alone decides about duplicates
  user_id         text NOT NULL,
  key             text NOT NULL,
  job_id          bigint NOT NULL,
  job_created_at  timestamptz NOT NULL,        -- finds the job in the right partition of the history
  expires_at      timestamptz NOT NULL,
  PRIMARY KEY (user_id, key)
);
CREATE INDEX idempotency_keys_expiry ON archibald.idempotency_keys (expires_at);

CREATE TABLE archibald.sync_keys (             -- the mutex on which two enqueuers of the same sync meet; workers never touch it
  user_id  text NOT NULL,
  kind     text NOT NULL,
  PRIMARY KEY (user_id, kind)
);

CREATE TABLE archibald.job_history (           -- finished jobs; a settle's DELETE … RETURNING is the only source of a row
  id               bigint NOT NULL,
  agent_id         bigint,
  user_id          text NOT NULL,
  kind             text NOT NULL,
  class            text NOT NULL,
  state            text NOT NULL,
  priority         smallint NOT NULL,
  run_after        timestamptz NOT NULL,
  requeue_count    integer NOT NULL,
  losses           integer NOT NULL,
  attempt          integer NOT NULL,
  max_attempts     integer NOT NULL,
  idempotency_key  text,
  payload          jsonb NOT NULL,
  progress         smallint,
  progress_label   text,
  result           jsonb,
  error            text,
  worker_id        bigint,
  epoch            bigint,
  created_at       timestamptz NOT NULL,
  waiting_since    timestamptz NOT NULL,
  started_at       timestamptz,
  finished_at      timestamptz NOT NULL DEFAULT clock_timestamp(),
  retried_from     bigint,
  preempted_by     bigint,
  preemptions      integer NOT NULL DEFAULT 0,
  CONSTRAINT job_history_pkey PRIMARY KEY (id, created_at),
  CONSTRAINT job_history_state CHECK (state IN ('completed', 'failed', 'cancelled'))
) PARTITION BY RANGE (created_at);             -- by the job's immutable created_at: a key on id alone cannot exist
CREATE INDEX job_history_of_user ON archibald.job_history (user_id, id);
CREATE INDEX job_history_retried ON archibald.job_history (retried_from) WHERE retried_from IS NOT NULL;   -- few rows: costs no settle
CREATE TABLE archibald.job_history_default PARTITION OF archibald.job_history DEFAULT;

CREATE TABLE archibald.schema_revisions (      -- what each migration still serves; `run` reads it
  revision     text PRIMARY KEY,
  oldest_code  text NOT NULL,                  -- the oldest code revision that works on this schema
  applied_at   timestamptz NOT NULL DEFAULT clock_timestamp()
);

CREATE VIEW archibald.all_jobs AS              -- live and finished in one list: the thing to SELECT from when looking
  SELECT id, user_id, kind, class, state, wait_reason, priority, run_after, requeue_count, losses, attempt, max_attempts,
         idempotency_key, payload, progress, progress_label, NULL::jsonb AS result, last_error AS error, worker_id,
         created_at, started_at, NULL::timestamptz AS finished_at, waiting_since, cancel_requested_at, retried_from,
         preempt_requested_at, preempted_by, preemptions
    FROM archibald.jobs
  UNION ALL
  SELECT id, user_id, kind, class, state, NULL, priority, run_after, requeue_count, losses, attempt, max_attempts,
         idempotency_key, payload, progress, progress_label, result, error, worker_id,
         created_at, started_at, finished_at, waiting_since, NULL, retried_from,
         NULL, preempted_by, preemptions
    FROM archibald.job_history;
