"""One model in a process of its own: what a replica of Ray Serve runs."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Sequence
from typing import Any

import ray

from handlers import AsyncModel, HttpRequest, HttpResponse, async_load, cpus
from handlers.hosts.contents import ArchiveError
from handlers.hosts.model import ModelClosedError, ModelLostError
from ray_host import archives
from ray_host.gone import AnswerError, NotLoadedError, ReplicaGoneError
from ray_host.options import ModelOptions

LOST = 3  # exit status of a process whose GPU is lost
GOODBYE_S = 0.5  # for answers that are on their way

logger = logging.getLogger("ray.serve")


class Replica:
    """Answers HTTP requests for one model, several in one run of the network, as AsyncModel batches them.

    AsyncModel is used in place of @serve.batch, so batches are those of every other host: they fill while the network
    runs, and a request that a client gives up is left out.
    """

    async def __init__(self, options: ModelOptions, digest: str, device: str) -> None:  # type: ignore[misc]
        """Load the model, so that Ray Serve awaits it. digest: that it has to have. device: "cpu" or "cuda"."""
        self._digest, self._device = digest, device
        self._is_closing = False
        self._model = await self._load(options, digest)

    async def answer(self, request: HttpRequest) -> HttpResponse:
        """Return the response to one request. Raises ReplicaGoneError: ask another replica."""
        return await self._ask(self._model, request)

    async def _ask(self, model: AsyncModel, request: HttpRequest) -> HttpResponse:
        try:
            return await model.answer(request)
        except ModelClosedError:
            raise ReplicaGoneError("the replica is ending") from None
        except ModelLostError:
            self._end()
            raise ReplicaGoneError("the replica's GPU is lost") from None

    async def answer_all(self, requests: Sequence[HttpRequest]) -> list[HttpResponse | RuntimeError]:
        """Return the response to each request; for one that has none, an error of gone.py."""
        return await asyncio.gather(*map(self._outcome, requests))

    async def _outcome(self, request: HttpRequest) -> HttpResponse | RuntimeError:
        try:
            return await self.answer(request)
        except (ReplicaGoneError, NotLoadedError) as error:
            return error
        except Exception as error:  # its text may hold what a client has sent
            logger.error(f"a request got no answer: {type(error).__name__}")
            return AnswerError(type(error).__name__)

    async def describe(self) -> dict[str, Any]:
        """Return how the model runs and why."""
        return {**self._model.model.describe(), "batchSize": self._model.batch_size, "digest": self._digest}

    async def check_health(self) -> None:
        """Raises RuntimeError if the GPU is lost: Ray Serve then starts another replica."""
        if not self._model.model.is_healthy:
            self._end()
            raise RuntimeError("the replica's GPU is lost")

    async def __del__(self) -> None:
        """Answer what waits, and free the model. Ray Serve awaits this; Python alone could not."""
        if hasattr(self, "_model") and not self._is_closing:
            self._is_closing = True
            await self._model.close()

    async def _load(self, options: ModelOptions, digest: str) -> AsyncModel:
        mar = await asyncio.to_thread(archives.local, options.archive, digest)
        delay_ms = options.max_delay_ms
        try:
            model = await async_load(
                mar,
                batch_size=options.batch_size,
                max_delay_s=None if delay_ms is None else delay_ms / 1e3,
                device=self._device,
                precision=options.precision,
                engine=options.engine,
                settings={**self._threads(), **options.settings},
                name=options.name,
                workers=_sharers(),
                digest=digest,
                edited_settings=options.edited_settings,
                allow_other_version=options.allow_other_version,
            )
        except ArchiveError:
            archives.forget(options.archive, mar)
            raise
        how = model.model.describe()
        logger.info(
            f"{model.model.name}: {how['engine']['name']}, {how['precision']['name']}, {how['device']['name']}"
        )
        return model

    def _threads(self) -> dict[str, int]:
        """Let PyTorch have one thread beside a GPU: Ray sets OMP_NUM_THREADS to the replica's CPUs."""
        return {"cpuThreads": 1} if self._device == "cuda" else {}

    def _end(self) -> None:
        """End this process soon: nothing runs on a lost GPU any more, and Ray Serve starts another replica."""
        if not self._is_closing:
            self._is_closing = True
            logger.error("the GPU is lost; this replica ends, and Ray Serve starts another one")
            asyncio.get_running_loop().call_later(GOODBYE_S, os._exit, LOST)


def _sharers() -> int:
    """How many such replicas would fill this machine, so that PyTorch has a thread per CPU that Ray has set aside."""
    mine = float(ray.get_runtime_context().get_assigned_resources().get("CPU", 0))
    return max(1, int(cpus.usable() // max(1.0, mine)))
