"""What both clients send and read: one call per kind of answer."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar
from urllib.parse import quote

import httpx
import numpy as np
from numpy.typing import NDArray

from torchserve_fast_client import _results
from torchserve_fast_client._errors import refused, unexpected
from torchserve_fast_client._inputs import Inputs, body_of

T = TypeVar("T")
R = TypeVar("R")
NPY = "application/x-npy"


@dataclass(frozen=True)
class Call(Generic[T]):
    """A request, and how its answer is read."""

    path: str
    arguments: Mapping[str, Any]
    read: Callable[[httpx.Response], T]

    def then(self, work: Callable[[T], R]) -> Call[R]:
        """Return the call whose answer is worked on."""
        return Call(self.path, self.arguments, lambda response: work(self.read(response)))

    def answer(self, response: httpx.Response) -> T:
        """Return the answer. Raises RequestFailed if it is a refusal, or an answer of another form."""
        if response.status_code != httpx.codes.OK:
            raise refused(response)
        try:
            return self.read(response)
        except (EOFError, IndexError, KeyError, TypeError, ValueError):
            raise unexpected(response) from None


def predict(model: str, inputs: Inputs, options: Mapping[str, Any]) -> Call[list[Any]]:
    """Return the call for the answers of any model, as JSON has them, in the order of the inputs."""
    arguments, has_predictions = body_of(inputs, options)

    def read(response: httpx.Response) -> list[Any]:
        content = response.json()
        answers = content["predictions"] if has_predictions else content if len(inputs) > 1 else [content]
        if len(answers) != len(inputs):
            raise ValueError
        return list(answers)

    return Call(f"/predictions/{quote(model)}", arguments, read)


def embed(model: str, inputs: Inputs, options: Mapping[str, Any]) -> Call[NDArray[np.floating[Any]]]:
    """Return the call for embeddings, (N, numbers)."""
    arguments, _ = body_of(inputs, options)
    headers = {**arguments.pop("headers", {}), "Accept": NPY}

    def read(response: httpx.Response) -> NDArray[np.floating[Any]]:
        found: NDArray[np.floating[Any]] = np.load(io.BytesIO(response.content), allow_pickle=False)
        if len(found) != len(inputs):
            raise ValueError
        return found

    return Call(f"/predictions/{quote(model)}", {**arguments, "headers": headers}, read)


def classify(model: str, inputs: Inputs, options: Mapping[str, Any]) -> Call[list[list[_results.Label]]]:
    """Return the call for labels, likeliest first."""
    return predict(model, inputs, options).then(
        lambda answers: [[_results.label_of(item) for item in answer] for answer in answers]
    )


def entities(model: str, texts: Sequence[str], options: Mapping[str, Any]) -> Call[list[list[_results.Entity]]]:
    """Return the call for the entities of texts."""
    return predict(model, texts, options).then(
        lambda answers: [[_results.entity_of(item) for item in answer] for answer in answers]
    )


def rerank(
    model: str, query: str, documents: Sequence[str], top_n: int | None, options: Mapping[str, Any]
) -> Call[list[_results.Rank]]:
    """Return the call for documents' scores, the best first."""
    pairs = [(query, document) for document in documents]
    return predict(model, pairs, options).then(lambda answers: _results.ranked(answers, top_n))
