-- Makes the daily partitions (days in UTC) of the history from today to p_days ahead that are not there yet. Returns their names.
-- Attached with a short lock_timeout: one open reader of the history must not make every settle queue up behind this.
CREATE FUNCTION archibald.make_history_partitions(p_days integer) RETURNS SETOF text
LANGUAGE plpgsql SET lock_timeout = '200ms' AS $$
DECLARE
  v_day   date;
  v_name  text;
BEGIN
  PERFORM pg_advisory_xact_lock(1095910216, 1000);    -- two workers start at once
  FOR v_day IN SELECT d::date FROM generate_series((now() AT TIME ZONE 'UTC')::date, (now() AT TIME ZONE 'UTC')::date + p_days, '1 day') AS d
  LOOP
    v_name := 'job_history_' || to_char(v_day, 'YYYYMMDD');
    CONTINUE WHEN to_regclass('archibald.' || v_name) IS NOT NULL;
    EXECUTE format('CREATE TABLE archibald.%I (LIKE archibald.job_history INCLUDING DEFAULTS INCLUDING CONSTRAINTS)', v_name);
    EXECUTE format('ALTER TABLE archibald.job_history ATTACH PARTITION archibald.%I FOR VALUES FROM (%L) TO (%L)', v_name,
                   v_day::timestamp AT TIME ZONE 'UTC', (v_day + 1)::timestamp AT TIME ZONE 'UTC');
    RETURN NEXT v_name;
  END LOOP;
END $$;
