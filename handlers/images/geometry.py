"""Where the network's crop lies in a resized image: one geometry for the CPU and for the GPU's kernel."""

from __future__ import annotations

from typing import NamedTuple

from handlers.images.preprocess import Preprocess

# The longest side is at most this many times the shortest one if the whole image is resized, with exactly the
# libraries' pixels. A longer strip would become millions of pixels, of which the crop shows a few.
MAX_ELONGATION = 8


class Placement(NamedTuple):
    """An upright image's size after the resize, and the crop's top left corner in it, all in pixels."""

    width: int
    height: int
    left: int
    top: int


def placement(width: int, height: int, preprocess: Preprocess) -> Placement:
    """Resize and crop of an upright image.

    Args:
        width, height: of the upright image, in pixels.
        preprocess: the archive's settings.
    """
    wide, high = resized_size(width, height, preprocess)
    crop_height, crop_width = preprocess.shape
    rounding = preprocess.crop_rounding
    return Placement(wide, high, crop_start(wide, crop_width, rounding), crop_start(high, crop_height, rounding))


def resized_size(width: int, height: int, preprocess: Preprocess) -> tuple[int, int]:
    """Width and height after the resize, in pixels, rounded down as transformers and torchvision do."""
    edge = preprocess.resize
    if preprocess.resize_mode == "square":
        return preprocess.resize_width or edge, edge
    if width <= height:
        return edge, int(edge * height / width)
    return int(edge * width / height), edge


def crop_start(side: int, size: int, rounding: str) -> int:
    """Index of the crop's first pixel along a side of a resized image.

    Args:
        side: width or height of the resized image, in pixels.
        size: width or height of the crop, in pixels.
        rounding: the setting crop_rounding, "down" or "even".
    """
    margin = side - size
    # Python rounds halves to even, and torchvision.transforms.CenterCrop leaves it to Python.
    return round(margin / 2) if rounding == "even" else margin // 2
