"""Reranking as Jina and Cohere have it: POST .../rerank, .../v1/rerank or .../v2/rerank behind NAME/VERSION.

TEI's form of /rerank has "texts" instead of "documents", see tei.py.

Sources: https://api.jina.ai/redoc, https://docs.cohere.com/reference/rerank
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from handlers.protocol import fields
from handlers.protocol.adapter import Adapter, Answer, json_answer
from handlers.protocol.errors import EmptyRequest, InvalidInput, RequestError
from handlers.protocol.fields import at
from handlers.protocol.interface import Interface
from handlers.protocol.request import Request
from handlers.protocol.row import Row
from handlers.protocol.text_inputs import pairs, ranked, refuse_no_reranker, refuse_other_model
from handlers.protocol.wording import kind_of

PATHS = ("rerank", "v1/rerank", "v2/rerank")
WANTED = 'a list of strings, or of objects {"text": "..."}'


class Rerank(Adapter):
    """A query and documents -> the documents' scores, the best first."""

    by_path = True

    def claims(self, row: Row) -> bool:
        return row.url_path in PATHS

    def read(self, row: Row, model: Interface) -> Request:
        body, sent = fields.read(row, model)
        refuse_no_reranker(model)
        refuse_other_model(body, model)
        query = body.required("query", "a string")
        documents = _documents(body.required("documents", WANTED))
        combine = functools.partial(
            _results, model.name, documents, body.count("top_n"), body.flag("return_documents")
        )
        chosen = body.options(("truncate", "raw_scores"), model)
        body.refuse_rest()
        return Request(self, pairs(query, documents), fields.together(sent, chosen), combine)

    def write(self, request: Request) -> Answer:
        content: Any = request.combine(request.answers)
        return json_answer({**content, "usage": request.usage})

    def write_error(self, error: RequestError) -> Answer:
        """Return the error as Jina's clients read it ("detail"), and as Cohere's do ("message")."""
        return json_answer(
            {"detail": error.message, "message": error.message, **error.request_ids.fields()}, error.status
        )


def _documents(value: object) -> list[str]:
    """Return the documents' texts. Raises EmptyRequest or InvalidInput."""
    if not isinstance(value, list):
        raise at("documents", InvalidInput(f'"documents" holds {kind_of(value)}; wanted: {WANTED}'))
    if not value:
        raise at("documents", EmptyRequest('"documents" is an empty list'))
    return [_text(item, place) for place, item in enumerate(value, 1)]


def _text(item: object, place: int) -> str:
    text = item["text"] if isinstance(item, dict) and item.keys() == {"text"} else item
    if isinstance(text, str):
        return text
    raise at("documents", InvalidInput(f"document {place} is {kind_of(item)}; wanted: {WANTED}, and nothing beside"))


def _results(
    model: str, documents: Sequence[str], top_n: int | None, with_documents: bool, answers: Sequence[Any]
) -> object:
    results = [
        {
            "index": index,
            "relevance_score": score,
            **({"document": {"text": documents[index]}} if with_documents else {}),
        }
        for index, score in ranked(answers)[:top_n]
    ]
    return {"object": "list", "model": model, "results": results}


ADAPTER = Rerank()
