"""Several requests in one call from a front to a replica: a call costs Ray as much CPU time as reading a request."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from handlers.hosts.futures import settle
from handlers.hosts.messages import HttpRequest, HttpResponse

MOST_BYTES = 16 << 20  # of a call with several requests, so that none waits for many large ones

# Sends requests in one call, and returns a response or an error for each. Raises for all of them.
Send = Callable[[Sequence[HttpRequest]], Awaitable[Sequence[Any]]]


class FullError(RuntimeError):
    """More requests wait than may."""


@dataclass(eq=False)
class _Call:
    """Requests that go together, and who waits for each."""

    requests: list[HttpRequest] = field(default_factory=list)
    futures: list[asyncio.Future[HttpResponse]] = field(default_factory=list)
    task: asyncio.Task[None] | None = None

    def give_up(self) -> None:
        """Cancel the call if nobody waits for any of its answers."""
        if self.task is not None and all(future.done() for future in self.futures):
            self.task.cancel()


class Gathering:
    """The requests of one model. A few calls are on their way; what comes meanwhile goes together in the next one.

    No request waits for others: if there is room for a call, it goes at once, with those of the same turn of
    the event loop. One that is given up while it waits is not sent. A call is cancelled if all of its requests are
    given up.

    Args:
        send: see Send.
        per_call: requests in one call, at most.
        calls: on their way, at most.
        most_waiting: requests that wait for a call, at most.
    """

    def __init__(self, send: Send, per_call: int, calls: int, most_waiting: int) -> None:
        self._send, self._per_call, self._most_calls, self._most_waiting = send, per_call, calls, most_waiting
        self._waiting: deque[tuple[HttpRequest, asyncio.Future[HttpResponse]]] = deque()
        self._calls: set[_Call] = set()
        self._is_due = False

    async def ask(self, request: HttpRequest) -> HttpResponse:
        """Return the response. Raises FullError, what `send` raises, and the error that it returns for this one."""
        room = (self._most_calls - len(self._calls)) * self._per_call
        if len(self._waiting) >= self._most_waiting + room:
            raise FullError(f"{len(self._waiting)} requests wait")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[HttpResponse] = loop.create_future()
        self._waiting.append((request, future))
        if not self._is_due and len(self._calls) < self._most_calls:
            self._is_due = True
            loop.call_soon(self._go)
        try:
            return await future
        except asyncio.CancelledError:
            self._give_up(future)
            raise

    def _go(self) -> None:
        """Send what waits, as far as calls are free."""
        self._is_due = False
        while len(self._calls) < self._most_calls and (call := self._next()).requests:
            self._calls.add(call)
            call.task = asyncio.get_running_loop().create_task(self._run(call))

    def _next(self) -> _Call:
        """The next requests that fit into one call; empty if none waits."""
        call, size = _Call(), 0
        while self._waiting and len(call.requests) < self._per_call:
            request, future = self._waiting[0]
            size += _size(request)
            if call.requests and size > MOST_BYTES:
                break
            self._waiting.popleft()
            if not future.done():
                call.requests.append(request)
                call.futures.append(future)
        return call

    async def _run(self, call: _Call) -> None:
        outcomes: Sequence[Any]
        try:
            outcomes = await self._send(call.requests)
        except asyncio.CancelledError:
            outcomes = [asyncio.CancelledError()] * len(call.futures)
        except Exception as error:
            outcomes = [error] * len(call.futures)
        self._calls.discard(call)
        settle(call.futures, outcomes)
        self._go()

    def _give_up(self, future: asyncio.Future[HttpResponse]) -> None:
        future.cancel()
        self._waiting = deque(entry for entry in self._waiting if entry[1] is not future)
        for call in self._calls:
            if future in call.futures:
                call.give_up()


def _size(request: HttpRequest) -> int:
    return len(request.body) + sum(map(len, (request.entries or {}).values()))
