"""The way of a batch through a handler: read, prepare, run, answer, write."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Generic, TypeVar

from handlers.loading import Model
from handlers.protocol import internal_errors, writer
from handlers.protocol.context import Context
from handlers.protocol.reader import Reader
from handlers.protocol.request import Request
from handlers.serving.inputs import Inputs, Options, inputs_of, joined
from handlers.serving.isolation import run_isolated
from handlers.serving.metrics import BatchMetrics
from handlers.settings import Settings

S = TypeVar("S", bound=Settings)
I = TypeVar("I")  # noqa: E741 - an input, as the network takes it


class Handler(ABC, Generic[S, I]):
    """What both entries share. An entry prepares inputs, runs the network, and makes answers of its outputs."""

    model: Model[S]
    reader: Reader
    metrics: BatchMetrics

    def handle(self, rows: Sequence[Mapping[str, Any]], context: Context) -> list[bytes]:
        """Answer one batch of TorchServe's rows, in order; never raises, unless the process is to end."""
        started = time.perf_counter()
        requests = self.reader.read(rows, context)
        ran = self.complete(requests)
        bodies = writer.write(requests, context)
        self.report(requests, ran, started)
        return bodies

    def complete(self, requests: Sequence[Request]) -> int:
        """Give each request its answers or its error, and return how many inputs ran.

        An error that nothing else has caught fails only the requests that have no answer yet.
        """
        prepared: Inputs[I] = Inputs([], [])
        try:
            prepared = self._prepared(requests)
            if len(prepared):
                self.answer(prepared)
        except BaseException as error:
            writer.fail(requests, internal_errors.log_failure(error, "answering the batch"))
        return len(prepared)

    def report(self, requests: Sequence[Request], ran: int, started: float) -> None:
        """Report the batch's metrics; what fails there fails no request. ran, started: as BatchMetrics.report."""
        try:
            self.metrics.report(requests, ran, started)
        except BaseException as error:
            internal_errors.log_failure(error, "reporting the batch's metrics")

    def _prepared(self, requests: Sequence[Request]) -> Inputs[I]:
        """Prepare all together; if that fails, each request by itself, so that the culprit fails alone."""
        try:
            return self.prepare(inputs_of(requests))
        except BaseException as error:
            internal_errors.log_failure(error, "preparing the batch's inputs")
        parts = []
        for request in filter(lambda request: request.is_waiting, requests):
            try:
                parts.append(self.prepare(inputs_of([request])))
            except BaseException as error:
                request.error = internal_errors.failure_of(error, "preparing the request's inputs")
        return joined(parts)

    def answer(self, inputs: Inputs[I]) -> None:
        """Run the network on prepared inputs and give each request its answers; a failure stays with its request."""
        inputs.hand_back(run_isolated(self.predict, inputs.with_options(), inputs.owners()))

    @abstractmethod
    def prepare(self, inputs: Inputs[object]) -> Inputs[I]:
        """Turn inputs as clients sent them into what the network takes. May be called again per request."""

    @abstractmethod
    def predict(self, inputs: Sequence[tuple[I, Options]]) -> list[object]:
        """Return one answer, or NotFinite, per prepared input with its request's options, in order."""
