-- Tells workers that there is something to look at: 'wake', 'unlock', 'cancel', 'pause', 'preempt', or 'turn' with a lane whose
-- turn should begin no further job. Only a hint: whoever needs it polls too.
-- Not into a queue of notifications that is nearly full, because a NOTIFY that finds it full fails the commit; nor where the caller has
-- switched notifications off, because a transaction that has notified cannot be prepared.
-- Takes no lock before the commit; there, all that notify pass one after the other.
-- In PL/pgSQL, whose statements are parsed once a session, and not once a call as those of SQL functions are.
CREATE OR REPLACE FUNCTION archibald.hint(p_what text) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
  IF coalesce(current_setting('archibald.notify', true), '') <> 'off' AND pg_notification_queue_usage() < 0.9 THEN
    PERFORM pg_notify('archibald', p_what);
  END IF;
END $$;
