"""Hugging Face's inference API: {"inputs": ...} to /predictions/NAME itself, as huggingface_hub has it.

Source: https://huggingface.co/docs/inference-providers/tasks/index
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from handlers.protocol import fields, zero_shot
from handlers.protocol.adapter import Adapter, Answer, json_answer
from handlers.protocol.adapters.tei import similarity
from handlers.protocol.content import merged
from handlers.protocol.errors import EmptyRequest, InvalidInput, RequestError
from handlers.protocol.fields import Fields, at
from handlers.protocol.inner_options import PIPELINE_FORM
from handlers.protocol.interface import Interface
from handlers.protocol.request import Combine, Request, one_answer
from handlers.protocol.row import Row

SIMILARITY = {"source_sentence", "sentences"}
INNER: dict[str, dict[str, object]] = {"token-classification": {PIPELINE_FORM: True}}  # by task, added to options


class HuggingFace(Adapter):
    """Claims JSON objects with "inputs" for /predictions/NAME, except KServe v2's, whose inputs have a datatype."""

    priority = 2

    def claims(self, row: Row) -> bool:
        if row.url_path or row.is_kserve or row.is_multipart or row.is_grpc:
            return False
        body = row.object_with("inputs")
        return body is not None and not _is_kserve_v2(body["inputs"])

    def read(self, row: Row, model: Interface) -> Request:
        body, sent = fields.read(row, model)
        if not model.takes_texts:
            raise InvalidInput(f'an object with "inputs" came, which models of texts take; wanted: {model.wanted}')
        value = body.required("inputs", "a string, or a list of strings")
        chosen = _options(body, model)
        if isinstance(value, dict) and value.keys() == SIMILARITY and model.task == "embeddings":
            return similarity(self, Fields(value, '"inputs"'), sent, chosen)
        inputs = value if isinstance(value, list) else [value]
        if not inputs:
            raise at("inputs", EmptyRequest('"inputs" is an empty list'))
        combine = COMBINE.get(model.task, _as_came)(isinstance(value, list))
        if zero_shot.LABELS in {**sent, **chosen}:
            combine = list if isinstance(value, list) else _classes_of_one
        options = {**fields.together(sent, chosen), **INNER.get(model.task, {})}
        return Request(self, inputs, options, combine)

    def write_error(self, error: RequestError) -> Answer:
        """Return TorchServe's shape and, beside it, the key that huggingface_hub reads."""
        return json_answer({**error.body(), "error": error.message}, error.status)


def _is_kserve_v2(inputs: object) -> bool:
    return isinstance(inputs, list) and any(isinstance(item, dict) and "datatype" in item for item in inputs)


def _options(body: Fields, model: Interface) -> dict[str, object]:
    """Return the options of the object and of its "parameters"; the former is how feature extraction has them."""
    names = tuple(model.options)
    parameters = body.inner("parameters")
    chosen = merged(body.options(names, model), parameters.options(names, model))
    parameters.refuse_rest()
    body.refuse_rest()
    return chosen


def _lists(came_as_list: bool) -> Combine:
    """Embeddings and labels: a list per text, also for one text alone."""
    return list


def _classes_of_one(answers: Sequence[Any]) -> object:
    """Candidate labels of one text: the list that InferenceClient reads, instead of transformers' object."""
    return zero_shot.as_classes(answers[0])


def _as_came(came_as_list: bool) -> Combine:
    return list if came_as_list else one_answer


COMBINE: dict[str, Callable[[bool], Combine]] = {
    "embeddings": _lists,
    "sequence-classification": _lists,
}
ADAPTER = HuggingFace()
