"""The largest batch that memory is known to hold, kept from batch to batch."""

from __future__ import annotations

import datetime
import logging
import time
from collections.abc import Callable
from typing import Any

logger = logging.getLogger(__name__)

FIRST_WAIT_S, LONGEST_WAIT_S = 60.0, 960.0


class MemoryLimit:
    """The largest size of a batch that fits; no limit until a batch has failed for want of memory.

    Whoever took the memory may give it back, so the limit grows again. After FIRST_WAIT_S one batch may be twice as
    large. If it fits, the next may be twice as large as that one, at once. If it fails, the wait is twice as long,
    up to LONGEST_WAIT_S. The limit is gone when a batch fits that is as large as the largest that was cut.

    Args:
        description: the model's. It has the key "memory" while there is a limit.
        unit: what a size counts: "images" or "tokens".
        clock: seconds.
    """

    def __init__(self, description: dict[str, Any], unit: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.description, self.unit, self.clock = description, unit, clock
        self.limit: int | None = None
        self.wanted = 0  # the largest size that was cut
        self.wait_s, self.grows_at = FIRST_WAIT_S, 0.0

    def allowed(self, size: int) -> int:
        """Return how much of a batch of this size may run at once."""
        if self.limit is None:
            return size
        self.wanted = max(self.wanted, size)
        return min(size, 2 * self.limit if self.clock() >= self.grows_at else self.limit)

    def fitted(self, size: int) -> None:
        """Take note that a batch of this size ran."""
        if self.limit is None or size <= self.limit:
            return
        self.limit, self.wait_s = size, FIRST_WAIT_S
        if size < self.wanted:
            self._describe()
            return
        self.limit, self.wanted = None, 0
        self.description.pop("memory", None)
        logger.info("memory holds batches of %d %s again", size, self.unit)

    def failed(self, size: int) -> None:
        """Take note that memory did not suffice for a batch of this size."""
        if self.limit is None:
            logger.warning(
                "memory is short for a batch of %d %s; smaller ones run until it holds such a batch again",
                *(size, self.unit),
            )
        elif size > self.limit:
            self.wait_s = min(2 * self.wait_s, LONGEST_WAIT_S)
        self.wanted = max(self.wanted, size)
        self.limit = (size + 1) // 2
        self.grows_at = self.clock() + self.wait_s
        self._describe()

    def _describe(self) -> None:
        now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        self.description["memory"] = {
            "largestBatch": self.limit,
            "unit": self.unit,
            "why": f"memory was short for {self.wanted} {self.unit} or fewer, last noted at {now}",
        }
