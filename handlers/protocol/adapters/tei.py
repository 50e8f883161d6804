"""The API of Hugging Face's text-embeddings-inference, behind /predictions/NAME/VERSION: /embed, /rerank, ...

Its /v1/embeddings is OpenAI's, see openai.py. What a request means is taken from its router:
https://github.com/huggingface/text-embeddings-inference/blob/main/router/src/http/types.rs
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from handlers.protocol import encodings, fields
from handlers.protocol.adapter import Adapter, Answer, json_answer
from handlers.protocol.errors import (
    EmptyRequest,
    InferenceFailed,
    InputTooLong,
    InvalidInput,
    InvalidOption,
    RequestError,
    UnknownPath,
    WrongTask,
)
from handlers.protocol.fields import Fields, at, texts
from handlers.protocol.interface import Interface
from handlers.protocol.request import Request
from handlers.protocol.row import Row
from handlers.protocol.text_inputs import (
    TEXT_OPTIONS,
    WANTED,
    cosines,
    pairs,
    ranked,
    refuse_no_reranker,
    refuse_other_tasks,
    texts_or_ids,
)
from handlers.protocol.wording import kind_of

PAIRS = 'a string, a pair ["...", "..."], or a list of lists with one or two strings each'
DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16", "fp8": "float8"}
UNOFFERED = ("tokenize", "decode", "vertex", "metrics")
OF_DESCRIPTION = ("prompts", "embedding")  # that /info tells beside what TEI has
# Status and "error_type", by the error's class; others keep their own status.
KINDS: tuple[tuple[type[RequestError], int | None, str], ...] = (
    (EmptyRequest, 400, "Empty"),
    (InputTooLong, 422, "Validation"),
    (InvalidInput, 422, "Validation"),
    (InvalidOption, 422, "Validation"),
    (WrongTask, 424, "Backend"),
    (InferenceFailed, 424, "Backend"),
    (RequestError, None, "Validation"),
)


class TextEmbeddingsInference(Adapter):
    """One path per operation. TEI's /rerank is told from Jina's and Cohere's by its field "texts"."""

    priority = 2
    by_path = True

    def claims(self, row: Row) -> bool:
        if row.url_path == "rerank":
            return row.object_with("texts") is not None
        return row.url_path in READERS or row.url_path in ASKED or row.url_path in UNOFFERED

    def read(self, row: Row, model: Interface) -> Request:
        if row.url_path in ASKED:
            row.refuse_other_headers()
            row.refuse_body()
            return Request(self, combine=lambda answers: ASKED[row.url_path](model))
        if row.url_path in UNOFFERED:
            known = ", ".join(f"/{path}" for path in (*READERS, *ASKED))
            raise UnknownPath(f"/{row.url_path} is not offered; this is: {known}")
        body, sent = fields.read(row, model)
        return READERS[row.url_path](self, body, sent, model)

    def write(self, request: Request) -> Answer:
        content = request.combine(request.answers)
        return Answer(b"", media_type="text/plain") if content is None else json_answer(content)

    def write_error(self, error: RequestError) -> Answer:
        """Return the error in TEI's shape, with TEI's status."""
        status, kind = next((status, kind) for of, status, kind in KINDS if isinstance(error, of))
        body = {"error": error.message, "error_type": kind, **error.request_ids.fields()}
        return json_answer(body, status or error.status)


def _embed(adapter: Adapter, body: Fields, sent: dict[str, object], model: Interface) -> Request:
    refuse_other_tasks(model, "embeddings")
    inputs = texts_or_ids(body.required("inputs", WANTED), "inputs")
    chosen = body.options((*TEXT_OPTIONS, "normalize", "dimensions"), model)
    body.refuse_rest()
    return Request(adapter, inputs, fields.together(sent, chosen, {"normalize": True}), list)


def _embed_all(adapter: Adapter, body: Fields, sent: dict[str, object], model: Interface) -> Request:
    refuse_other_tasks(model, "embeddings")
    inputs = texts_or_ids(body.required("inputs", WANTED), "inputs")
    chosen = body.options(TEXT_OPTIONS, model)
    body.refuse_rest()
    fields.refuse_others(sent, TEXT_OPTIONS)
    return Request(adapter, inputs, {**fields.together(sent, chosen), encodings.TOKEN_VECTORS: True}, list)


def _embed_sparse(adapter: Adapter, body: Fields, sent: dict[str, object], model: Interface) -> Request:
    refuse_other_tasks(model, "sparse-embeddings")
    inputs = texts_or_ids(body.required("inputs", WANTED), "inputs")
    chosen = body.options((*TEXT_OPTIONS, "max_active_dims"), model)
    body.refuse_rest()
    return Request(adapter, inputs, fields.together(sent, chosen), list)


def _similarity(adapter: Adapter, body: Fields, sent: dict[str, object], model: Interface) -> Request:
    refuse_other_tasks(model, "embeddings")
    inputs = body.inner("inputs")
    parameters = body.inner("parameters")
    chosen = parameters.options(TEXT_OPTIONS, model)
    parameters.refuse_rest()
    body.refuse_rest()
    return similarity(adapter, inputs, sent, chosen)


