"""Requests to compare two versions of a model with: from files, or made by the model's kind."""

from __future__ import annotations

import io
import mimetypes
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from ready import MASKS, Sample

COUNT, SIZE = 6, 64
SENTENCES = (
    "Where is my parcel?",
    "The meeting was moved to Thursday.",
    "How do I get my money back?",
    "Snow fell on the hills, and the roads were closed until the evening of the next day.",
    "yes",
    "Berlin, 3 May 2021",
)
TYPES = {".npy": "application/octet-stream", ".json": "application/json", ".txt": "text/plain"}


def of_files(paths: Sequence[Path]) -> list[Sample]:
    """One request per file, with the content type that its name has. Raises OSError."""
    return [Sample(path.read_bytes(), _type(path)) for path in paths]


def of_kind(about: Mapping[str, Any]) -> list[Sample]:
    """Requests for a model by its description; none for a kind that is not known. The same ones each time."""
    if about.get("kind") == "image-classifier":
        return [Sample(_picture(seed), "image/png") for seed in range(COUNT)]
    if about.get("kind") == "text-encoder":
        masks = MASKS if about.get("task") == "fill-mask" else ("",)
        return [Sample(f"{text} {mask}".strip().encode(), "text/plain") for mask in masks for text in SENTENCES]
    return []


def _type(path: Path) -> str:
    return TYPES.get(path.suffix.lower()) or mimetypes.guess_type(path.name)[0] or ""


def _picture(seed: int) -> bytes:
    """A PNG of coarse blocks: noise of single pixels would vanish when the image is made smaller."""
    values = random.Random(seed).randbytes(8 * 8 * 3)  # noqa: S311 - a picture, no secret
    picture = Image.frombytes("RGB", (8, 8), values).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    with io.BytesIO() as stream:
        picture.save(stream, "PNG")
        return stream.getvalue()
