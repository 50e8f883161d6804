"""What both entries do with a batch: read, run, answer."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Generic, TypeVar

from handlers import requests
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
        """Answer one batch of TorchServe rows, in order; never raises for what a client sent."""
        started = time.perf_counter()
        batch = self.reader.read(rows, context)
        requests.describe(batch, self.model.description)
        self.preprocess(batch)
        inputs = len(requests.gather(batch, "inputs"))
        if inputs:
            self.postprocess(batch)
        answers = requests.write(batch, context)
        self.metrics.report(batch, inputs, started)
        return answers

    def preprocess(self, batch: Sequence[requests.Request]) -> None:
        """Payloads -> inputs, or an error, for every open request."""
        raise NotImplementedError

    def postprocess(self, batch: Sequence[requests.Request]) -> None:
        """Inputs -> results, or an error, for every open request."""
        raise NotImplementedError
