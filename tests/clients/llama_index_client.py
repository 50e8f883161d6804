"""LlamaIndex: its embeddings of OpenAI's kind, and those of text-embeddings-inference."""

from __future__ import annotations

import asyncio

import numpy as np
from _server import DOCUMENTS, LONG, QUERY, SENTENCES, SIZE, TOKEN
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from llama_index.embeddings.text_embeddings_inference import TextEmbeddingsInference

like_openai = OpenAILikeEmbedding(model_name="sentences", api_base=SENTENCES, api_key=TOKEN)
like_tei = TextEmbeddingsInference(
    model_name="sentences", base_url=SENTENCES, auth_token=f"{TOKEN}", query_instruction="", text_instruction=""
)
found = []
for model in (like_openai, like_tei):
    query = np.array(model.get_query_embedding(QUERY))
    documents = np.array(model.get_text_embedding_batch(DOCUMENTS))
    assert (query.shape, documents.shape) == ((SIZE,), (3, SIZE))
    assert int(np.argmax(documents @ query)) == 1
    np.testing.assert_allclose(asyncio.run(model.aget_query_embedding(QUERY)), query, atol=1e-5)
    found.append(query)
np.testing.assert_allclose(found[0], found[1], atol=1e-5)
assert len(like_tei.get_text_embedding(LONG)) == SIZE  # it asks for truncation by itself
