"""gRPC's ModelInfer of the Open Inference Protocol, if ts_open_inference_protocol=true switches it on.

TorchServe turns a call into JSON, and the JSON of the answer into tensors. On the way it loses the request's
`parameters`, `outputs` and `raw_input_contents`, and every error; see docs/clients/grpc.md. What is left is answered
exactly, and an input whose elements were lost is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import orjson

from handlers.protocol.adapter import Adapter, Answer, json_answer
from handlers.protocol.errors import InvalidInput, RequestError
from handlers.protocol.interface import Interface
from handlers.protocol.open_inference import envelope, inputs, outputs
from handlers.protocol.open_inference.envelope import Tensor
from handlers.protocol.open_inference.outputs import Output
from handlers.protocol.request import Request
from handlers.protocol.row import Row

ERROR = "error"
LOST = (
    "TorchServe drops raw_input_contents and elements of FP16; send the others in an input's contents, or ask by HTTP"
)


class OpenInferenceGrpc(Adapter):
    """Answers in the one form that TorchServe can send on; an answer in any other form would end the worker."""

    priority = 2
    by_path = True

    def claims(self, row: Row) -> bool:
        return row.is_open_inference_grpc

    def read(self, row: Row, model: Interface) -> Request:
        content, _ = envelope.split(row)
        sent = envelope.read(_as_over_http(content), memoryview(b""))
        _refuse_lost(sent.tensors)
        found = inputs.inputs_of([inputs.from_base64(tensor) for tensor in sent.tensors], model)

        def combine(answers: Sequence[Any]) -> Answer:
            described = [_described(name, output) for name, output in _made(model.task, answers).items()]
            return _answer(sent.id, model.name, model.version, described)

        return Request(self, found, {}, combine)

    def write(self, request: Request) -> Answer:
        return cast("Answer", request.combine(request.answers))

    def write_error(self, error: RequestError) -> Answer:
        """Return the error as an output, for TorchServe sends no status on. Its one element is an object in JSON."""
        described = {"name": ERROR, "datatype": "BYTES", "shape": [1], "data": [error.body()]}
        return _answer(None, "", "", [described])


def _as_over_http(content: object) -> object:
    """What TorchServe hands over, without the model's name, and with "data" for a datatype that it does not know."""
    if not isinstance(content, dict) or not isinstance(content.get("inputs"), list):
        return content
    tensors = [{"data": [], **tensor} if isinstance(tensor, dict) else tensor for tensor in content["inputs"]]
    return {**{name: value for name, value in content.items() if name != "model_name"}, "inputs": tensors}


def _refuse_lost(tensors: Sequence[Tensor]) -> None:
    for tensor in tensors:
        if not tensor.data and 0 not in tensor.shape:
            raise InvalidInput(f"{tensor.what} arrived without its elements: {LOST}")


def _made(task: str, answers: Sequence[Any]) -> dict[str, Output]:
    """The outputs. Labels come in "answers": TorchServe puts quotes around strings."""
    made = outputs.make(task, answers, {})
    if made.pop("labels", None) is not None:
        made["answers"] = outputs.as_json(answers)
    return made


def _described(name: str, output: Output) -> dict[str, object]:
    """An output in JSON. Elements of BYTES are JSON values, which TorchServe writes out again as bytes."""
    data = output.as_json()
    if isinstance(data, list):
        data = [orjson.Fragment(element) for element in data]
    return {"name": name, "datatype": output.datatype, "shape": list(output.shape), "data": data}


def _answer(identity: str | None, name: str, version: str, described: Sequence[object]) -> Answer:
    """The answer; TorchServe's worker thread ends at one that lacks a name."""
    head = {"id": identity or "", "model_name": name, "model_version": version}
    return json_answer({**head, "outputs": described})


ADAPTER = OpenInferenceGrpc()
