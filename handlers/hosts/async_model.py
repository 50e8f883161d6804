"""A loaded archive for asyncio: concurrent calls are answered together, up to the archive's batch size.

The batching is own code, because no library fits (November 2026). async-batcher 0.2.2, of February 2025, never
answers some neighbours of a call that was cancelled: it sets a result on the cancelled future, and the error ends its
loop over the others. batched 0.1.5, of July 2025, has no way to close it so that waiting calls are answered. aiobatch
is a development release of 2024. LitServe and mosec are servers, and bring their own HTTP. A host with dynamic
batching of its own, as Triton, uses that, and calls Model.run. Ray Serve's replicas use this class.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, TypeVar, cast

from handlers.hosts.futures import settle
from handlers.hosts.loading import load_archive
from handlers.hosts.messages import HttpRequest, HttpResponse
from handlers.hosts.model import Call, Model, ModelClosedError, Result, without_errors

T = TypeVar("T")


class BusyError(RuntimeError):
    """More calls wait than max_waiting allows: try again later. An HTTP host answers 503."""


async def async_load(
    path: str | os.PathLike[str],
    *,
    batch_size: int | None = None,
    max_delay_s: float | None = None,
    max_waiting: int | None = None,
    **options: Any,
) -> AsyncModel:
    """Load an archive in a thread of its own, and return its model.

    Args:
        batch_size, max_delay_s, max_waiting: see AsyncModel.
        options: of load_archive, by name.

    Raises as load_archive.
    """
    thread = _thread()
    try:
        model = await _in(thread, functools.partial(load_archive, path, **options))
    except BaseException:
        thread.shutdown(wait=False)
        raise
    return AsyncModel(model, batch_size=batch_size, max_delay_s=max_delay_s, max_waiting=max_waiting, thread=thread)


class AsyncModel:
    """Batches the calls of one event loop. One worker thread runs the model, so nothing else of the loop waits.

    A worker that is free takes the first call that waits, and others for at most max_delay_s after it, as TorchServe
    does. A call that fails, or is cancelled, does not touch those that are answered with it.

    Args:
        model: is closed with this object.
        batch_size: calls that are answered together, at most; None for the archive's batchSize.
        max_delay_s: seconds that the first of them waits for others; None for the archive's maxBatchDelay.
        max_waiting: calls that may wait before the next one gets a BusyError; None for any number.
        thread: that the model was loaded in; a new one by default.
    """

    def __init__(
        self,
        model: Model,
        *,
        batch_size: int | None = None,
        max_delay_s: float | None = None,
        max_waiting: int | None = None,
        thread: ThreadPoolExecutor | None = None,
    ) -> None:
        self.model, self._thread = model, thread or _thread()
        self.batch_size = model.batch_size if batch_size is None else batch_size
        self.max_delay_s = model.max_delay_s if max_delay_s is None else max_delay_s
        self.max_waiting = max_waiting
        if self.batch_size < 1 or self.max_delay_s < 0:
            raise ValueError("batch_size wants a number from 1, and max_delay_s one from 0")
        self._waiting: deque[tuple[Call, asyncio.Future[Result]]] = deque()
        self._came = asyncio.Event()
        self._is_closing = False
        self._closing: asyncio.Task[None] | None = None
        self._worker = asyncio.get_running_loop().create_task(self._work())

    async def predict(self, inputs: Sequence[object], *, return_errors: bool = False, **options: object) -> list[Any]:
        """Return one answer per input, in order; see Model.predict. Raises as that, and BusyError."""
        calls = self.model.calls_of(inputs, options)
        answers: list[Any] = []
        for mine in await self._all(calls):
            answers += cast("list[Any]", mine)
        return answers if return_errors else without_errors(answers)

    async def answer(self, request: HttpRequest) -> HttpResponse:
        """Return the response to one HTTP request, also if it is an error. Raises BusyError, and as Model.run."""
        (response,) = await self._all([request])
        return cast("HttpResponse", response)

    @property
    def waiting(self) -> int:
        """Calls that wait for their batch."""
        return len(self._waiting)

    async def close(self) -> None:
        """Take no more calls, answer those that wait, and free the model. May be called twice, also at once."""
        self._is_closing = True
        self._came.set()
        if self._closing is None:
            self._closing = asyncio.get_running_loop().create_task(self._close())
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        await asyncio.wait([self._worker])
        await _in(self._thread, self.model.close)
        self._thread.shutdown(wait=False)

    async def __aenter__(self) -> AsyncModel:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _all(self, calls: Sequence[Call]) -> list[Result]:
        """The results of calls that belong together; if one fails or is given up, all are."""
        if self._is_closing:
            raise ModelClosedError(f"{self.model.name} is closed")
        if self.max_waiting is not None and len(self._waiting) + len(calls) > self.max_waiting:
            raise BusyError(f"{len(self._waiting)} calls wait for {self.model.name}, the most are {self.max_waiting}")
        futures: list[asyncio.Future[Result]] = [asyncio.get_running_loop().create_future() for _ in calls]
        self._waiting += zip(map(_stamped, calls), futures, strict=True)
        self._came.set()
        try:
            return await asyncio.gather(*futures)
        finally:
            for future in futures:
                future.cancel()

    async def _work(self) -> None:
        """Answer batch after batch, until the model is closed and nothing waits."""
        while batch := await self._next():
            calls, futures = [call for call, _ in batch], [future for _, future in batch]
            try:
                results: Sequence[Any] = await _in(self._thread, functools.partial(self.model.run, calls))
            except asyncio.CancelledError:  # the loop ends
                settle(futures, [asyncio.CancelledError()] * len(futures))
                raise
            except BaseException as error:
                results = [error] * len(futures)
            settle(futures, results)

    async def _next(self) -> list[tuple[Call, asyncio.Future[Result]]]:
        """The next batch, without calls that were given up; empty if there will be none."""
        await self._until_full(1, None)
        await self._until_full(self.batch_size, asyncio.get_running_loop().time() + self.max_delay_s)
        return [self._waiting.popleft() for _ in range(min(self.batch_size, len(self._waiting)))]

    async def _until_full(self, size: int, deadline: float | None) -> None:
        """Wait until so many calls wait, until the deadline (by the loop's clock), or until the model is closing."""
        while True:
            self._drop_given_up()
            if len(self._waiting) >= size or self._is_closing:
                return
            self._came.clear()
            left = None if deadline is None else deadline - asyncio.get_running_loop().time()
            if left is not None and left <= 0:
                return
            try:
                await asyncio.wait_for(self._came.wait(), left)
            except asyncio.TimeoutError:
                return

    def _drop_given_up(self) -> None:
        if any(future.done() for _, future in self._waiting):
            self._waiting = deque((call, future) for call, future in self._waiting if not future.done())


def _stamped(call: Call) -> Call:
    """The call with the time of its arrival, which is now unless the host has said it."""
    return call if call.arrived is not None else dataclasses.replace(call, arrived=time.time())


def _thread() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, thread_name_prefix="model")


async def _in(thread: ThreadPoolExecutor, work: Callable[[], T]) -> T:
    return await asyncio.get_running_loop().run_in_executor(thread, work)
