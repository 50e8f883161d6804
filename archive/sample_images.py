"""The images that the parity gate takes if no others are given."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image, ImageOps

SAMPLES = Path(__file__).parent / "samples"


def photographs() -> list[bytes]:
    """Return sixteen PNG images made from two photographs, for networks that know photographs."""
    return [png for name in ("china.jpg", "flower.jpg") for png in _views(SAMPLES / name)]


def _views(path: Path) -> list[bytes]:
    """Return eight different images of one photograph: all of it, three cut-outs, and their mirror images."""
    with Image.open(path) as photo:
        whole = photo.convert("RGB")
    width, height = whole.size
    side = min(width, height) * 2 // 3
    boxes = [(0, 0, side, side), (width - side, 0, width, side), (0, height - side, side, height)]
    images = [whole, *(whole.crop(box) for box in boxes)]
    return [_png(view) for image in images for view in (image, ImageOps.mirror(image))]


def _png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()
