"""The log's lines about refused records: one at a reason's first, then at most one a minute, with how many there were.

Rules: belongs to the parent, which alone sees the counts of all workers, those of the ended included.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping

log = logging.getLogger(__name__)

LINE_S = 60.0


class Rejections:
    def __init__(self) -> None:
        self._told: dict[str, tuple[float, int]] = {}

    def tell(self, rejected: Mapping[str, int], now: float) -> None:
        """Args: rejected: records refused since the start, by reason; now: monotonic seconds, inf at the very end."""
        for reason, count in rejected.items():
            told_at, told = self._told.get(reason, (-math.inf, 0))
            if count > told and now - told_at >= LINE_S:
                self._told[reason] = (now, count)
                # Each reason is an event of its own to the limit of lines.
                message = f"records refused, {reason}: %d"
                log.warning(message, count - told)
