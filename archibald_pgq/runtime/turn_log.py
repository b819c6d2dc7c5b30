"""What the log says of a turn."""

from __future__ import annotations

import logging

from archibald_pgq.store.turn import Turn

logger = logging.getLogger(__name__)


def say(turn: Turn) -> None:
    """Say which jobs were requeued, and which lanes contradict their jobs."""
    for requeued in turn.requeued:
        logger.info(
            "Re-enqueueing %s for %s (attempt %d, delay %dms)",
            requeued.kind,
            requeued.user_id,
            requeued.requeue_count,
            round(requeued.delay * 1000),
        )
    for user_id in turn.contradictions:
        logger.error("the lane of %s is ready while a job of it is marked running; it is set aside for 30 s", user_id)
