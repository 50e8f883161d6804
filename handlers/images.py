"""Encoded images -> uint8 crops -> one normalised batch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Preprocess:
    """How an image becomes what the network was trained on.

    size: side of the square the network sees, in pixels.
    resize: the side that is resized to before the centre crop, in pixels (256 for a 224 crop, say).
    resize_mode: "shortest_edge" keeps the aspect ratio, the shorter side becomes `resize`;
        "square" squashes the image to resize x resize.
    interpolation: "nearest", "bilinear", "bicubic", "lanczos", "box" or "hamming", as in Pillow.
    mean, std: per channel, of values scaled to 0..1.
    """

    size: int
    resize: int
    resize_mode: str = "shortest_edge"
    interpolation: str = "bilinear"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
