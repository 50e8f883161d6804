"""The door of a front: who is inside, and whether anyone else may come in. This file imports nothing of Ray."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

Answer = TypeVar("Answer")


class ClosedError(Exception):
    """The front is ending: it takes this request no more, or gives it no answer any more."""


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
