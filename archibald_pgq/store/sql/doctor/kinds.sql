-- Kinds that agents wait with and no live worker handles: by the heads of up to p_limit ready lanes.
SELECT head_kind AS kind, count(*) AS agents
  FROM (SELECT head_kind FROM archibald.agents WHERE state = 'ready' ORDER BY head_is_sync, head_priority, ready_at LIMIT %(limit)s) AS waiting
 WHERE NOT EXISTS (SELECT FROM archibald.workers w
                    WHERE w.fenced_at IS NULL AND w.stopped_at IS NULL
                      AND w.beat > clock_timestamp() - make_interval(secs => w.lease_s) AND waiting.head_kind = ANY (w.kinds))
 GROUP BY head_kind
 ORDER BY count(*) DESC, head_kind
