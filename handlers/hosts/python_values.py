"""Python values -> requests, as the protocols' adapters make them of HTTP; and their answers as Python values."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from handlers.protocol import charsets, encodings, options
from handlers.protocol.adapter import Adapter
from handlers.protocol.errors import InvalidImage, InvalidInput, InvalidOption, RequestError
from handlers.protocol.interface import Interface
from handlers.protocol.request import Request, TokenIds, one_answer
from handlers.protocol.row import Row

IMAGES = "an image's file as bytes or path, a PIL image, or a NumPy array as docs/api.md has them"
TEXTS = "a text as str or bytes, a path, a pair of texts as a tuple, or token ids as a list of int"
PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")  # of Pillow; a PNG holds them as they are
OTHER_MODES = ("CMYK", "YCbCr")  # which a decoder turns into RGB, as this does
QUICKLY = 1  # zlib's level: the file goes nowhere


class PythonCalls(Adapter):
    """The adapter of requests that no client has sent: the caller takes their answers as they are."""

    def claims(self, row: Row) -> bool:
        return False

    def read(self, row: Row, model: Interface) -> Request:
        raise NotImplementedError("a Python call has no row")


ADAPTER = PythonCalls()


def options_of(chosen: Mapping[str, object], model: Interface) -> dict[str, object]:
    """Return options of a call, checked. Raises InvalidOption."""
    for name in ("encoding_format", "dtype"):
        if name in chosen:
            raise InvalidOption(f"{name} is for HTTP; here embeddings come as NumPy arrays of float32")
    read = {name: options.read(name, value, model, f"option {name}") for name, value in chosen.items()}
    if "encoding_format" in model.options:
        read["encoding_format"] = encodings.EXACT
    return read


def request_of(value: object, chosen: Mapping[str, object], model: Interface) -> Request:
    """Return the request for one input; one that the model cannot take has its error already.

    Args:
        value: IMAGES, TEXTS, or what JSON would hold.
        chosen: of `options_of`.
    """
    try:
        payload = _text(value) if model.takes_texts else _image(value)
    except RequestError as error:
        return Request(ADAPTER, error=error)
    is_stack = isinstance(value, np.ndarray) and value.ndim == 4
    return Request(ADAPTER, [payload], chosen, list if is_stack else one_answer)


def answer_of(request: Request) -> Any:
    """Return the answer as a Python value, or the request's error."""
    return request.combine(request.answers) if request.error is None else request.error


def _image(value: object) -> object:
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value)
    if isinstance(value, (str, Path)):
        return _file(Path(value))
    if isinstance(value, np.ndarray):
        return _npy(value)
    if isinstance(value, Image.Image):
        return _png(value)
    if isinstance(value, dict):
        return value
    raise InvalidInput(f"an input of type {type(value).__name__} came; wanted: {IMAGES}")


def _text(value: object) -> object:
    if isinstance(value, (str, dict)):
        return value
    if isinstance(value, Path):
        return charsets.text(_file(value))
    if isinstance(value, (bytes, bytearray, memoryview)):
        return charsets.text(bytes(value))
    if isinstance(value, tuple) and len(value) == 2 and all(isinstance(part, str) for part in value):
        return {"text": value[0], "text_pair": value[1]}
    ids = value.tolist() if isinstance(value, np.ndarray) else value
    if isinstance(ids, Sequence) and ids and all(_is_integer(item) for item in ids):
        return TokenIds(int(item) for item in ids)
    raise InvalidInput(f"an input of type {type(value).__name__} came; wanted: {TEXTS}")


def _is_integer(value: object) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "it is no path"
        raise InvalidInput(f"the file cannot be read: {why}; a str is a path for a model of images") from None


def _npy(array: np.ndarray[Any, Any]) -> bytes:
    stream = io.BytesIO()
    try:
        np.save(stream, np.ascontiguousarray(array), allow_pickle=False)
    except ValueError:
        raise InvalidImage(f"a NumPy array of {array.dtype} came; wanted: {IMAGES}") from None
    return stream.getvalue()


def _png(image: Image.Image) -> bytes:
    """The image as a PNG, turned as its EXIF says. So it is resized and cropped as its file would be."""
    if image.mode not in (*PNG_MODES, *OTHER_MODES):
        raise InvalidImage(f"a PIL image of mode {image.mode} came; wanted: one of {', '.join(PNG_MODES)}")
    stream = io.BytesIO()
    upright = ImageOps.exif_transpose(image)
    (upright.convert("RGB") if image.mode in OTHER_MODES else upright).save(stream, "PNG", compress_level=QUICKLY)
    return stream.getvalue()
