"""What both entries do with a batch: read, run, answer."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Generic, TypeVar

from handlers.loading import Model
from handlers.protocol import unexpected, writer
from handlers.protocol.context import Context
from handlers.protocol.reader import Reader
from handlers.protocol.request import Request, gather
from handlers.serving.metrics import BatchMetrics
from handlers.settings import Settings

S = TypeVar("S", bound=Settings)


class Handler(Generic[S]):
    """The way of a batch through a handler; an entry says how to load, preprocess and postprocess."""

    model: Model[S]
    reader: Reader
    metrics: BatchMetrics

    def handle(self, rows: Sequence[Mapping[str, Any]], context: Context) -> list[bytes]:
        """Answer one batch of TorchServe rows, in order; never raises, unless the process is to end.

        An error that nothing else has caught fails the rows that have no answer yet, and no other.
        """
        started = time.perf_counter()
        batch = self.reader.read(rows, context)
        inputs = 0
        try:
            writer.describe(batch, self.model.description)
            self._prepare(batch)
            inputs = len(gather(batch, "inputs"))
            if inputs:
                self.postprocess(batch)
        except BaseException as error:
            writer.fail(batch, unexpected.failed(error, "answering the batch"))
        answers = writer.write(batch, context)
        try:
            self.metrics.report(batch, inputs, started)
        except BaseException as error:
            unexpected.failed(error, "reporting the batch's metrics")
        return answers

    def _prepare(self, batch: Sequence[Request]) -> None:
        """Preprocess all together; if that fails, each request by itself, so that the culprit fails alone."""
        try:
            self.preprocess(batch)
            return
        except BaseException as error:
            unexpected.failed(error, "preparing the batch's inputs")
        for request in filter(lambda request: request.open, batch):
            request.inputs = []
            try:
                self.preprocess([request])
            except BaseException as error:
                request.error = unexpected.answer(error, "preparing the request's inputs")

    def preprocess(self, batch: Sequence[Request]) -> None:
        """Payloads -> inputs, or an error, for every open request."""
        raise NotImplementedError

    def postprocess(self, batch: Sequence[Request]) -> None:
        """Inputs -> results, or an error, for every open request."""
        raise NotImplementedError
