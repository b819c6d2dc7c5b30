-- What the browsers of a worker are doing, said with its heartbeat; NULL for a worker without browsers.
ALTER TABLE archibald.workers ADD COLUMN browsers jsonb;
