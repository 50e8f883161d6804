"""What both entries do with a batch: read, run, answer."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Generic, TypeVar

from handlers import guard, requests
from handlers.loading import Model
from handlers.metrics import BatchMetrics
from handlers.settings import Settings

S = TypeVar("S", bound=Settings)


class Handler(Generic[S]):
    """The way of a batch through a handler; an entry says how to load, preprocess and postprocess."""

    model: Model[S]
    reader: requests.Reader
    metrics: BatchMetrics

    def handle(self, rows: Sequence[Mapping[str, Any]], context: requests.Context) -> list[bytes]:
        """Answer one batch of TorchServe rows, in order; never raises, unless the process is to end.

        An error that nothing else has caught fails the rows that have no answer yet, and no other.
        """
        started = time.perf_counter()
        batch = self.reader.read(rows, context)
        inputs = 0
        try:
            requests.describe(batch, self.model.description)
            self._prepare(batch)
            inputs = len(requests.gather(batch, "inputs"))
            if inputs:
                self.postprocess(batch)
        except BaseException as error:
            requests.fail(batch, guard.failed(error, "answering the batch"))
        answers = requests.write(batch, context)
        try:
            self.metrics.report(batch, inputs, started)
        except BaseException as error:
            guard.failed(error, "reporting the batch's metrics")
        return answers

    def _prepare(self, batch: Sequence[requests.Request]) -> None:
        """Preprocess all together; if that fails, each request by itself, so that the culprit fails alone."""
        try:
            self.preprocess(batch)
            return
        except BaseException as error:
            guard.failed(error, "preparing the batch's inputs")
        for request in filter(lambda request: request.open, batch):
            request.inputs = []
            try:
                self.preprocess([request])
            except BaseException as error:
                request.error = guard.answer(error, "preparing the request's inputs")

    def preprocess(self, batch: Sequence[requests.Request]) -> None:
        """Payloads -> inputs, or an error, for every open request."""
        raise NotImplementedError

    def postprocess(self, batch: Sequence[requests.Request]) -> None:
        """Inputs -> results, or an error, for every open request."""
        raise NotImplementedError
