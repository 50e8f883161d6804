"""Inputs -> the body of a request: texts in JSON, images as the files that they are."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL import Image

Text: TypeAlias = "str | tuple[str, str]"
Picture: TypeAlias = "bytes | Path | NDArray[Any] | Image.Image"
Inputs: TypeAlias = "Sequence[Text | Picture] | NDArray[Any]"  # texts and images do not go together
WANTED = "a list of texts, of pairs of texts, or of images (bytes, Path, array, PIL image), or one array of N images"


def body_of(inputs: Inputs, options: Mapping[str, Any]) -> tuple[dict[str, Any], bool]:
    """Return httpx's arguments for a request, and whether its answer is a list though one input was sent.

    Args:
        options: of the model by name. None leaves one out.

    Raises TypeError, or OSError for a file that cannot be read.
    """
    chosen = {name: value for name, value in options.items() if value is not None}
    if isinstance(inputs, (str, bytes, Path)) or not isinstance(inputs, (Sequence, np.ndarray)) or not len(inputs):
        raise TypeError(f"{type(inputs).__name__} came, or an empty list; wanted: {WANTED}")
    if isinstance(inputs, np.ndarray):
        if inputs.ndim != 4:
            raise TypeError(f"an array of {inputs.ndim} dimensions came; wanted: {WANTED}")
        return {"content": _file(inputs), "headers": _headers(chosen)}, False
    if all(isinstance(item, (str, tuple)) for item in inputs):
        return {"json": {"instances": [_text(item) for item in inputs], "parameters": chosen}}, True
    files = [_file(item) for item in inputs]
    if len(files) == 1:
        return {"content": files[0], "headers": _headers(chosen)}, False
    parts = {f"{place:04}": (f"{place:04}", file, "application/octet-stream") for place, file in enumerate(files)}
    return {"files": parts, "headers": _headers(chosen)}, False


def _headers(options: Mapping[str, Any]) -> dict[str, str]:
    values = {name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in options.items()}
    return {f"X-{name.replace('_', '-').title()}": value for name, value in values.items()}


def _text(item: Any) -> str | dict[str, str]:
    if isinstance(item, str):
        return item
    text, pair = item
    return {"text": text, "text_pair": pair}


def _file(item: Any) -> bytes:
    """An image as a file; an array as a .npy file, and an image of Pillow, turned as its EXIF data say, as PNG."""
    if isinstance(item, (bytes, bytearray, memoryview)):
        return bytes(item)
    if isinstance(item, Path):
        return item.read_bytes()
    stream = io.BytesIO()
    if isinstance(item, np.ndarray):
        np.save(stream, item, allow_pickle=False)
    elif hasattr(item, "save"):
        from PIL import ImageOps

        turned = ImageOps.exif_transpose(item)
        (turned if turned.mode in ("1", "L", "LA", "P", "RGB", "RGBA") else turned.convert("RGB")).save(stream, "PNG")
    else:
        raise TypeError(f"{type(item).__name__} came among the inputs; wanted: {WANTED}")
    return stream.getvalue()
