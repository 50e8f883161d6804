"""Tensors of a request -> inputs of the model: texts, pairs of texts, files of images, or ready tensors as .npy."""

from __future__ import annotations

import base64
import dataclasses
import io
import itertools
import math
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handlers.protocol import charsets
from handlers.protocol.errors import EmptyRequest, InvalidInput
from handlers.protocol.interface import Interface
from handlers.protocol.open_inference.envelope import Tensor
from handlers.protocol.wording import kind_of

TEXT, PAIR, IMAGE = "text", "text_pair", "image"
# Datatypes of tensors that an image classifier takes; their shapes are those of .npy files.
PIXELS: dict[str, np.dtype[Any]] = {"UINT8": np.dtype("u1"), "FP16": np.dtype("<f2"), "FP32": np.dtype("<f4")}
CONTENT_TYPES = {"str": "texts", "base64": "files of images", "np": "tensors"}  # MLServer's, and what has them here


def from_base64(tensor: Tensor) -> Tensor:
    """Return a tensor of BYTES, which TorchServe's gRPC puts into base64, decoded. Raises InvalidInput."""
    if tensor.datatype != "BYTES" or tensor.data is None:
        return tensor
    try:
        elements = [base64.b64decode(element, validate=True) for element in tensor.data]
    except (TypeError, ValueError):
        raise InvalidInput(f"{tensor.what} holds elements that are not base64") from None
    return dataclasses.replace(tensor, data=elements)


def inputs_of(tensors: Sequence[Tensor], model: Interface) -> list[object]:
    """Return one input per element of BYTES tensors, or one .npy file for a tensor of pixels. Raises RequestError."""
    names = [tensor.name for tensor in tensors]
    if len(tensors) == 1 and names != [PAIR]:
        return _of_one(tensors[0], model)
    if model.takes_pairs and sorted(names) == [TEXT, PAIR]:
        first, second = (_of_one(tensors[names.index(name)], model) for name in (TEXT, PAIR))
        if len(first) != len(second):
            raise InvalidInput(f'"{TEXT}" holds {len(first)} texts and "{PAIR}" {len(second)}; wanted: as many')
        return [{TEXT: text, PAIR: pair} for text, pair in zip(first, second, strict=True)]
    pairs = f', or "{TEXT}" and "{PAIR}"' if model.takes_pairs else ""
    wanted = f"wanted: one input{pairs}; several {'texts' if model.takes_texts else 'images'} are one tensor"
    raise InvalidInput(f"{len(tensors)} input tensors came that do not go together; {wanted} of the shape [N]")


def _of_one(tensor: Tensor, model: Interface) -> list[object]:
    if tensor.datatype == "BYTES":
        _refuse_content_type(tensor, "str" if model.takes_texts else "base64")
        elements = _bytes_elements(tensor, model)
        return [_element(value, f"element {n} of {tensor.what}", model) for n, value in enumerate(elements, 1)]
    if tensor.datatype in PIXELS and model.takes_images and not model.takes_texts:
        _refuse_content_type(tensor, "np")
        return [_npy(tensor)]
    wanted = "BYTES" if model.takes_texts else f"BYTES, {', '.join(PIXELS)}"
    raise InvalidInput(f"{tensor.what} has another datatype than the model takes; wanted: {wanted}")


def _refuse_content_type(tensor: Tensor, wanted: str) -> None:
    if tensor.content_type not in ("", wanted):
        raise InvalidInput(
            f"{tensor.what} of datatype {tensor.datatype} has the parameter content_type; the model takes it as "
            f"{CONTENT_TYPES[wanted]}: {wanted!r}"
        )


def _element(value: object, what: str, model: Interface) -> object:
    """An element of BYTES as the model takes it: a str, which is base64 for an image, or bytes of an image's file."""
    if isinstance(value, str):
        return value
    if not isinstance(value, bytes):
        raise InvalidInput(f"{what} holds {kind_of(value)}; wanted: a string")
    if model.takes_texts:
        return charsets.text(value, None, what)
    if not value:
        raise EmptyRequest(f"{what} is empty; wanted: {model.wanted}")
    charsets.refuse_compressed(value, what)
    return value


