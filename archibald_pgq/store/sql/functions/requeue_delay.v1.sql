-- How long a job waits whose agent's lock was taken: 2, 4, 8, 16, 30, 30 … s, by its requeue_count before this requeue.
-- The exponent is capped, not the product: no count overflows. The same as domain/backoff.py; a test holds the two together.
CREATE FUNCTION archibald.requeue_delay(requeue_count integer) RETURNS interval
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
  SELECT least(interval '2 s' * power(2, least(requeue_count, 4)), interval '30 s')
$$;
