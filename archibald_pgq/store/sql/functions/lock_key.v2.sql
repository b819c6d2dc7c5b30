-- Neither has a fixed search_path: it would keep them from being inlined, in an index and in every turn. So each name and operator says its
-- schema, and the types fit exactly: whoever may create operators elsewhere gets none of them called.

-- The key of an agent's session advisory lock. The seed is this schema's, so that other programs' keys do not meet ours.
CREATE OR REPLACE FUNCTION archibald.lock_key(user_id text) RETURNS bigint
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
  SELECT pg_catalog.hashtextextended(user_id, 7310310224816103::pg_catalog.int8)
$$;

-- The bucket (one of 256) of that key. An enqueue holds its bucket shared until it commits; who wants to call a lane empty needs the
-- bucket exclusively. Buckets, because a lock per agent would let one transaction for 10,000 agents fill the server's lock table.
CREATE OR REPLACE FUNCTION archibald.bucket(lock_key bigint) RETURNS integer
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
  SELECT (lock_key OPERATOR(pg_catalog.&) 255::pg_catalog.int8)::pg_catalog.int4
$$;
