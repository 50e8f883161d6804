"""Protocols give the numbers of sentence-transformers: a CrossEncoder's scores, and shorter embeddings."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentence_transformers import CrossEncoder, SentenceTransformer

from archive.trial_run import TrialContext
from handlers.text_encoder import TextEncoder

QUERY = "How do I get my money back?"
DOCUMENTS = ["Return it within 30 days.", "The meeting was moved.", "Money", "A refund takes a week, as a rule."]


class PathContext(TrialContext):
    """A context whose request came as JSON by a path behind NAME/VERSION."""

    path = ""

    def get_all_request_header(self, idx: int) -> dict[str, Any]:
        rest = {"content-length": "9", "explain": "False", "content-type": "application/json"}
        return {**rest, "url_path": self.path}


def send(handler: TextEncoder, path: str, body: object) -> Any:
    context = PathContext(Path(), "parity", {})
    context.path = path
    (answer,) = handler.handle([{"body": body}], context)
    assert context.statuses[0] == 200, answer
    return json.loads(answer)


@pytest.mark.parametrize("family", ["distilbert", "xlm-roberta"])
@pytest.mark.parametrize("activation", ["Sigmoid", "Identity"])
def test_documents_are_ranked_as_a_cross_encoder_does(
    checkpoint: Callable[..., Path],
    serve_texts: Callable[..., TextEncoder],
    tmp_path: Path,
    family: str,
    activation: str,
) -> None:
    import torch

    plain = checkpoint(family, "AutoModelForSequenceClassification", id2label={0: "relevance"})
    model = CrossEncoder(str(plain), device="cpu", activation_fn=getattr(torch.nn, activation)())
    model.save_pretrained(str(tmp_path / "reranker"))
    handler = serve_texts(tmp_path / "reranker")
    wanted = model.rank(QUERY, DOCUMENTS, top_k=3, return_documents=True)
    jina = send(handler, "v1/rerank", {"query": QUERY, "documents": DOCUMENTS, "top_n": 3, "return_documents": True})
    tei = send(handler, "rerank", {"query": QUERY, "texts": DOCUMENTS})
    for found, rank, theirs in zip(jina["results"], tei, wanted, strict=False):
        assert found["index"] == rank["index"] == theirs["corpus_id"]
        assert found["document"]["text"] == theirs["text"]
        np.testing.assert_allclose([found["relevance_score"], rank["score"]], theirs["score"], atol=2e-5)
    raw = send(handler, "rerank", {"query": QUERY, "texts": DOCUMENTS, "raw_scores": True})
    logits = model.predict([(QUERY, text) for text in DOCUMENTS], activation_fn=torch.nn.Identity())
    for rank in raw:
        np.testing.assert_allclose(rank["score"], logits[rank["index"]], atol=5e-5)


def test_shorter_embeddings_and_similarity(minilm: Path, serve_texts: Callable[..., TextEncoder]) -> None:
    handler = serve_texts(minilm, dimensions=[64, 128])
    model = SentenceTransformer(str(minilm), device="cpu", truncate_dim=64)
    wanted = model.encode(DOCUMENTS, normalize_embeddings=True)
    body = {"input": DOCUMENTS, "dimensions": 64}
    found = [item["embedding"] for item in send(handler, "embeddings", body)["data"]]
    unit = np.array(found) / np.linalg.norm(found, axis=1, keepdims=True)
    np.testing.assert_allclose(unit, wanted, atol=2e-5)
    np.testing.assert_allclose(send(handler, "embed", {"inputs": DOCUMENTS, "dimensions": 64}), wanted, atol=2e-5)
    whole = SentenceTransformer(str(minilm), device="cpu")
    cosines = whole.similarity(whole.encode([QUERY]), whole.encode(DOCUMENTS))[0]
    sentences = {"inputs": {"source_sentence": QUERY, "sentences": DOCUMENTS}}
    np.testing.assert_allclose(send(handler, "similarity", sentences), cosines, atol=2e-5)
