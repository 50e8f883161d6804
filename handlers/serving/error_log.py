"""One line of the log per request that got an error, by which an operator finds it."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from handlers.protocol.request import Request

logger = logging.getLogger(__name__)


def write(requests: Iterable[Request]) -> None:
    """Log each request's ids and its error's kind. The message stays out: it is in the answer."""
    for request in requests:
        if request.error is not None:
            logger.info("request %s: %d %s", request.ids, request.error.status, type(request.error).__name__)
