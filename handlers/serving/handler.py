"""The way of a batch through a handler: read, prepare, run, answer, write."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Generic, TypeVar

from handlers import phases
from handlers.loading import Model
from handlers.protocol import internal_errors, writer
from handlers.protocol.context import Context
from handlers.protocol.errors import NotFinite
from handlers.protocol.reader import Reader
from handlers.protocol.request import Request
from handlers.serving import error_log, spans, torchserve_socket
from handlers.serving.inputs import Inputs, Options, inputs_of, joined
from handlers.serving.isolation import run_isolated
from handlers.serving.layers import LayerSearch
from handlers.serving.memory_limit import MemoryLimit
from handlers.serving.metrics import BatchMetrics
from handlers.serving.steps import Steps
from handlers.serving.watchdog import Watchdog
from handlers.settings import Settings

logger = logging.getLogger(__name__)

S = TypeVar("S", bound=Settings)
I = TypeVar("I")  # noqa: E741 - an input, as the network takes it


class Handler(ABC, Generic[S, I]):
    """What both entries share. An entry prepares inputs, runs the network, and makes answers of its outputs."""

    model: Model[S]
    reader: Reader
    metrics: BatchMetrics
    memory: MemoryLimit | None = None
    watchdog = Watchdog(0)
    search: LayerSearch | None = None
    spans: spans.BatchSpans | None = None

    def start_serving(self) -> None:
        """Report batches, and read requests ahead, from now on; call it when the model is loaded and has run once."""
        if reading := torchserve_socket.read_ahead():
            self.model.description["reading"] = reading
        self.metrics.start()
        self.spans = spans.load(self.metrics.worker)
        if start := phases.end():
            self.model.description["start"] = start
            logger.info("%s: %s", self.metrics.worker.model, phases.line(start))

    def handle(self, rows: Sequence[Mapping[str, Any]], context: Context) -> list[bytes]:
        """Answer one batch of TorchServe's rows, in order; never raises, unless the process is to end."""
        steps = Steps()
        with steps("read"):
            requests = self.reader.read(rows, context)
        ran = self.complete(requests, steps)
        with steps("write"):
            bodies = writer.write(requests, context)
        self.report(requests, ran, steps)
        return bodies

    def complete(self, requests: Sequence[Request], steps: Steps) -> int:
        """Give each request its answers or its error, and return how many inputs ran.

        An error that nothing else has caught fails only the requests that have no answer yet.

        Args:
            steps: notes the times of "prepare" and "run".
        """
        prepared: Inputs[I] = Inputs([], [])
        try:
            with steps("prepare"):
                prepared = self._prepared(requests).in_time()
            if len(prepared):
                with steps("run"), self.watchdog.watching("running the network"):
                    self.answer(prepared)
        except BaseException as error:
            writer.fail(requests, internal_errors.log_failure(error, "answering the batch"))
        return len(prepared)

    def report(self, requests: Sequence[Request], ran: int, steps: Steps) -> None:
        """Report the batch's errors, metrics and spans; what fails there fails no request. ran: by `complete`."""
        try:
            error_log.write(requests)
            self.metrics.report(requests, ran, steps)
            if self.spans:
                self.spans.report(requests, ran, steps)
        except BaseException as error:
            internal_errors.log_failure(error, "reporting the batch's figures")

    def close(self) -> None:
        """Report no more, and end the handler's threads; a host without TorchServe closes its models so."""
        self.metrics.stop()
        if self.spans:
            self.spans.close()

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
        sizes = [self.size_of(value) for value in inputs.values]
        answers = run_isolated(self.predict, inputs.with_options(), inputs.owners(), sizes, self.memory)
        inputs.hand_back(answers)
        spoilt = [
            value for value, answer in zip(inputs.values, answers, strict=True) if isinstance(answer, NotFinite)
        ]
        if spoilt and self.search:
            self.search.explain(lambda: self.batch_of(spoilt[:1]))

    def size_of(self, value: I) -> int:
        """Return how much of a batch's memory an input takes, in the unit of `memory`."""
        return 1

    @abstractmethod
    def prepare(self, inputs: Inputs[object]) -> Inputs[I]:
        """Turn inputs as clients sent them into what the network takes. May be called again per request."""

    def batch_of(self, values: Sequence[I]) -> object:
        """Return what the engine takes, of prepared inputs that run together. Only `search` asks for it."""
        raise NotImplementedError

    @abstractmethod
    def predict(self, inputs: Sequence[tuple[I, Options]]) -> list[object]:
        """Return one answer, or NotFinite, per prepared input with its request's options, in order."""
