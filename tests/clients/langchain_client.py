"""LangChain's OpenAIEmbeddings. Without check_embedding_ctx_length=False it sends token ids of OpenAI's tokenizer."""

from __future__ import annotations

import asyncio

import numpy as np
import openai
import tiktoken
from _server import DOCUMENTS, QUERY, SENTENCES, SIZE, TOKEN, raised
from langchain_openai import OpenAIEmbeddings
from pydantic import SecretStr

embeddings = OpenAIEmbeddings(
    model="sentences", base_url=SENTENCES, api_key=SecretStr(TOKEN), check_embedding_ctx_length=False
)
query = np.array(embeddings.embed_query(QUERY))
documents = np.array(embeddings.embed_documents(DOCUMENTS))
assert (query.shape, documents.shape) == ((SIZE,), (3, SIZE))
assert int(np.argmax(documents @ query)) == 1
np.testing.assert_allclose(asyncio.run(embeddings.aembed_query(QUERY)), query, atol=1e-5)

# OpenAI's vocabularies are downloaded; this one has the single bytes alone, whose ids every BERT has too.
BYTES = tiktoken.Encoding(
    "bytes", pat_str=".", mergeable_ranks={bytes([i]): i for i in range(256)}, special_tokens={}
)
tiktoken.get_encoding = tiktoken.encoding_for_model = lambda name: BYTES
as_ids = OpenAIEmbeddings(model="sentences", base_url=SENTENCES, api_key=SecretStr(TOKEN))
error = raised(openai.BadRequestError, lambda: as_ids.embed_query(QUERY))
assert "check_embedding_ctx_length=False" in str(error)
