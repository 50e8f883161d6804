"""NumPy tensors <-> HTTP messages of the protocol v2 with raw bytes, as the handlers' adapter reads and writes them.

So each check, message and name is the adapter's (handlers/protocol/open_inference). Only NumPy is imported, because a
copy of this file lies in each model of a repository.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

HEADER = "Inference-Header-Content-Length"
DTYPES = {
    "UINT8": "u1",
    "INT8": "i1",
    "INT32": "<i4",
    "INT64": "<i8",
    "FP16": "<f2",
    "FP32": "<f4",
    "FP64": "<f8",
    "BOOL": "?",
}
NAMES = {np.dtype(dtype): name for name, dtype in DTYPES.items()}
Tensors = Sequence[tuple[str, NDArray[Any]]]


def written(tensors: Tensors, outputs: Sequence[str], options: Mapping[str, Any]) -> tuple[dict[str, str], bytes]:
    """Return headers and body of the request that holds these tensors.

    Args:
        tensors: names and values; an array of objects holds bytes.
        outputs: names of those that are asked for; empty for all.
        options: the request's parameters.
    """
    inputs, blocks = [], []
    for name, array in tensors:
        described, block = _described(array)
        blocks.append(block)
        inputs.append({"name": name, "shape": list(array.shape), **described})
    head = json.dumps(
        {
            "inputs": inputs,
            "outputs": [{"name": name} for name in outputs],
            "parameters": {**options, "binary_data_output": True},
        }
    ).encode()
    return {"Content-Type": "application/octet-stream", HEADER: str(len(head))}, b"".join([head, *blocks])


def read(headers: Mapping[str, str], body: bytes) -> dict[str, NDArray[Any]]:
    """Return the tensors in an answer, by name. headers: with lower-case names."""
    length = int(headers[HEADER.lower()])
    found, at = {}, length
    for output in json.loads(body[:length])["outputs"]:
        size = output["parameters"]["binary_data_size"]
        found[output["name"]] = _array(output["datatype"], output["shape"], body[at : at + size])
        at += size
    return found


def _described(array: NDArray[Any]) -> tuple[dict[str, Any], bytes]:
    """What the request's JSON says of a tensor, and the tensor's raw bytes behind it.

    Triton makes bytes of the strings that a client sends in JSON, and so hides that an image is in base64. No image's
    file is ASCII alone, so elements that are become strings again.
    """
    if array.dtype.kind not in "OS":
        block = np.ascontiguousarray(array).tobytes()
        datatype = NAMES.get(array.dtype, array.dtype.name.upper())
        return {"datatype": datatype, "parameters": {"binary_data_size": len(block)}}, block
    elements = [item if isinstance(item, bytes) else str(item).encode() for item in array.reshape(-1)]
    if all(element.isascii() for element in elements):
        return {"datatype": "BYTES", "data": [element.decode("ascii") for element in elements]}, b""
    block = b"".join(struct.pack("<I", len(element)) + element for element in elements)
    return {"datatype": "BYTES", "parameters": {"binary_data_size": len(block)}}, block


def _array(datatype: str, shape: Sequence[int], raw: bytes) -> NDArray[Any]:
    if datatype != "BYTES":
        return np.frombuffer(raw, DTYPES[datatype]).reshape(shape)
    elements, at = np.empty(math.prod(shape), dtype=object), 0
    for number in range(len(elements)):
        (length,) = struct.unpack_from("<I", raw, at)
        elements[number] = raw[at + 4 : at + 4 + length]
        at += 4 + length
    return elements.reshape(shape)
