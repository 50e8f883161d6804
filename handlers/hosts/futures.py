"""Results of a batch -> the futures of those who wait for them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any


def settle(futures: Sequence[asyncio.Future[Any]], results: Sequence[Any]) -> None:
    """Give each future its result or its error, except those that were given up meanwhile."""
    for future, result in zip(futures, results, strict=True):
        if future.done():
            continue
        if isinstance(result, asyncio.CancelledError):
            future.cancel()
        elif isinstance(result, BaseException):
            future.set_exception(result)
        else:
            future.set_result(result)
