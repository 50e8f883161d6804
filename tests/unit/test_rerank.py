"""Reranking and prediction with a cross-encoder: the forms of Jina, Cohere and TEI, and their refusals."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from handlers.protocol.errors import NotFinite
from handlers.protocol.text_inputs import cosines, ranked
from handlers.text_encoder import TextEncoder

if TYPE_CHECKING:
    from tests.unit.conftest import Send

DOCUMENTS = ["a cat", "the dog barks", "taxes", "a dog"]


@pytest.fixture(scope="module")
def reranker(tiny_encoder: Callable[..., TextEncoder]) -> TextEncoder:
    return tiny_encoder("sequence-classification", num_labels=1)


@pytest.fixture(scope="module")
def classifier(tiny_encoder: Callable[..., TextEncoder]) -> TextEncoder:
    return tiny_encoder("sequence-classification", num_labels=3)


def scores(send: Send, reranker: TextEncoder) -> list[float]:
    status, answers = send("", [{"text": "a dog", "text_pair": text} for text in DOCUMENTS], reranker)
    assert status == 200
    return [answer[0]["score"] for answer in answers]


@pytest.mark.parametrize("path", ["rerank", "v1/rerank", "v2/rerank"])
@pytest.mark.parametrize("documents", [DOCUMENTS, [{"text": text} for text in DOCUMENTS]])
def test_documents_come_best_first(send: Send, reranker: TextEncoder, path: str, documents: list[Any]) -> None:
    wanted = scores(send, reranker)
    order = sorted(range(4), key=lambda index: -wanted[index])
    status, answer = send(path, {"query": "a dog", "documents": documents, "model": "fake"}, reranker)
    assert (status, answer["model"], answer["object"]) == (200, "fake", "list")
    assert [result["index"] for result in answer["results"]] == order
    found = [result["relevance_score"] for result in answer["results"]]
    np.testing.assert_allclose(found, sorted(wanted, reverse=True), atol=1e-6)
    assert all(result.keys() == {"index", "relevance_score"} for result in answer["results"])
    assert answer["usage"] == {"prompt_tokens": 29, "total_tokens": 29}  # seven for "a cat": three are special


def test_the_best_alone_and_with_their_documents(send: Send, reranker: TextEncoder) -> None:
    body = {"query": "a dog", "documents": DOCUMENTS, "top_n": 2, "return_documents": True}
    _, answer = send("rerank", body, reranker)
    assert len(answer["results"]) == 2
    for result in answer["results"]:
        assert result["document"] == {"text": DOCUMENTS[result["index"]]}
    assert len(send("rerank", {**body, "top_n": 99}, reranker)[1]["results"]) == 4


def test_raw_scores_are_logits(send: Send, reranker: TextEncoder) -> None:
    body = {"query": "a dog", "documents": DOCUMENTS}
    _, squashed = send("rerank", body, reranker)
    _, raw = send("rerank", {**body, "raw_scores": True}, reranker)
    found = torch.tensor([result["relevance_score"] for result in raw["results"]]).sigmoid()
    wanted = [result["relevance_score"] for result in squashed["results"]]
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert send("rerank", body, reranker, x_raw_scores="true")[1] == raw


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"documents": DOCUMENTS}, 400),
        ({"query": "", "documents": DOCUMENTS}, 400),
        ({"query": ["a"], "documents": DOCUMENTS}, 400),
        ({"query": "a"}, 400),
        ({"query": "a", "documents": []}, 400),
        ({"query": "a", "documents": "b"}, 400),
        ({"query": "a", "documents": ["b", ""]}, 400),
        ({"query": "a", "documents": ["b", 5]}, 400),
        ({"query": "a", "documents": [{"text": "b", "title": "c"}]}, 400),
        ({"query": "a", "documents": [{"text": 5}]}, 400),
        ({"query": "a", "documents": ["b"], "top_n": 0}, 400),
        ({"query": "a", "documents": ["b"], "top_n": True}, 400),
        ({"query": "a", "documents": ["b"], "top_n": "1"}, 400),
        ({"query": "a", "documents": ["b"], "return_documents": 1}, 400),
        ({"query": "a", "documents": ["b"], "rank_fields": ["text"]}, 400),
        ({"query": "a", "documents": ["b"], "model": "other"}, 404),
        ({"query": "a", "documents": ["b"] * 65}, 413),
        ({"query": "a", "documents": ["word " * 99]}, 400),
    ],
)
def test_refusals(send: Send, reranker: TextEncoder, body: object, status: int) -> None:
    found, answer = send("v1/rerank", body, reranker)
    assert (found, answer.keys()) == (status, {"detail", "message"})


def test_a_model_with_several_labels_does_not_rerank(send: Send, classifier: TextEncoder) -> None:
    status, answer = send("rerank", {"query": "a", "documents": ["b"]}, classifier)
    assert (status, "this one has 3" in answer["detail"]) == (404, True)
    status, answer = send("rerank", {"query": "a", "texts": ["b"]}, classifier)
    assert (status, answer["error_type"]) == (424, "Backend")


class TestTextEmbeddingsInference:
    def test_rerank(self, send: Send, reranker: TextEncoder) -> None:
        wanted = scores(send, reranker)
        status, ranks = send("rerank", {"query": "a dog", "texts": DOCUMENTS, "return_text": True}, reranker)
        assert status == 200
        for rank in ranks:
            assert rank["text"] == DOCUMENTS[rank["index"]]
            np.testing.assert_allclose(rank["score"], wanted[rank["index"]], atol=1e-6)
        assert [rank["score"] for rank in ranks] == sorted((rank["score"] for rank in ranks), reverse=True)
        assert send("rerank", {"query": "a dog", "texts": DOCUMENTS}, reranker)[1][0].keys() == {"index", "score"}

    def test_predict_takes_texts_and_pairs(self, send: Send, classifier: TextEncoder) -> None:
        one = send("predict", {"inputs": "a dog"}, classifier)[1]
        pair = send("predict", {"inputs": ["a dog", "a cat"]}, classifier)[1]
        assert len(one) == len(pair) == 3
        assert send("predict", {"inputs": ["a dog"]}, classifier)[1] == one
        _, batch = send("predict", {"inputs": [["a dog"], ["a dog", "a cat"]]}, classifier)
        for found, wanted in zip(batch, (one, pair), strict=True):
            assert [label["label"] for label in found] == [label["label"] for label in wanted]
            np.testing.assert_allclose(
                [label["score"] for label in found], [label["score"] for label in wanted], atol=1e-6
            )
        own = send("", {"text": "a dog", "text_pair": "a cat"}, classifier)[1]
        assert pair == own

    def test_raw_scores(self, send: Send, classifier: TextEncoder) -> None:
        raw = send("predict", {"inputs": "a dog", "raw_scores": True}, classifier)[1]
        wanted = send("predict", {"inputs": "a dog"}, classifier)[1]
        found = torch.tensor([label["score"] for label in raw]).softmax(0)
        np.testing.assert_allclose(found, [label["score"] for label in wanted], atol=1e-5)

    @pytest.mark.parametrize(
        "inputs", [["a", "b", "c"], ["a", 5], [["a", "b", "c"]], [[]], ["a", ["b"]], [["a"], "b"], 5, {"text": "a"}]
    )
    def test_what_is_no_sequence(self, send: Send, classifier: TextEncoder, inputs: object) -> None:
        status, answer = send("predict", {"inputs": inputs}, classifier)
        assert (status, answer["error_type"]) == (422, "Validation")

    def test_information(self, send: Send, reranker: TextEncoder, classifier: TextEncoder) -> None:
        names = {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
        assert send("info", b"", reranker)[1]["model_type"] == {"reranker": names}
        assert list(send("info", b"", classifier)[1]["model_type"]) == ["classifier"]

    def test_an_overflow_is_no_score(
        self, send: Send, reranker: TextEncoder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(
            reranker.task, "begin", lambda outputs, batch, inputs: lambda: [NotFinite()] * len(inputs)
        )
        status, answer = send("rerank", {"query": "a", "texts": ["b"]}, reranker)
        assert (status, answer["error_type"]) == (424, "Backend")


def test_equal_scores_keep_their_order() -> None:
    answers = [[{"label": "x", "score": score}] for score in (0.5, 0.7, 0.5, 0.7)]
    assert [index for index, _ in ranked(answers)] == [1, 3, 0, 2]


def test_a_zero_vector_is_like_nothing() -> None:
    rows = np.array([[1.0, 0.0], [2.0, 0.0], [0.0, 0.0], [-1.0, 0.0]], np.float32)
    assert cosines(list(rows)).tolist() == [1.0, 0.0, -1.0]
