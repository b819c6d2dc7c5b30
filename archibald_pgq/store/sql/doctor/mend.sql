-- Repairs lanes that contradict their jobs, of those that no live worker is concerned with.
SELECT user_id, fault FROM archibald.mend_lanes(%(look)s, %(limit)s, %(max_losses)s)
