"""Answers of the model -> output tensors, in JSON or as raw bytes behind it."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handlers.protocol import encodings, json_values, zero_shot
from handlers.protocol.adapter import Answer, json_answer
from handlers.protocol.errors import InvalidInput, InvalidOption
from handlers.protocol.interface import Interface
from handlers.protocol.open_inference.envelope import HEADER, Envelope, Wish
from handlers.protocol.wording import names_of

DATATYPES = {"float32": "FP32", "float16": "FP16", "int8": "INT8", "uint8": "UINT8", "int64": "INT64"}


@dataclass(frozen=True)
class Output:
    """An output tensor.

    Args:
        values: of an array's dtype, or bytes for BYTES, row by row.
        shape: of the tensor, whose product is the number of values.
    """

    datatype: str
    shape: tuple[int, ...]
    values: NDArray[Any] | Sequence[bytes]

    @classmethod
    def of_array(cls, array: NDArray[Any]) -> Output:
        return cls(DATATYPES[array.dtype.name], array.shape, array)

    def as_json(self) -> object:
        """Return the values as JSON has them, flat."""
        if isinstance(self.values, np.ndarray):
            return np.ascontiguousarray(self.values).reshape(-1)
        return [value.decode("utf-8") for value in self.values]

    def as_bytes(self) -> bytes:
        """Return the values as raw bytes: little-endian; those of BYTES each behind its length."""
        if isinstance(self.values, np.ndarray):
            return self.values.astype(self.values.dtype.newbyteorder("<"), copy=False).tobytes()
        return b"".join(struct.pack("<I", len(value)) + value for value in self.values)


@dataclass(frozen=True)
class Declared:
    """An output as the model's metadata names it; -1 is a side that differs from request to request."""

    name: str
    datatype: str
    shape: tuple[int, ...]


_SCORES, _LABELS = Declared("scores", "FP32", (-1, -1)), Declared("labels", "BYTES", (-1, -1))
ANSWERS = (Declared("answers", "BYTES", (-1,)),)
_EMBEDDINGS = (Declared("embeddings", "FP32", (-1, -1)),)
BY_TASK = {
    "embeddings": _EMBEDDINGS,
    "image-embeddings": _EMBEDDINGS,
    "image-classification": (_SCORES, _LABELS, Declared("indices", "INT64", (-1, -1))),
    "sequence-classification": (_SCORES, _LABELS),
}


def gives_embeddings(task: str) -> bool:
    """Whether a task's answers are vectors of one length."""
    return BY_TASK.get(task) is _EMBEDDINGS


def declared(task: str) -> tuple[Declared, ...]:
    """Return the outputs of a task; one whose answers fit no tensor has them as JSON, in BYTES."""
    return BY_TASK.get(task, ANSWERS)


def check(envelope: Envelope, options: Mapping[str, Any], model: Interface) -> list[Wish]:
    """Return the outputs that a request gets. Raises InvalidInput or InvalidOption for what there is not."""
    names = [output.name for output in declared(model.task)]
    unknown = [wish.name for wish in envelope.wishes if wish.name not in names]
    if unknown:
        raise InvalidInput(f"unknown output {names_of(unknown)}; known: {', '.join(names)}")
    wishes = list(envelope.wishes) or [Wish(name, envelope.is_binary) for name in names]
    if "encoding_format" in options:
        raise InvalidOption(
            'encoding_format is not for this protocol; raw bytes come with "binary_data_output": true'
        )
    if options.get("dtype") == "float16" and not all(wish.is_binary for wish in wishes):
        raise InvalidOption('FP16 has no form in JSON; ask for raw bytes, with "binary_data_output": true')
    return wishes


def make(task: str, answers: Sequence[Any], options: Mapping[str, Any]) -> dict[str, Output]:
    """Return the outputs of N answers by name: all that `declared` names."""
    if gives_embeddings(task):
        rows = np.stack(answers)  # (N, hidden)
        return {"embeddings": Output.of_array(rows.astype(np.float16) if options.get("dtype") == "float16" else rows)}
    if task in BY_TASK:
        return _classes([zero_shot.as_classes(answer) for answer in answers])
    return {"answers": as_json(answers)}


def as_json(answers: Sequence[Any]) -> Output:
    """Return N answers as (N) BYTES, each in JSON."""
    written = [json_values.dumps(answer) for answer in answers]
    return Output("BYTES", (len(written),), written)


def _classes(answers: Sequence[Sequence[Mapping[str, Any]]]) -> dict[str, Output]:
    """Labels with scores, the same number k per input -> tensors, (N, k) each."""
    shape = (len(answers), len(answers[0]))
    items = [item for answer in answers for item in answer]
    scores = [item["probability"] if "probability" in item else item["score"] for item in items]
    found = {
        "scores": Output.of_array(np.array(scores, np.float32).reshape(shape)),
        "labels": Output("BYTES", shape, [str(item["label"]).encode("utf-8", "replace") for item in items]),
    }
    if all("index" in item for item in items):
        found["indices"] = Output.of_array(np.array([item["index"] for item in items], np.int64).reshape(shape))
    return found


def write(head: Mapping[str, Any], outputs: Mapping[str, Output], wishes: Sequence[Wish]) -> Answer:
    """Return the answer that holds the outputs asked for.

    Args:
        head: what comes before "outputs": the model's name, the request's id.
    """
    described, blocks = [], []
    for wish in wishes:
        output = outputs[wish.name]
        said: dict[str, object] = {"name": wish.name, "datatype": output.datatype, "shape": list(output.shape)}
        if wish.is_binary:
            blocks.append(output.as_bytes())
            described.append({**said, "parameters": {"binary_data_size": len(blocks[-1])}})
        else:
            described.append({**said, "data": output.as_json()})
    answer = json_answer({**head, "outputs": described})
    if not blocks:
        return answer
    headers = {HEADER.title(): str(len(answer.body))}
    return Answer(b"".join((answer.body, *blocks)), media_type=encodings.RAW, headers=headers)