def similarity(adapter: Adapter, inner: Fields, sent: Mapping[str, object], chosen: Mapping[str, object]) -> Request:
    """Return the request for the cosines of one sentence and others. Raises RequestError.

    Args:
        inner: "source_sentence" and "sentences".
        sent: options of headers.
        chosen: options of the JSON object.
    """
    source = inner.text("source_sentence")
    sentences = inner.required("sentences", "a list of strings")
    inner.refuse_rest()
    if source is None:
        raise at("inputs", InvalidInput('"inputs" holds no "source_sentence"; wanted: a string'))
    options = fields.together(sent, chosen)
    fields.refuse_others(options, (*TEXT_OPTIONS, "dimensions"))
    inputs = [source, *texts(sentences, "sentences")]
    return Request(adapter, inputs, {**options, "encoding_format": encodings.EXACT}, cosines)


def _predict(adapter: Adapter, body: Fields, sent: dict[str, object], model: Interface) -> Request:
    refuse_other_tasks(model, "sequence-classification")
    fields.refuse_others(sent, (*TEXT_OPTIONS, "raw_scores", "top_k"))
    inputs, is_batch = _sequences(body.required("inputs", PAIRS))
    chosen = body.options((*TEXT_OPTIONS, "raw_scores"), model)
    body.refuse_rest()
    combine = list if is_batch else _only
    return Request(adapter, inputs, fields.together(sent, chosen, {"top_k": len(model.labels)}), combine)


def _sequences(value: object) -> tuple[list[object], bool]:
    """Return texts and pairs of texts, and whether they came as a batch. Raises EmptyRequest or InvalidInput."""
    if isinstance(value, str):
        return [value], False
    if not isinstance(value, list):
        raise at("inputs", InvalidInput(f'"inputs" holds {kind_of(value)}; wanted: {PAIRS}'))
    if not value:
        raise at("inputs", EmptyRequest('"inputs" is an empty list'))
    if isinstance(value[0], str):
        return [_sequence(value, '"inputs"')], False
    return [_sequence(item, f'item {place} of "inputs"') for place, item in enumerate(value, 1)], True


def _sequence(value: object, what: str) -> object:
    if isinstance(value, list) and len(value) in (1, 2) and all(isinstance(item, str) for item in value):
        return value[0] if len(value) == 1 else {"text": value[0], "text_pair": value[1]}
    came = f"a list of {len(value)}" if isinstance(value, list) else kind_of(value)
    raise at("inputs", InvalidInput(f"{what} is {came}; wanted: {PAIRS}"))


def _only(answers: Sequence[Any]) -> object:
    return answers[0]


def _rerank(adapter: Adapter, body: Fields, sent: dict[str, object], model: Interface) -> Request:
    refuse_no_reranker(model)
    query = body.required("query", "a string")
    documents = texts(body.required("texts", "a list of strings"), "texts")
    combine = functools.partial(_ranks, documents, body.flag("return_text"))
    chosen = body.options((*TEXT_OPTIONS, "raw_scores"), model)
    body.refuse_rest()
    return Request(adapter, pairs(query, documents), fields.together(sent, chosen), combine)


def _ranks(documents: Sequence[str], with_text: bool, answers: Sequence[Any]) -> object:
    return [
        {"index": index, **({"text": documents[index]} if with_text else {}), "score": score}
        for index, score in ranked(answers)
    ]


def _info(model: Interface) -> object:
    """Return what TEI's /info says, as far as it has a meaning here."""
    precision = str(model.description.get("precision", {}).get("name", ""))
    return {
        "model_id": model.name,
        "model_sha": None,
        "model_dtype": DTYPES.get(precision, precision),
        "served_model_name": model.name,
        "model_type": _model_type(model),
        "max_input_length": model.max_tokens,
        "max_client_batch_size": model.max_inputs,
        "auto_truncate": model.truncates,
        **{name: model.description[name] for name in OF_DESCRIPTION if name in model.description},
    }


def _model_type(model: Interface) -> dict[str, object]:
    if model.pooling:
        return {"embedding": {"pooling": model.pooling}}
    if not model.labels:
        return {model.task: {}}
    by_index = {str(index): label for index, label in enumerate(model.labels)}
    by_label = {label: index for index, label in enumerate(model.labels)}
    kind = "reranker" if len(model.labels) == 1 else "classifier"
    return {kind: {"id2label": by_index, "label2id": by_label}}


def _health(model: Interface) -> object:
    """Return nothing: the model answers."""
    return None


READERS = {
    "embed": _embed,
    "embed_all": _embed_all,
    "embed_sparse": _embed_sparse,
    "predict": _predict,
    "rerank": _rerank,
    "similarity": _similarity,
}
ASKED = {"info": _info, "health": _health}  # which take no body
ADAPTER = TextEmbeddingsInference()
