"""Make the requests of a load: photographs, tensors, texts, or files as they are."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from server.paths import ROOT

from serving_bench.generator import Load

SAMPLES = ROOT / "archive" / "samples"
PHOTOGRAPHS = ("china.jpg", "flower.jpg")
SIZE = (500, 375)
TEXTS = SAMPLES / "texts.txt"
IMAGE_TYPES = {".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".png": "image/png", ".webp": "image/webp"}
QUALITY = 94  # as cameras and web sites write: 56 KB for 500x375
MOST_BODIES = 64  # of a folder, or of texts: enough different ones
TENSOR_KINDS = {"uint8": np.uint8, "fp16": np.float16, "fp32": np.float32}
TENSOR_BODIES = 2


def images(source: Path | None, size: tuple[int, int] | None) -> Load:
    """One image per request.

    source: a file, a folder, or None for two photographs. size: width and height of the JPEGs to make; None sends the
    files as they are. Raises ValueError if there is no image.
    """
    files = [SAMPLES / name for name in PHOTOGRAPHS] if source is None else _files(source)
    if size is None:
        kinds = {IMAGE_TYPES[file.suffix.lower()] for file in files}
        headers = {"Content-Type": kinds.pop()} if len(kinds) == 1 else {"Content-Type": "application/octet-stream"}
        return Load(f"{len(files)} images as they are", [file.read_bytes() for file in files], headers, "images")
    bodies = [_jpeg(_open(file), size) for file in files]
    mean = sum(map(len, bodies)) / len(bodies) / 1000
    return Load(f"JPEG {size[0]}x{size[1]} ({mean:.0f} KB)", bodies, {"Content-Type": "image/jpeg"}, "images")


def tensors(kind: str, count: int, preprocess: dict[str, Any]) -> Load:
    """.npy files of `count` crops of the photographs: uint8 (N, S, S, 3), or normalised (N, 3, S, S) floats.

    preprocess: size, mean and std, as model-config.yaml has them.
    """
    size = int(preprocess.get("size", 224))
    bodies = []
    for seed in range(TENSOR_BODIES):
        crops = _crops(size, count, seed)
        if kind != "uint8":
            mean = np.asarray(preprocess.get("mean", [0.485, 0.456, 0.406]), np.float32)
            std = np.asarray(preprocess.get("std", [0.229, 0.224, 0.225]), np.float32)
            crops = ((crops / np.float32(255) - mean) / std).transpose(0, 3, 1, 2).astype(TENSOR_KINDS[kind])
        with io.BytesIO() as stream:
            np.save(stream, np.ascontiguousarray(crops))
            bodies.append(stream.getvalue())
    name = f".npy {kind}, {count} image{'s' if count > 1 else ''} ({len(bodies[0]) / 1e6:.1f} MB)"
    return Load(name, bodies, {"Content-Type": "application/octet-stream"}, "images", count)


def texts(file: Path | None, count: int) -> Load:
    """`count` texts per request, from a file with one text per line: text/plain for one, else a JSON list.

    Raises ValueError for a file without texts.
    """
    lines = [line for line in (file or TEXTS).read_text(encoding="utf-8").splitlines() if line.strip()]
    if not lines:
        raise ValueError(f"{file} holds no text; wanted: one per line")
    words = sum(len(line.split()) for line in lines) / len(lines)
    if count == 1:
        bodies = [line.encode() for line in lines[:MOST_BODIES]]
        return Load(f"one text ({words:.0f} words)", bodies, {"Content-Type": "text/plain; charset=utf-8"}, "texts")
    asked = min(MOST_BODIES, max(2, len(lines) // count))
    groups = [[lines[(at * count + index) % len(lines)] for index in range(count)] for at in range(asked)]
    bodies = [json.dumps(group, ensure_ascii=False).encode() for group in groups]
    return Load(
        f"{count} texts as JSON ({words:.0f} words each)",
        bodies,
        {"Content-Type": "application/json"},
        "texts",
        count,
    )


def body(files: Sequence[Path], content_type: str, items: int) -> Load:
    """Files as they are. items: inputs in each."""
    bodies = [file.read_bytes() for file in files]
    mean = sum(map(len, bodies)) / len(bodies)
    name = f"{files[0].name if len(files) == 1 else f'{len(files)} files'} ({mean / 1000:.0f} KB)"
    return Load(name, bodies, {"Content-Type": content_type}, "items", items)


def _files(source: Path) -> list[Path]:
    found = sorted(source.iterdir()) if source.is_dir() else [source]
    found = [file for file in found if file.suffix.lower() in IMAGE_TYPES][:MOST_BODIES]
    if not found:
        raise ValueError(f"{source} holds no image; wanted: a file or a folder of {', '.join(IMAGE_TYPES)}")
    return found


def _open(file: Path) -> Image.Image:
    with Image.open(file) as image:
        return ImageOps.exif_transpose(image).convert("RGB")


def _jpeg(image: Image.Image, size: tuple[int, int]) -> bytes:
    with io.BytesIO() as stream:
        ImageOps.fit(image, size, Image.Resampling.BICUBIC).save(stream, "JPEG", quality=QUALITY)
        return stream.getvalue()


def _crops(size: int, count: int, seed: int) -> NDArray[np.uint8]:
    """Random squares of the photographs, resized."""
    chance = np.random.default_rng(seed)
    photographs = [_open(SAMPLES / name) for name in PHOTOGRAPHS]
    found = []
    for index in range(count):
        image = photographs[(index + seed) % len(photographs)]
        side = int(chance.integers(min(image.size) // 2, min(image.size)))
        left, top = (int(chance.integers(0, length - side + 1)) for length in image.size)
        found.append(np.asarray(image.resize((size, size), box=(left, top, left + side, top + side))))
    return np.stack(found)