def _bytes_elements(tensor: Tensor, model: Interface) -> Sequence[object]:
    """The N elements of a tensor of BYTES, (N) or (N, 1). Raises RequestError."""
    if len(tensor.shape) > 2 or tensor.shape[1:] not in ((), (1,)):
        raise InvalidInput(f"{tensor.what} has the shape {list(tensor.shape)}; wanted for BYTES: [N] or [N, 1]")
    count = tensor.shape[0]
    if count == 0:
        raise EmptyRequest(f"{tensor.what} holds no element; wanted: {model.wanted}")
    model.refuse_many(count)
    if tensor.raw is None:
        return _flat(tensor)
    return _split(tensor.raw, count, tensor.what)


def _split(raw: memoryview, count: int, what: str) -> list[bytes]:
    """Elements of BYTES, each behind its length, which is a little-endian uint32."""
    elements, at = [], 0
    for number in range(1, count + 1):
        if at + 4 > len(raw):
            raise InvalidInput(f"the raw bytes of {what} end before element {number} of {count}")
        (length,) = struct.unpack_from("<I", raw, at)
        at += 4
        if at + length > len(raw):
            raise InvalidInput(f"element {number} of {what} is said to have {length} bytes; {len(raw) - at} are left")
        elements.append(bytes(raw[at : at + length]))
        at += length
    if at < len(raw):
        raise InvalidInput(f"{len(raw) - at} raw bytes of {what} are left behind its {count} elements")
    return elements


def _flat(tensor: Tensor) -> list[Any]:
    """A tensor's elements in JSON, row by row; nested as its shape is, or flat. Raises InvalidInput."""
    elements, shape = tensor.data or [], tensor.shape
    if not any(isinstance(item, list) for item in elements):
        if len(elements) != math.prod(shape):
            raise InvalidInput(
                f"{tensor.what} has {len(elements)} elements, and its shape {list(shape)} has {math.prod(shape)}"
            )
        return elements
    rows = [elements]
    for side in shape[:-1]:
        if any(len(row) != side for row in rows) or not all(isinstance(item, list) for row in rows for item in row):
            raise _misshapen(tensor)
        rows = list(itertools.chain.from_iterable(rows))
    if any(len(row) != shape[-1] for row in rows) or any(isinstance(item, list) for row in rows for item in row):
        raise _misshapen(tensor)
    return list(itertools.chain.from_iterable(rows))


def _misshapen(tensor: Tensor) -> InvalidInput:
    return InvalidInput(f"the lists of {tensor.what} are not nested as its shape {list(tensor.shape)} says")


def _npy(tensor: Tensor) -> bytes:
    """A tensor of pixels as the .npy file of the same values, which images/preparation.py checks and reads."""
    dtype = PIXELS[tensor.datatype]
    size = math.prod(tensor.shape) * dtype.itemsize
    if tensor.raw is not None and len(tensor.raw) != size:
        raise InvalidInput(f"{tensor.what} has {len(tensor.raw)} raw bytes, and its shape and datatype {size}")
    stream = io.BytesIO()
    header = {"descr": dtype.str, "fortran_order": False, "shape": tensor.shape}
    np.lib.format.write_array_header_1_0(stream, header)  # type: ignore[no-untyped-call, unused-ignore]
    stream.write(tensor.raw if tensor.raw is not None else _numbers(tensor, dtype).tobytes())
    return stream.getvalue()


def _numbers(tensor: Tensor, dtype: np.dtype[Any]) -> NDArray[Any]:
    """The elements that came in JSON, as `dtype`. Raises InvalidInput."""
    elements = _flat(tensor)
    kinds = set(map(type, elements))
    if not kinds <= ({int} if dtype.kind == "u" else {int, float}):
        raise InvalidInput(f"{tensor.what} holds elements that are no numbers of its datatype {tensor.datatype}")
    if dtype.kind == "u" and elements and not 0 <= min(elements) <= max(elements) <= np.iinfo(dtype).max:
        raise InvalidInput(f"{tensor.what} holds numbers beyond its datatype {tensor.datatype}")
    with np.errstate(over="ignore"):  # what becomes infinite is refused with the other values that no image has
        return np.array(elements, np.float64 if dtype.kind == "f" else dtype).astype(dtype)
