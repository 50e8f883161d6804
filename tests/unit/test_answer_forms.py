"""Embeddings in the form that each client asks for, of neighbours in one batch; contradictions are refused."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from archive.trial_run import TrialContext
from handlers.image_classifier import ImageClassifier
from handlers.text_encoder import TextEncoder

TEXTS = ["a first text", "a second one"]
BODY = json.dumps(TEXTS).encode()
HEADERS = {"content-type": "application/json", "content-length": "30"}


class Context(TrialContext):
    """Keeps what the handler sets."""

    def __init__(self, headers: Sequence[Mapping[str, Any]]) -> None:
        super().__init__(Path(), "answers", {})
        self.headers = headers
        self.content_types: dict[int, str] = {}
        self.response_headers: dict[tuple[int, str], str] = {}

    def get_all_request_header(self, idx: int) -> dict[str, Any]:
        return dict(self.headers[idx])

    def set_response_content_type(self, idx: int, value: str) -> None:
        self.content_types[idx] = value

    def set_response_header(self, idx: int, key: str, value: str) -> None:
        self.response_headers[idx, key] = value


def ask(handler: Any, *headers: Mapping[str, str], body: bytes = BODY) -> tuple[list[bytes], Context]:
    context = Context([HEADERS | dict(one) for one in headers])
    return handler.handle([{"body": bytearray(body)} for _ in headers], context), context


def test_each_client_of_a_batch_gets_the_form_that_it_asks_for(minilm: TextEncoder) -> None:
    answers, context = ask(
        minilm,
        {},
        {"accept": "application/octet-stream"},
        {"X-Encoding-Format": "base64", "accept": "*/*"},
        {"accept": "application/x-npy", "X-Dtype": "float16"},
        {"X-Encoding-Format": "base64", "X-Dtype": "float16"},
    )
    assert set(context.statuses.values()) == {200}
    numbers = np.array(json.loads(answers[0]), np.float32)
    raw = np.frombuffer(answers[1], "<f4").reshape(2, -1)
    text = np.stack([np.frombuffer(base64.b64decode(one), "<f4") for one in json.loads(answers[2])])
    file = np.load(io.BytesIO(answers[3]))
    half = np.stack([np.frombuffer(base64.b64decode(one), "<f2") for one in json.loads(answers[4])])
    assert np.array_equal(raw, text)
    np.testing.assert_allclose(numbers, raw, rtol=1e-6)
    assert file.dtype == half.dtype == np.float16
    assert np.array_equal(file, half)
    np.testing.assert_allclose(file, raw, rtol=1e-3, atol=1e-7)
    assert [context.content_types[row] for row in range(5)] == [
        "application/json", "application/octet-stream", "application/json", "application/x-npy", "application/json",
    ]  # fmt: skip
    assert context.response_headers[1, "X-Shape"] == f"2,{raw.shape[1]}"
    assert context.response_headers[3, "X-Dtype"] == "float16"


def test_parameters_in_json_choose_it_too(minilm: TextEncoder) -> None:
    body = json.dumps({"instances": TEXTS, "parameters": {"encoding_format": "base64"}}).encode()
    (answer,), _ = ask(minilm, {}, body=body)
    assert all(isinstance(one, str) for one in json.loads(answer)["predictions"])


@pytest.mark.parametrize(
    ("headers", "status", "kind"),
    [
        ({"accept": "text/html"}, 406, "NotAcceptable"),
        ({"accept": "application/vnd.apache.arrow.stream"}, 406, "NotAcceptable"),
        ({"accept": "application/octet-stream", "X-Encoding-Format": "base64"}, 400, "InvalidOption"),
        ({"X-Dtype": "float16"}, 400, "InvalidOption"),
        ({"X-Dtype": "int8", "X-Encoding-Format": "base64"}, 400, "InvalidOption"),
        ({"Encoding-Format": "base64"}, 400, "InvalidOption"),
    ],
)
def test_what_cannot_be_had_fails_alone_and_in_json(
    minilm: TextEncoder, headers: dict[str, str], status: int, kind: str
) -> None:
    (good, bad), context = ask(minilm, {"accept": "application/octet-stream"}, headers)
    assert context.statuses == {0: 200, 1: status}
    assert json.loads(bad)["type"] == kind
    assert context.content_types[1] == "application/json"
    assert len(good) == 2 * 384 * 4


def test_an_error_is_json_whatever_was_asked_for(minilm: TextEncoder) -> None:
    (answer,), context = ask(minilm, {"accept": "application/octet-stream"}, body=b'[""]')
    assert context.statuses == {0: 400}
    assert json.loads(answer)["type"] == "EmptyRequest"


def test_classes_come_as_json_alone(digits: ImageClassifier) -> None:
    (answer,), context = ask(digits, {"accept": "application/octet-stream"}, body=b'["x"]')
    assert context.statuses == {0: 406}
    assert "application/json" in json.loads(answer)["message"]


def test_an_option_that_came_twice_with_different_values_is_refused(minilm: TextEncoder) -> None:
    body = json.dumps({"instances": TEXTS, "parameters": {"encoding_format": "float"}}).encode()
    (answer, same), context = ask(minilm, {"X-Encoding-Format": "base64"}, {"X-Encoding-Format": "float"}, body=body)
    assert context.statuses == {0: 400, 1: 200}
    assert "came twice" in json.loads(answer)["message"]
    assert len(json.loads(same)["predictions"]) == 2
