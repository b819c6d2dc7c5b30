-- Makes the daily partitions (days in UTC) of the history from today to p_days ahead that are not there yet. Returns their names.
-- Attached with a short lock_timeout: one open reader of the history must not make every settle queue up behind this.
-- A day that cannot be made now is left for the next call and does not keep the others from being made.
CREATE FUNCTION archibald.make_history_partitions(p_days integer) RETURNS SETOF text
LANGUAGE plpgsql SET lock_timeout = '200ms' AS $$
DECLARE
  v_day   date;
  v_name  text;
  v_from  timestamptz;
  v_to    timestamptz;
BEGIN
  IF NOT pg_try_advisory_xact_lock(1095910216, 1000) THEN    -- two workers start at once: one makes them
    RETURN;
  END IF;
  FOR v_day IN SELECT d::date FROM generate_series((now() AT TIME ZONE 'UTC')::date, (now() AT TIME ZONE 'UTC')::date + p_days, '1 day') AS d
  LOOP
    v_name := 'job_history_' || to_char(v_day, 'YYYYMMDD');
    CONTINUE WHEN to_regclass('archibald.' || v_name) IS NOT NULL;
    v_from := v_day::timestamp AT TIME ZONE 'UTC';
    v_to := (v_day + 1)::timestamp AT TIME ZONE 'UTC';
    BEGIN
      EXECUTE format('CREATE TABLE archibald.%I (LIKE archibald.job_history INCLUDING DEFAULTS INCLUDING CONSTRAINTS)', v_name);
      -- Rows of that day may lie in the default partition already: no worker ran for longer than partitions were made ahead, while jobs
      -- were cancelled. Attaching would be refused, that day and every day after it.
      IF EXISTS (SELECT FROM archibald.job_history_default WHERE created_at >= v_from AND created_at < v_to) THEN
        LOCK TABLE archibald.job_history_default IN ACCESS EXCLUSIVE MODE;
        EXECUTE format('WITH moved AS (DELETE FROM archibald.job_history_default WHERE created_at >= %L AND created_at < %L RETURNING *) '
                       'INSERT INTO archibald.%I SELECT * FROM moved', v_from, v_to, v_name);
      END IF;
      EXECUTE format('ALTER TABLE archibald.job_history ATTACH PARTITION archibald.%I FOR VALUES FROM (%L) TO (%L)', v_name, v_from, v_to);
      RETURN NEXT v_name;
    EXCEPTION WHEN lock_not_available OR check_violation THEN
      RAISE WARNING 'archibald: the partition % is not made yet: %', v_name, SQLERRM;
    END;
  END LOOP;
END $$;
