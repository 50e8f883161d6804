"""A loaded archive without TorchServe: Python values or HTTP requests in, answers out."""

from __future__ import annotations

import contextlib
import gc
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, cast

import torch

from handlers.hosts import python_values, rows
from handlers.hosts.contexts import HostContext
from handlers.hosts.messages import HttpRequest, HttpResponse
from handlers.loading import give_back_memory
from handlers.protocol import writer
from handlers.protocol.adapters import DEFAULT
from handlers.protocol.errors import RequestError
from handlers.protocol.interface import Interface
from handlers.protocol.request import Request
from handlers.serving.handler import Handler
from handlers.serving.steps import Steps

AnyHandler = Handler[Any, Any]


class ModelClosedError(RuntimeError):
    """The model was closed, and was asked afterwards."""


class ModelLostError(RuntimeError):
    """The GPU is lost: nothing runs on it any more in this process. End the process, and start another one."""


@dataclass(frozen=True)
class PythonCall:
    """Inputs as Python values that are asked together.

    Args:
        inputs: see Model.predict.
        options: as the caller gave them.
        arrived: see HttpRequest.
    """

    inputs: Sequence[object]
    options: Mapping[str, object] = field(default_factory=dict)
    arrived: float | None = None


Call = HttpRequest | PythonCall
Result = HttpResponse | list[Any]  # of an HttpRequest, of a PythonCall


class Model:
    """What `load_archive` returns. It may be called from any thread; one call runs at a time.

    Attributes:
        name, version: of the model, as it was packaged or as load_archive was told.
        batch_size, max_delay_s: for a host that forms batches, from model-config.yaml: requests that are answered
            together, and seconds that the first of them waits for others.
    """

    def __init__(self, handler: AnyHandler, context: HostContext, resources: contextlib.ExitStack) -> None:
        self._handler: AnyHandler | None = handler
        self._context, self._resources = context, resources
        self._lock = threading.Lock()
        self._is_lost = False
        self._interface: Interface = handler.reader.model
        self._device = handler.model.device
        self._description = handler.model.description
        self.name, self.version = self._interface.name, self._interface.version
        config = context.model_yaml_config
        self.batch_size = int(config.get("batchSize") or 1)
        self.max_delay_s = float(config.get("maxBatchDelay") or 0) / 1e3

    def predict(self, inputs: Sequence[object], *, return_errors: bool = False, **options: object) -> list[Any]:
        """Return one answer per input, in order: what JSON would hold, and embeddings as NumPy arrays of float32.

        Args:
            inputs: a list of any length. For a model of images: files as bytes or paths, PIL images, NumPy arrays. An
                array or .npy file of several images has a list of answers. For a model of texts: str, bytes, paths,
                pairs as tuples of two str, token ids as lists of int.
            return_errors: put an input's error into its place, instead of raising it.
            options: as docs/api.md has them, by name: top_k=3, truncate=True.

        Raises:
            RequestError: an option is wrong, or (without return_errors) the first of the inputs' errors.
            TypeError: one input came instead of a list.
            ModelClosedError, ModelLostError: see there.
        """
        answers: list[Any] = []
        for call in self.calls_of(inputs, options):
            answers += cast("list[Any]", self.run([call])[0])
        return answers if return_errors else without_errors(answers)

    def answer(self, request: HttpRequest) -> HttpResponse:
        """Return the response to one HTTP request, also if it is an error. See answer_batch."""
        return self.answer_batch([request])[0]

    def answer_batch(self, requests: Sequence[HttpRequest]) -> list[HttpResponse]:
        """Return one response per request, in order, after one run of the network for all of them.

        What a client sent raises nothing: it gets its 4xx, and the other requests their answers. Raises
        ModelClosedError and ModelLostError.
        """
        return cast("list[HttpResponse]", self.run(list(requests)))

    def calls_of(self, inputs: Sequence[object], options: Mapping[str, object]) -> list[PythonCall]:
        """Return the calls that `run` takes for these inputs: each of at most maxInputs. Raises as `predict`."""
        if isinstance(inputs, (str, bytes, bytearray, dict)) or not isinstance(inputs, Sequence):
            raise TypeError(f"predict takes a list of inputs, and {type(inputs).__name__} came; wanted: [input]")
        checked = python_values.options_of(options, self._interface)
        most = self._interface.max_inputs
        return [PythonCall(inputs[start : start + most], checked) for start in range(0, len(inputs), most)]

    def run(self, calls: Sequence[Call]) -> list[Result]:
        """Answer calls of both kinds together: what a host's dynamic batching calls.

        Args:
            calls: HttpRequests, and PythonCalls of `calls_of`.

        Returns:
            One result per call: an HttpResponse; or a list with an answer or a RequestError per input.
        """
        with self._lock, self._guarded() as handler:
            return _Batch(handler, self._context, calls).results()

    def describe(self) -> dict[str, Any]:
        """Return how the model runs and why, and what it takes."""
        return {
            "name": self.name,
            "version": self.version,
            **self._description,
            "options": sorted(self._interface.options),
            "takes": python_values.TEXTS if self._interface.takes_texts else python_values.IMAGES,
        }

    @property
    def interface(self) -> Interface:
        """What the model offers to the protocols: its task, labels, options and limits."""
        return self._interface

    @property
    def is_healthy(self) -> bool:
        """Whether the model can still answer in this process."""
        return self._handler is not None and not self._is_lost

    def close(self) -> None:
        """Free the model's memory and its files; a call that runs is waited for. May be called twice."""
        with self._lock:
            if self._handler is not None:
                self._handler.close()
            self._handler = None
            gc.collect()
            give_back_memory(self._device)
            self._resources.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[AnyHandler]:
        """The handler, with its GPU as this thread's current one. A worker's exit becomes a ModelLostError."""
        if self._handler is None:
            raise ModelClosedError(f"{self.name} is closed")
        if self._is_lost:
            raise ModelLostError(f"{self.name}'s GPU is lost; end this process and start another one")
        on_gpu = torch.cuda.device(self._device) if self._device.type == "cuda" else contextlib.nullcontext()
        try:
            with on_gpu:
                yield self._handler
        except SystemExit:  # serving.isolation ends TorchServe's worker so
            self._is_lost = True
            raise ModelLostError(f"{self.name}'s GPU is lost; end this process and start another one") from None


