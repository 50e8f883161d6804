"""Models that share a process: loaded when they are first asked, lent to requests, closed when no request has them.

Ray Serve's cache (`@serve.multiplexed`, ray/serve/multiplex.py of Ray 2.60) decides which models are loaded. It loads
one at a time, and drops the least recently used one before it loads another. This file adds what that cache lacks:

- A load goes on if the request that began it is given up. Others may wait for it, and a load cannot be stopped.
- A model is lent before the cache may drop it again. Else two models that are asked at the same time, with room for
  one, would drop each other before either has answered.
- An archive is checked before room is made for it. If it does not load then, the model that was dropped for it is
  loaded again, and the failure is known for a while. So a broken archive does not drop a model with each request.
- A request waits for a limited time, and a limited number of requests wait.

All of it runs in one event loop. Nothing here needs Ray.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from http import HTTPStatus
from typing import Any

from handlers import AsyncModel, load_errors
from ray_host import heap
from ray_host.gone import NotLoadedError, ReplicaGoneError

KNOWN_S = 60.0  # that a failure to load is known, until the next request tries again
logger = logging.getLogger("ray.serve")


class Held:
    """A loaded model, and how many requests have it."""

    def __init__(self, model: AsyncModel, when_dropped: Callable[[], object]) -> None:
        self.model, self.users = model, 0
        self._when_dropped = when_dropped
        self._unused = asyncio.Event()
        self._unused.set()
        # Ray awaits this when it drops the model. It is the object's and not the class's: Python itself would call
        # the class's, and nobody would await that.
        self.__del__ = self.close

    def take(self, count: int = 1) -> None:
        """Lend the model to so many requests."""
        self.users += count
        if self.users:
            self._unused.clear()

    def give_back(self) -> None:
        """End one of these loans."""
        self.users -= 1
        if not self.users:
            self._unused.set()

    async def close(self) -> None:
        """Free the model as soon as no request has it. Never raises: Ray would fail the next model's load for it."""
        self._when_dropped()
        await self._unused.wait()
        try:
            await self.model.close()
            await asyncio.to_thread(heap.give_back)
        except Exception:
            logger.exception("a model that was dropped could not be closed")


class _Load:
    """A load on its way, and how many requests wait for it."""

    def __init__(self) -> None:
        self.waiting = 0
        self.task: asyncio.Task[Held | Exception]

    def leave(self) -> None:
        """Take back one request that waits no longer."""
        if not self.task.done():
            self.waiting -= 1
        elif isinstance(held := self.task.result(), Held):
            held.give_back()


