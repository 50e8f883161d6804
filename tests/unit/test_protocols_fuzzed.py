"""Whatever comes to a protocol's path: one answer per row in that protocol's shape, and neighbours are untouched."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from handlers.protocol import adapters
from handlers.protocol.row import Row
from handlers.text_encoder import TextEncoder

if TYPE_CHECKING:
    from tests.unit.conftest import FakeContext

PATHS = [
    "",
    "embeddings",
    "v1/embeddings",
    "rerank",
    "v2/rerank",
    "embed",
    "embed_all",
    "embed_sparse",
    "predict",
    "similarity",
]
EMBEDDING_PATHS = {"embeddings", "v1/embeddings", "embed", "embed_all", "similarity"}
NAMES = [
    *("input", "inputs", "model", "user", "encoding_format", "dimensions", "normalize", "truncate", "prompt_name"),
    *("query", "documents", "texts", "top_n", "return_documents", "return_text", "raw_scores", "parameters"),
    *("source_sentence", "sentences", "truncation_direction", "instances", "text", "text_pair", "datatype", ""),
]
Scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.sampled_from([101, 102, 7592, 384, 1, 0]),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["a dog", "fake", "float", "base64", "left", "word " * 50, "\ud800", "\0"]),
)
Json = st.recursive(
    Scalars,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=4), inner, max_size=5)
    ),
    max_leaves=12,
)
Bodies = st.one_of(
    st.dictionaries(st.sampled_from(NAMES), Json, max_size=6),
    Json,
    st.binary(max_size=20),
    Json.map(lambda value: json.dumps(value).encode()),
    Json.map(lambda value: json.dumps(value).encode()[:-1]),
)
Headers = st.dictionaries(
    st.sampled_from(
        ["x-truncate", "x-normalize", "x-dimensions", "x-encoding-format", "x-dtype", "accept", "explain"]
    ),
    st.sampled_from(["true", "false", "64", "384", "base64", "float16", "application/json", "*/*", "text/html"]),
    max_size=2,
)
Types = st.sampled_from(["application/json", "", "text/plain", "application/octet-stream", "image/png"])


@pytest.fixture(scope="module", params=["embeddings", "reranker", "classifier"])
def handler(request: pytest.FixtureRequest, tiny_encoder: Callable[..., TextEncoder]) -> TextEncoder:
    if request.param == "embeddings":
        found: TextEncoder = request.getfixturevalue("minilm")
        return found
    return tiny_encoder("sequence-classification", num_labels=1 if request.param == "reranker" else 3)


def is_finite(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(is_finite, value.values()))
    if isinstance(value, list):
        return all(map(is_finite, value))
    return not isinstance(value, float) or bool(np.isfinite(value))


def refused_in_its_shape(path: str, answer: Any) -> bool:
    """Whether an error has the shape of the protocol that the path belongs to."""
    if path in ("embeddings", "v1/embeddings"):
        return bool(answer["error"].keys() == {"message", "type", "param", "code"})
    if path == "v2/rerank":
        return bool(answer.keys() == {"detail", "message"})
    if path == "rerank":
        return answer.keys() in ({"detail", "message"}, {"error", "error_type"})
    if path == "":
        return bool({"code", "type", "message"} <= answer.keys())
    return bool(answer.keys() == {"error", "error_type"})


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(path=st.sampled_from(PATHS), body=Bodies, headers=Headers, media_type=Types)
def test_anything_gets_an_answer_and_hurts_nobody(
    handler: TextEncoder,
    context_for: Callable[..., FakeContext],
    path: str,
    body: Any,
    headers: dict[str, str],
    media_type: str,
) -> None:
    rest = {"content-length": "9", "explain": "False", "url_path": ""}
    plain = {**rest, "content-type": "text/plain"}
    context = context_for([plain, {**rest, "content-type": media_type, **headers, "url_path": path}, plain])
    rows = [{"body": "a dog"}, {"body": body}, {"body": "a cat"}]
    first, answer, last = handler.handle(rows, context)
    assert (context.statuses[0], context.statuses[2]) == (200, 200)
    alone = context_for([plain])
    assert np.allclose(numbers(first), numbers(handler.handle(rows[:1], alone)[0]), atol=1e-5)
    assert len(numbers(last)) == len(numbers(first))
    status = context.statuses[1]
    if context.content_types[1] == "application/json" and answer:
        parsed = json.loads(answer)
        assert is_finite(parsed)
        assert status == 200 or refused_in_its_shape(path, parsed), parsed
    assert status == 200 or 400 <= status < 500, answer
    is_embedder = handler.model.settings.task == "embeddings"
    assert status != 200 or path == "" or (path in EMBEDDING_PATHS) == is_embedder


def numbers(answer: bytes) -> list[float]:
    parsed = json.loads(answer)
    return [item["score"] if isinstance(item, dict) else item for item in parsed]


@given(path=st.text(max_size=12) | st.sampled_from(PATHS), body=Bodies, media_type=Types)
def test_every_row_has_one_reader(path: str, body: Any, media_type: str) -> None:
    for headers in ({"url_path": path}, {"explain": "False"}, {}):
        row = Row.of({"body": body}, {"content-length": "9", "content-type": media_type, **headers})
        claiming = [adapter for adapter in adapters.ADAPTERS if adapter.claims(row)]
        assert adapters.adapter_of(row) is claiming[0]
        highest = [adapter for adapter in claiming if adapter.priority == claiming[0].priority]
        assert len(highest) == 1, highest
