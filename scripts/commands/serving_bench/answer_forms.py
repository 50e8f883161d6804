"""What an answer says, whichever protocol it is written in."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

NUMBERS = {"FP32": "<f4", "FP16": "<f2", "INT64": "<i8"}
BYTES = "BYTES"


def parsed(answer: bytes) -> Any:
    """The content of an answer in JSON. Outputs of protocol v2, also as raw bytes, get the archive's own form.

    Raises ValueError for what is no JSON.
    """
    if not answer.startswith(b"{"):
        return json.loads(answer)
    # latin-1 knows every byte, so the end of the JSON is found in front of raw bytes too.
    _, end = json.JSONDecoder().raw_decode(answer.decode("latin-1"))
    content = json.loads(answer[:end])
    outputs = content.get("outputs")
    if isinstance(outputs, list) and all(isinstance(one, dict) and "datatype" in one for one in outputs):
        return _in_own_form(_tensors(outputs, answer[end:]), content)
    if answer[end:].strip():
        raise ValueError("bytes follow the JSON")
    return content


def _tensors(outputs: Sequence[Mapping[str, Any]], raw: bytes) -> dict[str, Any]:
    """The outputs by name, nested as their shapes are. Raises ValueError."""
    found, at = {}, 0
    for output in outputs:
        size = output.get("parameters", {}).get("binary_data_size")
        if size is None:
            values = output["data"]
        else:
            values = _values(output["datatype"], raw[at : at + size])
            at += size
        found[output["name"]] = np.array(values, object).reshape(output["shape"]).tolist()
    return found


def _values(datatype: str, raw: bytes) -> list[Any]:
    """Raw bytes as numbers or strings. Raises ValueError."""
    if datatype in NUMBERS:
        return list(np.frombuffer(raw, NUMBERS[datatype]).tolist())
    if datatype != BYTES:
        raise ValueError(f"raw bytes of {datatype}")
    found, at = [], 0
    while at < len(raw):
        (length,) = struct.unpack_from("<I", raw, at)
        found.append(raw[at + 4 : at + 4 + length].decode())
        at += 4 + length
    return found


def _in_own_form(tensors: Mapping[str, Any], content: Any) -> Any:
    """A ranking or a vector per input; the content as it came if its outputs are others."""
    if {"labels", "scores"} <= tensors.keys():
        pairs = zip(tensors["labels"], tensors["scores"], strict=True)
        return [
            [{"label": label, "score": score} for label, score in zip(*pair, strict=True)]  # the likeliest first
            for pair in pairs
        ]
    if "embeddings" in tensors:
        return tensors["embeddings"]
    if "answers" in tensors:
        return [json.loads(one) for one in np.array(tensors["answers"], object).ravel()]
    return content
