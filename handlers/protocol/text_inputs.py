"""What several protocols have in common: texts or token ids in one field, and scores of a query's documents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from handlers.protocol.errors import EmptyRequest, InvalidInput, UnknownModel, WrongTask
from handlers.protocol.fields import Fields, at
from handlers.protocol.interface import Interface
from handlers.protocol.request import TokenIds
from handlers.protocol.wording import kind_of

TEXT_OPTIONS = ("truncate", "truncation_direction", "prompt_name")  # of every model of texts, if it has them
WANTED = "a string, token ids, or a list of these"


def refuse_other_tasks(model: Interface, task: str) -> None:
    """Raises WrongTask if the model has another task."""
    if model.task != task:
        raise WrongTask(f"this path is for models of the task {task}; this one's task is {model.task}")


def refuse_no_reranker(model: Interface) -> None:
    """Raises WrongTask if the model does not give one score to a pair of texts."""
    refuse_other_tasks(model, "sequence-classification")
    if len(model.labels) != 1:
        raise WrongTask(f"reranking takes a model with one label, a cross-encoder; this one has {len(model.labels)}")


def refuse_other_model(body: Fields, model: Interface) -> None:
    """Raises UnknownModel if the request names another model than its path; without a name the path's counts."""
    if body.text("model") not in (None, model.name):
        raise at("model", UnknownModel(f"this path serves the model {model.name!r}; ask for that one by its name"))


def texts_or_ids(value: object, name: str) -> list[str | TokenIds]:
    """Return a field's inputs: one string, one list of token ids, or a list of strings and lists of token ids.

    Raises EmptyRequest or InvalidInput.
    """
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list):
        raise at(name, InvalidInput(f'"{name}" holds {kind_of(value)}; wanted: {WANTED}'))
    if not value:
        raise at(name, EmptyRequest(f'"{name}" is an empty list'))
    if type(value[0]) is int:
        return [_token_ids(value, f'"{name}"', name)]
    return [_text_or_ids(item, f'item {place} of "{name}"', name) for place, item in enumerate(value, 1)]


def _text_or_ids(value: object, what: str, name: str) -> str | TokenIds:
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return _token_ids(value, what, name)
    raise at(name, InvalidInput(f"{what} is {kind_of(value)}; wanted: {WANTED}"))


def _token_ids(value: Sequence[object], what: str, name: str) -> TokenIds:
    if not value:
        raise at(name, EmptyRequest(f"{what} is an empty list"))
    for place, token in enumerate(value, 1):
        if type(token) is not int:
            raise at(name, InvalidInput(f"{what} begins as token ids do, and token {place} is {kind_of(token)}"))
    return TokenIds(value)  # type: ignore[arg-type]


def pairs(query: str, documents: Sequence[str]) -> list[object]:
    """Return one input per document: the query and the document as a pair."""
    return [{"text": query, "text_pair": document} for document in documents]


def ranked(answers: Sequence[Any]) -> list[tuple[int, float]]:
    """Return the documents' indices and scores, the best first; equal ones in the order in which they came.

    Args:
        answers: of a model with one label, one per document.
    """
    scores = [float(answer[0]["score"]) for answer in answers]
    return sorted(enumerate(scores), key=lambda pair: -pair[1])


def cosines(embeddings: Sequence[Any]) -> Any:
    """Return the cosine of the first embedding and each other one: (N - 1,) fp32; 0 if one of them is zero.

    Args:
        embeddings: N of them, (hidden,) each.
    """
    rows = np.stack(embeddings).astype(np.float64)
    unit = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return (unit[1:] @ unit[0]).astype(np.float32)
