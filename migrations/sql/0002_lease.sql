-- Proof of death, and jobs that run alone.

-- The file that a worker keeps locked for its life: who opens it in the same boot of the same machine and finds it free knows that the process
-- has ended. NULL: there is none, the lease decides.
ALTER TABLE archibald.workers
  ADD COLUMN witness_boot text,                  -- the kernel's boot
  ADD COLUMN witness_path text,
  ADD COLUMN witness_file text,                  -- device:inode
  ADD COLUMN max_losses integer NOT NULL DEFAULT 3;   -- a job whose workers died so often fails; the last time it runs alone

-- How often the workers of the lane's head died; a hint like the others.
ALTER TABLE archibald.agents ADD COLUMN head_losses integer NOT NULL DEFAULT 0;
CREATE INDEX agents_solo ON archibald.agents (head_is_sync, head_priority, ready_at) WHERE state = 'ready' AND head_losses > 0;
