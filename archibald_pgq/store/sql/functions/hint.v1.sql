-- Tells workers that there is something to look at: 'wake', 'unlock', 'cancel', 'pause', 'preempt', or 'turn' with a lane whose
-- turn should begin no further job. Only a hint: whoever needs it polls too.
-- Not into a queue of notifications that is nearly full, because a NOTIFY that finds it full fails the commit; nor where the caller has
-- switched notifications off, because a transaction that has notified cannot be prepared.
-- Takes no lock before the commit; there, all that notify pass one after the other.
CREATE FUNCTION archibald.hint(p_what text) RETURNS void
LANGUAGE sql AS $$
  SELECT pg_notify('archibald', p_what)
   WHERE coalesce(current_setting('archibald.notify', true), '') <> 'off' AND pg_notification_queue_usage() < 0.9
$$;
