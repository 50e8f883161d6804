"""The door of a front: who may come in, and who is inside. This file imports nothing of Ray.

Fronts of all Rays of a machine take their ports from one range. If a front dies, another Ray's front may get its port
before the HAProxy of the dead one hears of it. So each HAProxy sends a token with its requests, and a front answers
those with its own Ray's token alone. Two Rays never answer for each other, and nobody else reaches the fronts. All
machines of a cluster have one token (node.py).
"""

from __future__ import annotations

import asyncio
import hmac
import os
from collections.abc import Awaitable
from typing import TypeVar

Answer = TypeVar("Answer")
TOKEN = "SERVE_RAY_TOKEN"  # noqa: S105 - the variable that has it; without it, all requests are answered
HEADER = "x-serve-ray-token"


class ClosedError(Exception):
    """The front is ending: it takes this request no more, or gives it no answer any more."""


def is_known(token: str | None) -> bool:
    """Return whether a request with this token comes from the HAProxy of this process's Ray."""
    own = os.environ.get(TOKEN)
    return own is None or hmac.compare_digest((token or "").encode(), own.encode())


class Door:
    """Counts the requests that a front has at hand; after `close`, none is added."""

    def __init__(self) -> None:
        self._inside: set[asyncio.Task[object]] = set()
        self._sent_out: set[asyncio.Task[object]] = set()
        self._is_closed = False

    async def through(self, answer: Awaitable[Answer]) -> Answer:
        """Return what the awaitable returns. Raises ClosedError if the door is closed, or if `clear` is called."""
        task = asyncio.current_task()
        if self._is_closed or task is None:
            _discard(answer)
            raise ClosedError
        self._inside.add(task)
        try:
            return await answer
        except asyncio.CancelledError:
            if task not in self._sent_out:  # the client has gone
                raise
            raise ClosedError from None
        finally:
            self._inside.discard(task)
            self._sent_out.discard(task)

    def close(self) -> int:
        """Let nobody in any more. Returns how many requests are still inside."""
        self._is_closed = True
        return len(self._inside)

    def clear(self) -> None:
        """Send out who is inside: their `through` raises ClosedError."""
        self._is_closed = True
        for task in self._inside - self._sent_out:
            self._sent_out.add(task)
            task.cancel()


def _discard(answer: Awaitable[object]) -> None:
    """Say that nobody will await it; without this, Python warns of it."""
    if asyncio.iscoroutine(answer):
        answer.close()
