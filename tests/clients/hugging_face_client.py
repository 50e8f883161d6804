"""huggingface_hub's InferenceClient, against the URL of a model."""

from __future__ import annotations

import asyncio

import numpy as np
from _server import DOCUMENTS, INFERENCE, LONG, QUERY, RERANKER, SENTENCES, SIZE, TOKEN, raised
from huggingface_hub import AsyncInferenceClient, InferenceClient
from huggingface_hub.errors import HfHubHTTPError

for url in (SENTENCES, f"{INFERENCE}/predictions/sentences"):
    client = InferenceClient(model=url, token=TOKEN)
    one = client.feature_extraction(QUERY)
    assert one.shape == (1, SIZE)
    many = client.feature_extraction([QUERY, *DOCUMENTS], normalize=True, truncate=True)
    assert many.shape == (4, SIZE)
    np.testing.assert_allclose(many[0], one[0], atol=1e-5)
    raw = client.feature_extraction(QUERY, normalize=False)
    assert np.linalg.norm(raw) > 1.5
    np.testing.assert_allclose(raw / np.linalg.norm(raw), one, atol=1e-5)
    scores = client.sentence_similarity(QUERY, other_sentences=DOCUMENTS)
    np.testing.assert_allclose(scores, many[1:] @ many[0], atol=1e-5)

at_embed = InferenceClient(model=f"{SENTENCES}/embed", token=TOKEN)
np.testing.assert_allclose(at_embed.feature_extraction(QUERY), one, atol=1e-5)
(label,) = InferenceClient(model=RERANKER, token=TOKEN).text_classification("a text", top_k=1)
assert (label.label, 0 < label.score < 1) == ("LABEL_0", True)

error = raised(HfHubHTTPError, lambda: client.feature_extraction(LONG))
assert error.response.status_code == 400
assert "the model takes 256" in str(error)


async def asynchronously() -> None:
    async with AsyncInferenceClient(model=SENTENCES, token=TOKEN) as asynchronous:
        np.testing.assert_allclose(await asynchronous.feature_extraction(QUERY), one, atol=1e-5)


asyncio.run(asynchronously())
