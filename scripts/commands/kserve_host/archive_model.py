"""One archive as KServe's Model."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import kserve
from kserve.metrics import PREDICT_HIST_TIME

from handlers import AsyncModel, HttpRequest, HttpResponse, load_archive
from handlers.protocol.open_inference import metadata


class ArchiveModel(kserve.Model):  # type: ignore[misc, unused-ignore]
    """Is ready from its making on, until its GPU is lost or the server stops.

    Args:
        archive: a .mar, or a folder that one was unpacked into.
        max_waiting: requests that may wait; the next one gets a 503.
        options: of load_archive.

    Raises as load_archive.
    """

    def __init__(self, archive: Path, max_waiting: int, options: Mapping[str, Any]) -> None:
        # PyTorch's number of threads belongs to the thread that sets it: load where the model will run.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")
        loading = functools.partial(load_archive, archive, **options)
        self.model = self._thread.submit(loading).result()
        super().__init__(self.model.name)
        self._max_waiting = max_waiting
        self._batched: AsyncModel | None = None
        self.ready = True

    async def answer(self, request: HttpRequest) -> HttpResponse:
        """Return the response to one request, batched with others. Raises as AsyncModel.answer."""
        with PREDICT_HIST_TIME.labels(self.name).time():
            return await self._in_batches().answer(request)

    async def healthy(self) -> bool:
        """Return whether requests are answered: what KServe's readiness paths tell."""
        return self.ready and self.model.is_healthy

    def get_input_types(self) -> list[dict[str, Any]]:
        """Return the inputs for KServe's metadata."""
        return self._described("inputs")

    def get_output_types(self) -> list[dict[str, Any]]:
        """Return the outputs for KServe's metadata."""
        return self._described("outputs")

    async def close(self) -> None:
        """Answer what waits, and free the model."""
        self.ready = False
        await self._in_batches().close()

    def _in_batches(self) -> AsyncModel:
        """The model for asyncio. It is made by the first request, because it wants a running event loop."""
        if self._batched is None:
            self._batched = AsyncModel(self.model, max_waiting=self._max_waiting, thread=self._thread)
        return self._batched

    def _described(self, which: str) -> list[dict[str, Any]]:
        found: Any = metadata.of("model", self.model.interface)[which]
        return list(found)
