"""TorchServe's Predictions by Ray Serve's gRPC ingress: bytes on the wire <-> requests and answers of a front.

The messages are those of TorchServe's inference.proto that are needed. They are described here, so that no file has
to be generated. They are in a pool of their own, so another program's messages of these names are not in the way.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory
from google.protobuf.message import DecodeError

from handlers.hosts.messages import HttpRequest, HttpResponse, Routed
from ray_host import grpc_codes

PACKAGE = "org.pytorch.serve.grpc.inference"
SERVICE = f"{PACKAGE}.InferenceAPIsService"
METHOD = "Predictions"  # the front has a method of this name
_BYTES, _TEXT, _MESSAGE = "TYPE_BYTES", "TYPE_STRING", "TYPE_MESSAGE"
_REQUEST: dict[str, Any] = {
    "name": "PredictionsRequest",
    "field": [
        {"name": "model_name", "number": 1, "type": _TEXT, "label": "LABEL_OPTIONAL"},
        {"name": "model_version", "number": 2, "type": _TEXT, "label": "LABEL_OPTIONAL"},
        {
            "name": "input",
            "number": 3,
            "type": _MESSAGE,
            "label": "LABEL_REPEATED",
            "typeName": f".{PACKAGE}.PredictionsRequest.InputEntry",
        },
    ],
    "nestedType": [
        {
            "name": "InputEntry",
            "options": {"mapEntry": True},
            "field": [
                {"name": "key", "number": 1, "type": _TEXT, "label": "LABEL_OPTIONAL"},
                {"name": "value", "number": 2, "type": _BYTES, "label": "LABEL_OPTIONAL"},
            ],
        }
    ],
}
_RESPONSE = {
    "name": "PredictionResponse",
    "field": [{"name": "prediction", "number": 1, "type": _BYTES, "label": "LABEL_OPTIONAL"}],
}


@functools.cache
def message(name: str) -> Any:
    """Return the class of a message: "PredictionsRequest" or "PredictionResponse"."""
    return _class(name, [_REQUEST, _RESPONSE])


@functools.cache
def _in_order() -> Any:
    """The class of a PredictionsRequest whose `input` is a list of entries, as it is on the wire.

    A map of Python's protobuf has an order of its own, another one in each process. Answers come in the order of the
    entries, as under TorchServe, whose maps keep that of the wire.
    """
    (entry,) = _REQUEST["nestedType"]
    plain = {key: value for key, value in entry.items() if key != "options"}
    return _class("PredictionsRequest", [{**_REQUEST, "nestedType": [plain]}])


def _class(name: str, messages: list[Any]) -> Any:
    file = {"name": "ray_host.proto", "package": PACKAGE, "syntax": "proto3", "messageType": messages}
    pool = descriptor_pool.DescriptorPool()
    pool.Add(json_format.ParseDict(file, descriptor_pb2.FileDescriptorProto()))
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{PACKAGE}.{name}"))


def add_to_server(servicer: Any, server: Any) -> None:
    """Add the service to a gRPC server, as generated code does. Requests stay bytes on their way to the front."""
    import grpc

    handlers = {METHOD: grpc.unary_unary_rpc_method_handler(getattr(servicer, METHOD))}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))


def routed(sent: bytes) -> Routed | None:
    """Return which model a PredictionsRequest asks, and the request; None for bytes that are no such message."""
    try:
        found = _in_order().FromString(sent)
    except DecodeError:
        return None
    entries = {entry.key: entry.value for entry in found.input}
    return Routed(found.model_name, found.model_version, HttpRequest(entries=entries))


@dataclass(frozen=True)
class Prediction:
    """An answer, as Ray Serve writes it."""

    body: bytes

    def SerializeToString(self) -> bytes:  # noqa: N802 - Ray Serve calls it
        """Return a PredictionResponse on the wire."""
        written: bytes = message("PredictionResponse")(prediction=self.body).SerializeToString()
        return written


def answered(response: HttpResponse, context: Any) -> Prediction:
    """Return an answer; for a refusal set the call's status, with the error as its details.

    Args:
        context: Ray Serve's, of the call.
    """
    if response.status == HTTPStatus.OK:
        return Prediction(response.body)
    import grpc

    context.set_code(getattr(grpc.StatusCode, grpc_codes.of(response.status)))
    context.set_details(_said(response))
    return Prediction(b"")


def _said(response: HttpResponse) -> str:
    """The error's message, of a JSON body in any of the protocols' forms; else the status."""
    try:
        body = json.loads(response.body)
        said = body.get("message") or body.get("error")
    except (ValueError, AttributeError):
        said = None
    return said if isinstance(said, str) else f"status {response.status}"
