"""Embeddings as JSON, base64 and bytes: what is sent is what was computed, to the digits that the precision holds."""

from __future__ import annotations

import base64
import io

import numpy as np
import orjson
import pytest
import torch

from handlers.protocol import encodings
from handlers.protocol.errors import NotAcceptable
from handlers.tasks.shared.embeddings import significant

ROWS = np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32) / 8


@pytest.mark.parametrize(("precision", "digits"), encodings.DIGITS.items())
def test_json_has_as_many_digits_as_the_precision_holds(precision: str, digits: int) -> None:
    values = torch.from_numpy(np.random.default_rng(1).standard_normal(20_000).astype(np.float32)) / 30
    rounded = significant(values, digits)
    written = orjson.dumps(rounded.numpy(), option=orjson.OPT_SERIALIZE_NUMPY)
    longest = max(
        len(number.strip("-").partition("e")[0].replace(".", "").lstrip("0")) for number in _numbers(written)
    )
    assert longest <= digits
    step = {"fp32": 2**-24, "fp16": 2**-11, "bf16": 2**-8, "fp8": 2**-11}[precision]
    # Less than the precision's own rounding, so neighbouring values stay apart.
    assert ((rounded - values).abs() <= values.abs() * step).all()


def _numbers(written: bytes) -> list[str]:
    return written.decode().strip("[]").split(",")


def test_rounding_does_not_reach_infinity() -> None:
    assert significant(torch.tensor([3.4026e38]), 4).isfinite().all()


def test_rounding_keeps_what_cannot_be_rounded() -> None:
    values = torch.tensor([0.0, -0.0, float("inf"), float("nan"), 1e-38, -1e-31, 1e30, 65504.0, 99999.6])
    rounded = significant(values, 5)
    expected = torch.tensor([0.0, -0.0, float("inf"), float("nan"), 1e-38, -1e-31, 1e30, 65504.0, 100000.0])
    torch.testing.assert_close(rounded, expected, equal_nan=True, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_base64_and_bytes_are_exact(dtype: str) -> None:
    options = {"dtype": dtype}
    wanted = ROWS.astype(dtype)
    text = encodings.as_base64(ROWS[1], options)
    assert np.array_equal(np.frombuffer(base64.b64decode(text), "<" + wanted.dtype.str[1:]), wanted[1])
    raw, headers = encodings.as_bytes(list(ROWS), options, encodings.RAW)
    assert headers == {"X-Shape": "3,8", "X-Dtype": dtype}
    assert np.array_equal(np.frombuffer(raw, dtype).reshape(3, 8), wanted)
    file, _ = encodings.as_bytes(list(ROWS), options, encodings.NPY)
    assert np.array_equal(np.load(io.BytesIO(file)), wanted)


@pytest.mark.parametrize(
    ("accept", "wanted"),
    [
        ("", encodings.JSON),
        ("*/*", encodings.JSON),
        ("application/*", encodings.JSON),
        ("application/json, text/plain, */*", encodings.JSON),
        ("application/octet-stream", encodings.RAW),
        ("Application/Octet-Stream; q=0.9, application/json;q=0.1", encodings.RAW),
        ("text/html, application/x-npy;q=0.8, */*;q=0.1", encodings.NPY),
        ("application/json;q=0, */*", encodings.RAW),
        ("application/json;q=0.1, */*", encodings.RAW),
        ("application/octet-stream;q=0.5, application/x-npy;q=nan", encodings.RAW),
    ],
)
def test_the_answer_comes_as_the_client_prefers(accept: str, wanted: str) -> None:
    assert encodings.media_type(accept) == wanted


@pytest.mark.parametrize(
    "accept",
    [
        "text/html",
        "application/json;q=0",
        "application/xml;q=1, image/*",
        "application/json;q=x",
        "application/*;q=0, */*",
        "*/*;q=inf",
    ],
)
def test_what_cannot_be_had_is_refused(accept: str) -> None:
    with pytest.raises(NotAcceptable, match="application/octet-stream"):
        encodings.media_type(accept)


def test_options_are_words() -> None:
    assert encodings.OPTIONS["encoding_format"]("base64") == "base64"
    with pytest.raises(ValueError, match="wanted: float32, float16"):
        encodings.OPTIONS["dtype"]("int8")
    with pytest.raises(ValueError, match="wanted: float, base64"):
        encodings.OPTIONS["encoding_format"](3)
