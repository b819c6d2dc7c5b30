-- Repairs lanes that contradict their jobs, of those that no live worker is concerned with; one row (fault NULL) with where to go on.
SELECT user_id, fault, next FROM archibald.mend_lanes(%(start)s, %(look)s, %(limit)s, %(max_losses)s)
