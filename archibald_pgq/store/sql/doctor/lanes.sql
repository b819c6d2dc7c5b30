-- Lanes that contradict their jobs; one row (fault NULL) with the number of lanes looked at.
SELECT lane, user_id, fault, mendable, worker_id, looked FROM archibald.odd_lanes(%(limit)s)
