"""OpenAI's Python client: text, lists, token ids, both encodings, and how it takes a refusal."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import openai
from _server import DOCUMENTS, INFERENCE, LONG, QUERY, SENTENCES, SIZE, TOKEN, raised

client = openai.OpenAI(base_url=SENTENCES, api_key=TOKEN)


def refusal(**sent: object) -> tuple[type[openai.APIStatusError], int, str, str]:
    """Return the client's error for a request that has to be refused."""
    whole: dict[str, Any] = {"model": "sentences", "input": QUERY, **sent}
    error = raised(openai.APIStatusError, lambda: client.embeddings.create(**whole))
    assert isinstance(error.body, dict)
    assert error.body.keys() == {"message", "type", "param", "code"}
    return type(error), error.status_code, str(error.code), str(error.param)


def test_answers() -> None:
    one = client.embeddings.create(model="sentences", input=QUERY)  # the client asks for base64 by itself
    numbers = client.embeddings.create(model="sentences", input=QUERY, encoding_format="float", user="somebody")
    assert (one.object, one.model, len(one.data), one.data[0].index) == ("list", "sentences", 1, 0)
    assert one.usage.prompt_tokens == one.usage.total_tokens == 10
    assert len(one.data[0].embedding) == SIZE
    np.testing.assert_allclose(one.data[0].embedding, numbers.data[0].embedding, atol=1e-6)
    many = client.embeddings.create(model="sentences", input=[QUERY, *DOCUMENTS])
    vectors = np.array([item.embedding for item in many.data])
    np.testing.assert_allclose(vectors[0], one.data[0].embedding, atol=1e-5)
    assert int(np.argmax(vectors[1:] @ vectors[0])) == 1
    whole = client.embeddings.create(model="sentences", input=QUERY, dimensions=SIZE)
    np.testing.assert_allclose(whole.data[0].embedding, vectors[0], atol=1e-5)
    cut = client.embeddings.create(model="sentences", input=LONG, extra_headers={"X-Truncate": "true"})
    assert cut.usage.prompt_tokens == 256  # as they ran, after the cut
    elsewhere = openai.OpenAI(base_url=f"{SENTENCES}/v1", api_key=TOKEN)
    assert elsewhere.embeddings.create(model="sentences", input=QUERY).data[0].embedding == one.data[0].embedding


def test_token_ids() -> None:
    text = client.embeddings.create(model="sentences", input="hello world")
    for ids in ([101, 7592, 2088, 102], [[101, 7592, 2088, 102]]):
        same = client.embeddings.create(model="sentences", input=ids)
        np.testing.assert_allclose(same.data[0].embedding, text.data[0].embedding, atol=1e-5)
        assert same.usage == text.usage
    assert refusal(input=[15339, 1917])[1:3] == (400, "invalid_input")  # "hello world" as tiktoken has it
    assert refusal(input=[101, 100257, 102])[1:3] == (400, "invalid_input")


def test_refusals() -> None:
    assert refusal(input=LONG) == (openai.BadRequestError, 400, "context_length_exceeded", "input")
    assert refusal(model="text-embedding-3-small") == (openai.NotFoundError, 404, "model_not_found", "model")
    assert refusal(dimensions=100) == (openai.BadRequestError, 400, "invalid_option", "dimensions")
    assert refusal(input="") == (openai.BadRequestError, 400, "empty_request", "input")
    assert refusal(input=[])[1:] == (400, "empty_request", "input")
    assert refusal(extra_body={"truncate_prompt": 1})[1] == 400
    assert refusal(input=[QUERY] * 65)[1:3] == (413, "payload_too_large")


def test_what_torchserve_refuses() -> None:
    """Its errors have another shape, which the client reports all the same."""
    for key, url, wanted in (
        ("wrong", SENTENCES, openai.BadRequestError),  # TorchServe says 400, and not 401
        (TOKEN, f"{INFERENCE}/predictions/nosuch/1.0", openai.NotFoundError),
    ):
        other = openai.OpenAI(base_url=url, api_key=key)
        raised(wanted, lambda: other.embeddings.create(model="sentences", input="x"))  # noqa: B023 - called at once


def test_refusals_are_not_retried() -> None:
    sent: list[int] = []
    client = openai.OpenAI(base_url=SENTENCES, api_key=TOKEN, max_retries=3)
    send = client._client.send

    def counted(*args: Any, **kwargs: Any) -> Any:
        sent.append(1)
        return send(*args, **kwargs)

    client._client.send = counted
    raised(openai.BadRequestError, lambda: client.embeddings.create(model="sentences", input=LONG))
    assert len(sent) == 1


async def test_many_at_once() -> None:
    wanted = client.embeddings.create(model="sentences", input=DOCUMENTS)
    async with openai.AsyncOpenAI(base_url=SENTENCES, api_key=TOKEN) as asynchronous:
        texts = [DOCUMENTS[0], LONG, DOCUMENTS[1], "", DOCUMENTS[2]] * 4
        calls = [asynchronous.embeddings.create(model="sentences", input=text) for text in texts]
        answers = await asyncio.gather(*calls, return_exceptions=True)
    refused = [index for index, answer in enumerate(answers) if isinstance(answer, openai.BadRequestError)]
    assert refused == [index for index, text in enumerate(texts) if text not in DOCUMENTS]
    for text, answer in zip(texts, answers, strict=True):
        if not isinstance(answer, BaseException):
            embedding = wanted.data[DOCUMENTS.index(text)].embedding
            np.testing.assert_allclose(answer.data[0].embedding, embedding, atol=1e-5)


test_answers()
test_token_ids()
test_refusals()
test_what_torchserve_refuses()
test_refusals_are_not_retried()
asyncio.run(test_many_at_once())
