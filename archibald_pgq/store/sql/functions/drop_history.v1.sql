-- Drops the days of the history that are over: the day (in UTC) ended p_days ago, none of its jobs is live, and the last of them finished
-- p_days ago. Deletes up to 500 rows of the default partition that finished p_days ago. Returns the names of the dropped partitions.
-- Only what archibald.make_history_partitions() made: by its name, and attached for exactly the day of that name.
-- To drop a partition takes ACCESS EXCLUSIVE on the whole history, and whoever settles a job queues up behind that request, while it is
-- held and while it waits. So all rows are read before it. It waits 50 ms at most, a quarter of what a settle waits: one open reader delays
-- the drop until a later call, and no settle fails because of it. Once it is granted nothing waits any more, and after 100 ms (again: what
-- a settle can wait for) the rest is left to the next call. The files are removed after the commit, when the locks are gone.
CREATE FUNCTION archibald.drop_history_partitions(p_days integer) RETURNS SETOF text
LANGUAGE plpgsql SET lock_timeout = '50ms' SET "TimeZone" = 'UTC' SET "DateStyle" = 'ISO' AS $$
DECLARE
  v_cutoff  timestamptz;
  v_name    text;
  v_table   oid;
  v_bounds  text;
  v_day     date;
  v_live    date[];              -- days that have live jobs
  v_needed  boolean;
  v_over    text[] := '{}';
  v_start   timestamptz;
BEGIN
  IF p_days IS NULL OR p_days NOT BETWEEN 1 AND 36500 THEN
    RAISE EXCEPTION 'p_days must be 1 to 36500' USING ERRCODE = 'invalid_parameter_value';
  END IF;
  v_cutoff := now() - make_interval(days => p_days);
  IF NOT pg_try_advisory_xact_lock(1095910216, 1000) THEN    -- the lock of make_history_partitions: one worker at a time
    RETURN;
  END IF;

  BEGIN
    DELETE FROM archibald.job_history_default WHERE ctid = ANY (ARRAY (
      SELECT ctid FROM archibald.job_history_default WHERE finished_at < v_cutoff LIMIT 500 FOR UPDATE SKIP LOCKED));
  EXCEPTION WHEN OTHERS THEN
    RAISE WARNING 'archibald: old jobs in the default partition are not deleted yet: %', SQLERRM;
  END;

  FOR v_name, v_table IN
    SELECT c.relname, c.oid FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
     WHERE i.inhparent = 'archibald.job_history'::regclass AND c.relnamespace = 'archibald'::regnamespace AND c.relkind = 'r'
       AND c.relname ~ '^job_history_\d{8}$' AND c.relname < 'job_history_' || to_char(v_cutoff, 'YYYYMMDD')
     ORDER BY c.relname
  LOOP
    BEGIN
      v_bounds := (SELECT pg_get_expr(relpartbound, oid) FROM pg_class WHERE oid = v_table);    -- waits for whoever locks it
      v_day := substring(v_bounds FROM '(\d{4}-\d\d-\d\d) ')::date;
      CONTINUE WHEN v_name IS DISTINCT FROM 'job_history_' || to_char(v_day, 'YYYYMMDD')
                 OR v_bounds IS DISTINCT FROM format('FOR VALUES FROM (''%s 00:00:00+00'') TO (''%s 00:00:00+00'')', v_day, v_day + 1);
      -- Live jobs first: what is live no more by the later look at the history is in it. That look also keeps the partition from being
      -- detached (by somebody who wants to have it elsewhere) until the end of this call.
      v_live := coalesce(v_live, ARRAY (SELECT DISTINCT created_at::date FROM archibald.jobs WHERE created_at < v_cutoff));
      CONTINUE WHEN v_day = ANY (v_live);
      EXECUTE format('SELECT EXISTS (SELECT FROM archibald.%I WHERE finished_at >= $1)', v_name) INTO v_needed USING v_cutoff;
      IF NOT v_needed THEN
        v_over := v_over || v_name;
        EXIT WHEN cardinality(v_over) = 100;    -- each has locks until the end, and the server's table of locks is bounded
      END IF;
    EXCEPTION WHEN OTHERS THEN
      RAISE WARNING 'archibald: the partition % is not dropped yet: %', v_name, SQLERRM;
    END;
  END LOOP;
  IF v_over = '{}' THEN
    RETURN;
  END IF;

  BEGIN
    LOCK TABLE ONLY archibald.job_history IN ACCESS EXCLUSIVE MODE;
  EXCEPTION WHEN lock_not_available THEN
    RAISE WARNING 'archibald: % is not dropped yet: somebody reads the history', array_to_string(v_over, ', ');
    RETURN;
  END;
  v_start := clock_timestamp();
  FOREACH v_name IN ARRAY v_over LOOP
    BEGIN
      -- also of the default partition, because its bounds change
      EXECUTE format('LOCK TABLE ONLY archibald.%I, ONLY archibald.job_history_default IN ACCESS EXCLUSIVE MODE NOWAIT', v_name);
      EXECUTE format('DROP TABLE archibald.%I', v_name);
      RETURN NEXT v_name;
    EXCEPTION WHEN OTHERS THEN
      RAISE WARNING 'archibald: the partition % is not dropped yet: %', v_name, SQLERRM;
    END;
    EXIT WHEN clock_timestamp() - v_start > interval '100 ms';
  END LOOP;
END $$;