class Shelf:
    """The models of one process.

    Args:
        check: raises if the archive of a model cannot be loaded, as far as that is seen without loading it.
        fetch: Ray's cache: returns a model, and loads it with `put` if it is not loaded. A call for a model that is
            loaded returns without waiting.
        wait_s: seconds that a request waits for a load.
        most_waiting: requests that wait for loads.
    """

    def __init__(
        self,
        check: Callable[[str], Awaitable[object]],
        fetch: Callable[[str], Awaitable[Held]],
        wait_s: float,
        most_waiting: int,
    ) -> None:
        self._check, self._fetch, self._wait_s, self._most_waiting = check, fetch, wait_s, most_waiting
        self._held: dict[str, Held] = {}
        self._loads: dict[str, _Load] = {}
        self._failed: dict[str, tuple[float, NotLoadedError]] = {}
        self._took_s: dict[str, float] = {}
        self._count: dict[str, int] = {}
        self._dropped: str | None = None  # for the load that is on its way in Ray's cache

    @property
    def models(self) -> list[AsyncModel]:
        """The models that are loaded."""
        return [held.model for held in self._held.values()]

    def put(self, key: str, model: AsyncModel, took_s: float) -> Held:
        """Return a model that was loaded just now, for Ray's cache. took_s: seconds that this took."""
        self._took_s[key], self._count[key] = took_s, self._count.get(key, 0) + 1
        self._dropped = None
        held = self._held[key] = Held(model, lambda: self._drop(key))
        return held

    @contextlib.asynccontextmanager
    async def lent(self, key: str, waited_s: float = 0.0) -> AsyncIterator[AsyncModel]:
        """Lend a model, and load it before if need be.

        Args:
            key: the model's.
            waited_s: seconds that the request has waited already.

        Raises NotLoadedError, and ReplicaGoneError as `fetch`.
        """
        held = await (self._loaded(key) if key in self._held else self._awaited(key, waited_s))
        try:
            yield held.model
        finally:
            held.give_back()

    def state(self, key: str) -> dict[str, Any]:
        """Return how far a model is: "loaded", "loading", "failed" or "not loaded"."""
        told: dict[str, Any] = {"loads": self._count.get(key, 0)}
        if key in self._took_s:
            told["lastLoadTook"] = round(self._took_s[key], 2)
        if held := self._held.get(key):
            return {"state": "loaded", "requests": held.users, **told}
        if load := self._loads.get(key):
            return {"state": "loading", "requests": load.waiting, **told}
        if error := self._failure(key):
            return {"state": "failed", "reason": error.message, **told}
        return {"state": "not loaded", **told}

    def model(self, key: str) -> AsyncModel | None:
        """Return a model if it is loaded. It is not lent, and does not count as used."""
        held = self._held.get(key)
        return held.model if held else None

    def refuse_failed(self, key: str) -> None:
        """Raises NotLoadedError if the model failed to load a short while ago."""
        if error := self._failure(key):
            raise error

    async def close(self) -> None:
        """Wait for the loads on their way, so that Ray's cache has all models that it has to drop."""
        await asyncio.gather(*(load.task for load in self._loads.values()))

    def _drop(self, key: str) -> None:
        del self._held[key]
        self._dropped = key

    async def _loaded(self, key: str) -> Held:
        """A model that is loaded, lent; Ray's cache counts it as used. Nothing is awaited that is not there."""
        held = await self._fetch(key)
        held.take()
        return held

    async def _awaited(self, key: str, waited_s: float) -> Held:
        """A model, lent, after its load. Raises NotLoadedError."""
        self.refuse_failed(key)
        if sum(load.waiting for load in self._loads.values()) >= self._most_waiting:
            raise _unavailable("Busy", "too many requests wait for models to be loaded; try again later")
        load = self._loads.get(key) or self._begin(key)
        load.waiting += 1
        try:
            await asyncio.wait([load.task], timeout=max(0.0, self._wait_s - waited_s))
        except asyncio.CancelledError:
            load.leave()
            raise
        if not load.task.done():
            load.leave()
            message = f"the model is not loaded after {self._wait_s:g} s; loading goes on, try again later"
            raise _unavailable("ModelLoading", message)
        found = load.task.result()
        if isinstance(found, Exception):
            raise found
        return found

    def _begin(self, key: str) -> _Load:
        load = self._loads[key] = _Load()
        load.task = asyncio.get_running_loop().create_task(self._run(key, load))
        return load

    async def _run(self, key: str, load: _Load) -> Held | Exception:
        """Load a model, and lend it to those who wait. Returns the error if it does not load."""
        try:
            if key not in self._count or key in self._failed:
                await self._check(key)
            held = await self._fetched(key)
        except ReplicaGoneError as error:
            return error
        except Exception as error:
            return self._fail(key, error)
        finally:
            del self._loads[key]
        held.take(load.waiting)  # nothing was awaited since Ray's cache has it, so it was not dropped
        return held

    async def _fetched(self, key: str) -> Held:
        """A model from Ray's cache. If it does not load, the dropped one comes back unless others want the room."""
        try:
            return await self._fetch(key)
        except Exception:
            before, self._dropped = self._dropped, None
            if before is not None and self._loads.keys() == {key}:
                self._begin(before)
            raise

    def _fail(self, key: str, error: Exception) -> NotLoadedError:
        reason = str(error) if isinstance(error, load_errors.PLAIN) else type(error).__name__
        logger.error(f"{key} does not load: {load_errors.one_line(error)}")
        told = NotLoadedError(
            HTTPStatus.INTERNAL_SERVER_ERROR,
            "ModelNotLoaded",
            f"the model does not load: {' '.join(reason.split())} (tried again by a request after {KNOWN_S:g} s)",
        )
        self._failed[key] = (time.monotonic() + KNOWN_S, told)
        return told

    def _failure(self, key: str) -> NotLoadedError | None:
        until, error = self._failed.get(key, (0.0, None))
        return error if time.monotonic() < until else None


def _unavailable(kind: str, message: str) -> NotLoadedError:
    return NotLoadedError(HTTPStatus.SERVICE_UNAVAILABLE, kind, message)
