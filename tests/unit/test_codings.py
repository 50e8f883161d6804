"""Content-Encoding: gzip and deflate are decoded within a bound; whatever is not one whole stream is refused."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handlers.image_classifier import ImageClassifier
from handlers.protocol import codings
from handlers.protocol.errors import InvalidInput, PayloadTooLarge, RequestError
from handlers.protocol.row import Row
from handlers.text_encoder import TextEncoder

if TYPE_CHECKING:
    from tests.unit.conftest import FakeContext

REST = {"content-length": "9", "explain": "False", "url_path": ""}
KSERVE = {"content-length": "9", "explain": "False"}
COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "x-gzip": gzip.compress,
    "GZIP": gzip.compress,
    "deflate": zlib.compress,
}


def row_of(body: Any, coding: str, **headers: str) -> Row:
    return Row.of({"body": body}, {**REST, "Content-Encoding": coding, **headers})


@pytest.mark.parametrize("coding", COMPRESS)
@given(plain=st.binary(max_size=300))
def test_a_body_is_decoded(coding: str, plain: bytes) -> None:
    row = codings.decoded(row_of(bytearray(COMPRESS[coding](plain)), coding))
    assert row.parameters["body"] == plain
    row.refuse_codings()


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_a_body_that_is_no_whole_stream(coding: str) -> None:
    stream = COMPRESS[coding](b"some words, and some words again")
    for wrong in (b"", b"some words", stream[:-1], stream[:-9], stream + b"x", stream * 2, stream[:-2] + b"ab"):
        with pytest.raises(InvalidInput):
            codings.decoded(row_of(wrong, coding))
    raw_deflate = zlib.compressobj(wbits=-15)
    with pytest.raises(InvalidInput):
        codings.decoded(row_of(raw_deflate.compress(b"a") + raw_deflate.flush(), coding))


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_a_bomb_is_refused(coding: str) -> None:
    """It is decompressed up to the bound, and one byte."""
    most = codings.MOST
    assert len(codings.decoded(row_of(COMPRESS[coding](bytes(most)), coding)).parameters["body"]) == most
    for size in (most + 1, 2 * most):
        bomb = COMPRESS[coding](bytes(size))
        assert len(bomb) < 100_000
        with pytest.raises(PayloadTooLarge):
            codings.decoded(row_of(bomb, coding))


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (b"a", {"Content-Encoding": "br"}),
        (b"a", {"Content-Encoding": "gzip, gzip"}),
        (b"a", {"Content-Encoding": "gzip", "content-encoding": "deflate"}),
        ({"parsed": "by TorchServe"}, {"Content-Encoding": "gzip"}),
        ("decoded by TorchServe", {"Content-Encoding": "gzip"}),
        (gzip.compress(b"a", mtime=0), {"Content-Encoding": "gzip", "Content-Type": "multipart/form-data"}),
    ],
)
def test_other_codings_stay_and_are_refused(body: Any, headers: dict[str, str]) -> None:
    row = Row.of({"body": body}, {**REST, **headers})
    assert codings.decoded(row) is row
    with pytest.raises(RequestError) as caught:
        row.refuse_codings()
    assert caught.value.status == 415
    assert "gzip" in caught.value.message


def test_every_protocol_gets_the_body_itself(minilm: TextEncoder, context_for: Callable[..., FakeContext]) -> None:
    """A neighbour that is no stream gets an error of its own."""
    v2 = {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": ["a text"]}]}
    bodies: list[tuple[bytes, dict[str, str]]] = [
        (b"a text", {**REST, "content-type": "text/plain"}),
        (b'["a text"]', REST),
        (json.dumps(v2).encode(), KSERVE),
        (b'{"instances": ["a text"]}', KSERVE),
    ]
    rows = [{"body": bytearray(gzip.compress(body))} for body, _ in bodies]
    headers = [{**sent, "content-encoding": "gzip"} for _, sent in bodies]
    context = context_for([*headers, headers[0]])
    answers = [json.loads(body) for body in minilm.handle([*rows, {"body": b"a text"}], context)]
    assert list(context.statuses.values()) == [200, 200, 200, 200, 400]
    assert answers[0] == answers[1][0] == answers[2]["outputs"][0]["data"] == answers[3]["predictions"][0]
    assert answers[4]["type"] == "InvalidInput"


def test_images(digits: ImageClassifier, digit_files: list[tuple[bytes, str]], ask: Callable[..., Any]) -> None:
    data, label = digit_files[0]
    ((status, answer),) = ask(digits, [{"body": gzip.compress(data)}], [{**REST, "content-encoding": "gzip"}])
    assert (status, answer[0]["label"]) == (200, label)
    ((status, answer),) = ask(
        digits, [{"body": gzip.compress(gzip.compress(data))}], [{**REST, "content-encoding": "gzip"}]
    )
    assert status == 415
