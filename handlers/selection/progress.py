"""Tells whoever waits for a load what is being measured. Packaging and scripts/predict show it at the terminal."""

from __future__ import annotations

import logging

logger = logging.getLogger(__name__)


def tell(what: str, number: int, count: int) -> None:
    """Log that item `number` of at most `count` begins."""
    logger.info("%s, %d of %d", what, number, count)
