"""A load in the Open Inference Protocol (KServe's protocol v2), with raw bytes behind the JSON.

The inputs' names, datatypes and shapes are those of an exported archive in Triton (docs/kserve-triton.md); the
archive's own protocol v2 takes them too.
"""

from __future__ import annotations

import io
import json
import struct
from typing import Any

import numpy as np

from serving_bench.generator import GeneratorError, Load

PATH = "/v2/models/model/infer"
HEADER = "Inference-Header-Content-Length"
RAW = "application/octet-stream"
WIDTH = 256  # bytes of the JSON, filled with spaces: one header has to fit all bodies of a load
NUMPY = b"\x93NUMPY"
PIXELS = {"uint8": ("pixels_uint8", "UINT8"), "float16": ("pixels_fp16", "FP16"), "float32": ("pixels", "FP32")}
KNOWN = ("content-type", "accept")


def translated(load: Load) -> Load:
    """The same requests in protocol v2. Raises GeneratorError for a load that has no form in it."""
    headers = {name.lower(): value for name, value in load.headers.items()}
    if others := [name for name in headers if name not in KNOWN]:
        raise GeneratorError(f"protocol v2 has options in the body, not in headers such as {others[0]}")
    accept = headers.get("accept", "application/json")
    if accept not in (RAW, "application/json"):
        raise GeneratorError(f"protocol v2 has no answers as {accept}")
    bodies = [_body(body, headers.get("content-type", ""), is_raw=accept == RAW) for body in load.bodies]
    return Load(load.name, bodies, {"Content-Type": RAW, HEADER: str(WIDTH)}, load.unit, load.items)


def _body(body: bytes, content_type: str, *, is_raw: bool) -> bytes:
    """JSON of WIDTH bytes, and the tensor's raw bytes behind it. is_raw: ask for outputs as raw bytes."""
    described, block = _tensor(body, content_type)
    head: dict[str, Any] = {"inputs": [{**described, "parameters": {"binary_data_size": len(block)}}]}
    if is_raw:
        head["parameters"] = {"binary_data_output": True}
    return json.dumps(head).encode().ljust(WIDTH) + block


def _tensor(body: bytes, content_type: str) -> tuple[dict[str, Any], bytes]:
    if body.startswith(NUMPY):
        return _pixels(np.load(io.BytesIO(body), allow_pickle=False))
    if content_type.startswith("text/plain"):
        return _elements("text", [body])
    if content_type.startswith("image/") or content_type == RAW:
        return _elements("image", [body])
    if content_type.startswith("application/json"):
        content = json.loads(body)
        if isinstance(content, list) and content and all(isinstance(item, str) for item in content):
            return _elements("text", [item.encode() for item in content])
    raise GeneratorError(f"this load ({content_type or 'without a content type'}) has no form in protocol v2")


def _elements(name: str, values: list[bytes]) -> tuple[dict[str, Any], bytes]:
    """BYTES: each element behind its length."""
    block = b"".join(struct.pack("<I", len(value)) + value for value in values)
    return {"name": name, "datatype": "BYTES", "shape": [len(values), 1]}, block


def _pixels(array: Any) -> tuple[dict[str, Any], bytes]:
    if array.dtype.name not in PIXELS:
        raise GeneratorError(f"an .npy file of {array.dtype.name} has no form in protocol v2")
    name, datatype = PIXELS[array.dtype.name]
    batch = array if array.ndim == 4 else array[None]
    return {"name": name, "datatype": datatype, "shape": list(batch.shape)}, np.ascontiguousarray(batch).tobytes()