class _Batch:
    """Calls on their way through a handler: read, answered together, written."""

    def __init__(self, handler: AnyHandler, context: HostContext, calls: Sequence[Call]) -> None:
        self.handler, self.context, self.calls = handler, context, calls

    def results(self) -> list[Result]:
        """One result per call."""
        steps = Steps()
        with steps("read"):
            over_http = self._read([call for call in self.calls if isinstance(call, HttpRequest)])
            from_python = [self._requests_of(call) for call in self.calls if isinstance(call, PythonCall)]
        requests = [*over_http, *(request for mine in from_python for request in mine)]
        ran = self.handler.complete(requests, steps)
        with steps("write"):
            responses = iter(self.context.responses(writer.write(over_http, self.context)))
            values = iter([[python_values.answer_of(request) for request in mine] for mine in from_python])
        self.handler.report(requests, ran, steps)
        return [next(responses) if isinstance(call, HttpRequest) else next(values) for call in self.calls]

    def _read(self, sent: Sequence[HttpRequest]) -> list[Request]:
        """The requests; one whose form cannot be read has its error already, as TorchServe's own protocol has it."""
        made = [_row_of(request) for request in sent]
        self.context.begin([headers for _, headers, _ in made])
        requests = self.handler.reader.read([parameters for parameters, _, _ in made], self.context)
        for index, (_, _, error) in enumerate(made):
            if error is not None:
                requests[index] = Request(DEFAULT, error=error)
        return requests

    def _requests_of(self, call: PythonCall) -> list[Request]:
        model = self.handler.reader.model
        requests = [python_values.request_of(value, call.options, model) for value in call.inputs]
        for request in requests:
            request.arrived = call.arrived
        return requests


def without_errors(answers: list[Any]) -> list[Any]:
    """Return the answers. Raises the first RequestError among them, with the number of its input."""
    for number, answer in enumerate(answers, 1):
        if isinstance(answer, RequestError):
            if len(answers) == 1:
                raise answer
            raise type(answer)(f"input {number} of {len(answers)}: {answer.message}")
    return answers


def _row_of(request: HttpRequest) -> tuple[rows.Parameters, rows.Sent, RequestError | None]:
    try:
        return *rows.row_of(request), None
    except RequestError as error:
        return {}, {"content-length": "0"}, error
