"""curl, against every path of OpenAI's, Hugging Face's, Jina's and Cohere's."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import numpy as np
from _server import DOCUMENTS, INFERENCE, QUERY, RERANKER, SENTENCES, SIZE, TOKEN


def curl(url: str, body: object = None, *options: str) -> tuple[int, Any]:
    """Return the status and the parsed answer; None for an empty one."""
    sent = ["-d", json.dumps(body), "-H", "Content-Type: application/json"] if body is not None else []
    bearer = f"Authorization: Bearer {TOKEN}"
    command = ["curl", "-s", "-w", "\n%{http_code}", "-H", bearer, *sent, *options, url]
    answer, _, status = subprocess.run(command, check=True, capture_output=True, text=True).stdout.rpartition("\n")
    return int(status), json.loads(answer) if answer else None


def right(answer: tuple[int, Any]) -> Any:
    assert answer[0] == 200, answer
    return answer[1]


def embeddings() -> None:
    plain = right(curl(f"{INFERENCE}/predictions/sentences", QUERY))
    openai = right(curl(f"{SENTENCES}/embeddings", {"model": "sentences", "input": QUERY}))
    np.testing.assert_allclose(openai["data"][0]["embedding"], plain, atol=1e-5)
    tei = right(curl(f"{SENTENCES}/embed", {"inputs": [QUERY, *DOCUMENTS], "normalize": True, "truncate": False}))
    np.testing.assert_allclose(tei[0], plain, atol=1e-5)
    assert np.array(right(curl(f"{SENTENCES}/embed_all", {"inputs": "a b"}))).shape == (1, 4, SIZE)
    sentences = {"inputs": {"source_sentence": QUERY, "sentences": DOCUMENTS}}
    cosines = right(curl(f"{SENTENCES}/similarity", sentences))
    np.testing.assert_allclose(cosines, np.array(tei[1:]) @ tei[0], atol=1e-5)


def reranking() -> None:
    scores = [right(curl(f"{RERANKER}/predict", {"inputs": [QUERY, text]}))[0]["score"] for text in DOCUMENTS]
    order = sorted(range(3), key=lambda index: -scores[index])
    for path in ("rerank", "v1/rerank", "v2/rerank"):
        body = {"model": "reranker", "query": QUERY, "documents": DOCUMENTS, "top_n": 2, "return_documents": True}
        answer = right(curl(f"{RERANKER}/{path}", body))
        assert [result["index"] for result in answer["results"]] == order[:2]
        assert answer["results"][0]["document"] == {"text": DOCUMENTS[order[0]]}
    ranks = right(curl(f"{RERANKER}/rerank", {"query": QUERY, "texts": DOCUMENTS}))
    assert [rank["index"] for rank in ranks] == order
    np.testing.assert_allclose([rank["score"] for rank in ranks], [scores[index] for index in order], atol=1e-5)


def information() -> None:
    assert right(curl(f"{SENTENCES}/info"))["model_type"] == {"embedding": {"pooling": "mean"}}
    assert "reranker" in right(curl(f"{RERANKER}/info"))["model_type"]
    assert right(curl(f"{SENTENCES}/health")) is None


def refusals() -> None:
    status, error = curl(f"{SENTENCES}/embed", {"inputs": []})
    assert (status, error["error_type"]) == (400, "Empty")
    status, error = curl(f"{SENTENCES}/embed", {"inputs": [QUERY] * 65})
    assert (status, error["error_type"]) == (413, "Validation")
    status, error = curl(f"{SENTENCES}/rerank", {"query": QUERY, "texts": DOCUMENTS})
    assert (status, error["error_type"]) == (424, "Backend")
    status, error = curl(f"{SENTENCES}/v1/rerank", {"query": QUERY, "documents": DOCUMENTS})
    assert (status, error.keys()) == (404, {"detail", "message", "request_id"})
    status, error = curl(f"{RERANKER}/embeddings", {"input": QUERY})
    assert (status, error["error"]["code"]) == (404, "wrong_task")
    status, error = curl(f"{SENTENCES}/embeddings", None, "-d", '{"input": "a"}')  # curl's own type is a web form
    assert (status, error["error"]["param"]) == (400, None)
    status, error = curl(f"{SENTENCES}/embeddings", None, "-d", '{"input":', "-H", "Content-Type: application/json")
    assert (status, error["error"]["code"]) == (400, "invalid_json")
    status, error = curl(f"{SENTENCES}/nothing", {"inputs": QUERY})
    assert (status, error["type"]) == (404, "UnknownPath")


embeddings()
reranking()
information()
refusals()
