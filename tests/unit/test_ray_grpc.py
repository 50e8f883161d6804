"""TorchServe's Predictions on its way through a front of Ray Serve; without Ray."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from handlers.hosts import rows
from handlers.hosts.messages import HttpRequest, HttpResponse
from handlers.protocol.errors import RequestError

grpc = pytest.importorskip("grpc", reason="needs the test extra's grpcio")
pytest.importorskip("google.protobuf", reason="needs the test extra's grpcio-tools")
from ray_host import grpc_codes, grpc_service  # noqa: E402


class Context:
    def __init__(self) -> None:
        self.code: Any = None
        self.details = ""

    def set_code(self, code: Any) -> None:
        self.code = code

    def set_details(self, details: str) -> None:
        self.details = details


def test_a_request_on_the_wire_is_read_whole() -> None:
    made = grpc_service.message("PredictionsRequest")
    sent = made(model_name="a", model_version="2", input={"data": b"\0\xff", "top_k": b"1"}).SerializeToString()
    found = grpc_service.routed(sent)
    assert found is not None
    assert (found.model, found.version) == ("a", "2")
    assert found.request == HttpRequest(entries={"data": b"\0\xff", "top_k": b"1"})
    assert rows.row_of(found.request) == ({"data": b"\0\xff", "top_k": b"1"}, {})


@pytest.mark.parametrize("order", [("one", "two", "three"), ("three", "two", "one")])
def test_entries_stay_in_the_order_of_the_wire(order: tuple[str, ...]) -> None:
    made = grpc_service.message("PredictionsRequest")
    sent = b"".join(made(input={key: key.encode()}).SerializeToString() for key in order)
    found = grpc_service.routed(made(model_name="a").SerializeToString() + sent)
    assert found is not None
    assert list((found.request.entries or {}).items()) == [(key, key.encode()) for key in order]


@pytest.mark.parametrize("sent", [b"\xff", b"\x0a\x05a", b"\x0a\x02\xff\xff"])
def test_other_bytes_are_no_request(sent: bytes) -> None:
    assert grpc_service.routed(sent) is None


def test_an_answer_is_a_response_on_the_wire() -> None:
    context = Context()
    written = grpc_service.answered(HttpResponse(200, {}, b"[1]"), context).SerializeToString()
    assert grpc_service.message("PredictionResponse").FromString(written).prediction == b"[1]"
    assert context.code is None


@pytest.mark.parametrize(
    ("status", "body", "code", "details"),
    [
        (400, json.dumps({"message": "wrong top_k"}).encode(), "INVALID_ARGUMENT", "wrong top_k"),
        (404, json.dumps({"code": 404, "message": "none"}).encode(), "NOT_FOUND", "none"),
        (406, json.dumps({"message": "no such form"}).encode(), "INVALID_ARGUMENT", "no such form"),
        (413, json.dumps({"message": "too many bytes"}).encode(), "RESOURCE_EXHAUSTED", "too many bytes"),
        (415, json.dumps({"error": "no text"}).encode(), "INVALID_ARGUMENT", "no text"),
        (418, b"{}", "INVALID_ARGUMENT", "status 418"),
        (429, b"{}", "RESOURCE_EXHAUSTED", "status 429"),
        (500, b"{}", "INTERNAL", "status 500"),
        (503, b"[]", "UNAVAILABLE", "status 503"),
        (504, b"\xff", "DEADLINE_EXCEEDED", "status 504"),
        (507, b"{}", "INTERNAL", "status 507"),
    ],
)
def test_a_refusal_is_a_status(status: int, body: bytes, code: str, details: str) -> None:
    context = Context()
    answer = grpc_service.answered(HttpResponse(status, {}, body), context)
    assert (context.code, context.details) == (getattr(grpc.StatusCode, code), details)
    assert answer.SerializeToString() == b""


def test_every_status_of_an_error_has_a_status_of_grpc() -> None:
    classes = [RequestError]
    for kind in classes:
        classes += kind.__subclasses__()
    assert {kind.status for kind in classes} <= grpc_codes.CODES.keys()
    assert all(hasattr(grpc.StatusCode, grpc_codes.of(status)) for status in range(200, 600))
    assert "OK" not in map(grpc_codes.of, range(300, 600))


def test_the_service_is_added_as_generated_code_does() -> None:
    added: list[Any] = []
    servicer = SimpleNamespace(Predictions=lambda request, context: None)
    grpc_service.add_to_server(servicer, SimpleNamespace(add_generic_rpc_handlers=added.append))
    (handler,) = added[0]
    assert list(handler._method_handlers) == [f"/{grpc_service.SERVICE}/Predictions"]
