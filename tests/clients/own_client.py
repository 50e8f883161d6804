"""The project's own client, in client/: every kind of input and answer, refusals, and many requests at once."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
from _server import DOCUMENTS, GRPC, INFERENCE, LONG, QUERY, SIZE, TOKEN, raised
from torchserve_fast_client import AsyncClient, Client, RequestFailed

SAMPLES = Path("archive/digits/samples")
SEVEN, THREE = SAMPLES / "seven.png", SAMPLES / "three.png"


def texts(client: Client) -> None:
    vectors = client.embed("sentences", [QUERY, *DOCUMENTS])
    assert vectors.shape == (4, SIZE)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(client.embed("sentences/1.0", [QUERY]), vectors[:1], atol=1e-5)
    np.testing.assert_allclose(client.predict("sentences", [QUERY]), vectors[:1], atol=1e-5)
    half = client.embed("sentences", [QUERY], dtype="float16", normalize=True)
    assert half.dtype == np.float16
    assert client.embed("sentences", [LONG], truncate=True).shape == (1, SIZE)
    ranks = client.rerank("reranker", QUERY, DOCUMENTS)
    pairs = client.classify("reranker", [(QUERY, document) for document in DOCUMENTS])
    assert sorted(rank.index for rank in ranks) == [0, 1, 2]
    assert [rank.score for rank in ranks] == sorted((labels[0].score for labels in pairs), reverse=True)
    assert client.rerank("reranker", QUERY, DOCUMENTS, top_n=1) == ranks[:1]


def images(client: Client) -> None:
    pixels = np.zeros((2, 32, 32, 3), np.uint8)
    sent: list[tuple[list[bytes | Path], list[str]]] = [
        ([SEVEN], ["7"]),
        ([SEVEN.read_bytes(), THREE], ["7", "3"]),
        ([THREE] * 12, ["3"] * 12),
    ]
    for files, wanted in sent:
        found = client.classify("digits", files, top_k=1)
        assert [labels[0].label for labels in found] == wanted
        assert all(len(labels) == 1 and labels[0].index is not None for labels in found)
    blank = client.classify("digits", pixels)
    assert blank == client.classify("digits", [*pixels])
    assert blank[:1] == client.classify("digits", pixels[:1])


def refusals(client: Client) -> None:
    for status, kind, model, sent in (
        (400, "InputTooLong", "sentences", [LONG]),
        (406, "NotAcceptable", "digits", [SEVEN]),
        (404, "ModelNotFoundException", "nosuch", ["a"]),
        (413, "PayloadTooLarge", "sentences", ["a"] * 65),
    ):
        error = raised(RequestFailed, lambda: client.embed(model, sent))  # noqa: B023 - called at once
        assert (error.status, error.type) == (status, kind)
    error = raised(RequestFailed, lambda: client.embed("sentences", ["a"], truncat=True))
    assert "'truncat'" in error.message
    assert raised(RequestFailed, lambda: client.classify("sentences", ["a"])).type == "UnexpectedAnswer"
    with Client(INFERENCE, "wrong") as other:
        assert raised(RequestFailed, lambda: other.embed("sentences", ["a"])).type == "InvalidKeyException"
    with Client(f"http://{GRPC.rpartition(':')[0]}:1", attempts=2) as other:
        error = raised(RequestFailed, lambda: other.embed("sentences", ["a"]))
        assert (error.status, error.is_safe_to_retry) == (None, True)


async def many_at_once() -> None:
    """Bad ones among them; each gets its own answer, and TorchServe batches them."""
    async with AsyncClient(INFERENCE, lambda: TOKEN) as client:
        wanted = await client.embed("sentences", DOCUMENTS)
        sent = [DOCUMENTS[index % 3] if index % 5 else LONG for index in range(60)]
        found = await asyncio.gather(*(client.embed("sentences", [text]) for text in sent), return_exceptions=True)
        digits = await asyncio.gather(*(client.classify("digits", [path]) for path in (SEVEN, THREE) * 10))
    for text, vectors in zip(sent, found, strict=True):
        if text is LONG:
            assert isinstance(vectors, RequestFailed)
            assert vectors.status == 400
        else:
            assert not isinstance(vectors, BaseException)
            np.testing.assert_allclose(vectors[0], wanted[DOCUMENTS.index(text)], atol=1e-5)
    assert [labels[0].label for (labels,) in digits] == ["7", "3"] * 10


with Client(INFERENCE, TOKEN) as client:
    texts(client)
    images(client)
    refusals(client)
asyncio.run(many_at_once())
