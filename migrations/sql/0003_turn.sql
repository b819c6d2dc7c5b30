-- After its worker died an agent's jobs run one by one, until one has completed.
ALTER TABLE archibald.agents ADD COLUMN careful boolean NOT NULL DEFAULT false;
