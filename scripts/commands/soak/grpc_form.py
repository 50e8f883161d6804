"""gRPC's Predictions as one more form of a request; needs the package grpcio, which the extra `test` installs.

The two messages of TorchServe's inference.proto that are needed are so small that they are written here by hand:
PredictionsRequest {model_name = 1, input = 3: map<string, bytes>}, PredictionResponse {prediction = 1}.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from server.client import Client

from soak.known import Known
from soak.questions import Form
from soak.traffic import TIMEOUT_S, Failure, Tally

METHOD = "/org.pytorch.serve.grpc.inference.InferenceAPIsService/Predictions"
NAME = "gRPC, Predictions"
PAUSE_S = 0.2


def request(model: str, entry: str, value: bytes) -> bytes:
    """A PredictionsRequest on the wire."""
    pair = _field(1, entry.encode()) + _field(2, value)
    return _field(1, model.encode()) + _field(3, pair)


def prediction(response: bytes) -> bytes:
    """The prediction of a PredictionResponse on the wire. Raises ValueError."""
    if not response or response[0] != 0x0A:
        raise ValueError("the response has no prediction")
    length, at = _read_varint(response, 1)
    return response[at : at + length]


def ask_until(
    ended: threading.Event,
    client: Client,
    form: Form,
    texts: Sequence[str],
    inputs: Sequence[int],
    known: Known,
    tally: Tally,
) -> None:
    """Ask one text after the other by gRPC, and check the answers; does nothing without grpcio."""
    try:
        grpc: Any = import_module("grpc")
    except ImportError:
        return
    config = client.config
    address = f"{config['grpc_inference_address']}:{config['grpc_inference_port']}"
    token = (("authorization", f"Bearer {client.token('inference')}"),)
    with grpc.insecure_channel(address) as channel:
        call = channel.unary_unary(METHOD)
        at = 0
        while not ended.wait(PAUSE_S):
            index, at, start = inputs[at % len(inputs)], at + 1, time.monotonic()
            try:
                body = prediction(
                    call(request(form.model, "data", texts[index].encode()), metadata=token, timeout=TIMEOUT_S)
                )
                problem, excusable = known.problem(form, [index], body), False
            except ValueError:
                problem, excusable = "an answer of another form", False
            except grpc.RpcError as error:
                excusable = error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED
                problem = f"gRPC status {error.code().name}"
            now = time.monotonic()
            if problem:
                tally.add_failure(Failure(start, now, form.model, NAME, problem, excusable))
            else:
                tally.add_right(NAME, now - start)


def _field(number: int, value: bytes) -> bytes:
    return bytes([number << 3 | 2]) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
