"""A decoded image -> the crop that the network sees, on the CPU."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from handlers.images.geometry import MAX_ELONGATION, Placement, placement
from handlers.images.preprocess import INTERPOLATIONS, Preprocess

WIDEST_FILTER = 3  # Lanczos's support, in pixels of the coarser image
# The filters whose weights fall to zero at their ends. The others (nearest, box) take or leave whole pixels there, so
# a box that is rounded to 32-bit floats could change a value by any number of levels.
CONTINUOUS = ("bilinear", "bicubic", "lanczos", "hamming")
Crop = NDArray[np.uint8]  # (height, width, 3), RGB


def crop(image: Image.Image, preprocess: Preprocess, *, exact: bool = True) -> Crop:
    """Resize and centre-crop an image.

    Args:
        image: upright, in RGB.
        preprocess: the archive's settings.
        exact: whether every value has to be the libraries', which resize the whole image. Otherwise only what the
            crop shows is resized if that gives nearly the same: of a photograph one value in fifty at most
            differs, by one level of 255, rarely by two.

    Returns:
        (height, width, 3) uint8.
    """
    placed = placement(image.width, image.height, preprocess)
    if placed.width * placed.height > MAX_ELONGATION * preprocess.resize**2:
        return _crop_strip(image, preprocess, placed)
    if not exact and _box_is_near(image, preprocess, placed):
        return _crop_box(image, preprocess, placed)
    resized = image.resize((placed.width, placed.height), INTERPOLATIONS[preprocess.interpolation])
    height, width = preprocess.shape
    return np.asarray(resized.crop((placed.left, placed.top, placed.left + width, placed.top + height)))


def blank(preprocess: Preprocess) -> Crop:
    """A black crop: (height, width, 3) uint8."""
    return np.zeros((*preprocess.shape, 3), np.uint8)


def _box_is_near(image: Image.Image, preprocess: Preprocess, placed: Placement) -> bool:
    """Whether a resize of the crop's box rounds as a resize of the whole image does."""
    height, width = preprocess.shape
    same_order = _is_vertical_first(image, placed.width, placed.height) == _is_vertical_first(image, width, height)
    return same_order and preprocess.interpolation in CONTINUOUS


def _is_vertical_first(image: Image.Image, width: int, height: int) -> bool:
    """Whether Pillow 13 resizes columns before rows; it rounds to whole levels in between (libImaging/Resample.c).

    Older releases always resize rows first.

    Args:
        image: to resize.
        width, height: to resize it to, in pixels.
    """
    shrinks = image.height - height
    return shrinks > max(0, 2 * (image.width - width))


def _crop_box(image: Image.Image, preprocess: Preprocess, placed: Placement) -> Crop:
    """Resize only what the crop shows. Pillow takes the box in 32-bit floats, so some weights differ a little."""
    height, width = preprocess.shape
    across, down = image.width / placed.width, image.height / placed.height
    right = min(across * (placed.left + width), image.width)
    bottom = min(down * (placed.top + height), image.height)
    box = (across * placed.left, down * placed.top, right, bottom)
    return np.asarray(image.resize((width, height), INTERPOLATIONS[preprocess.interpolation], box=box))


def _crop_strip(image: Image.Image, preprocess: Preprocess, placed: Placement) -> Crop:
    """Resize only what the crop shows: a row of 762 pixels, resized as a whole, would become 50 million.

    A value may differ by one from that of the whole: Pillow takes the box in 32-bit floats. The image is cut around
    the box first, which keeps those floats small.
    """
    height, width = preprocess.shape
    left, right, x0, x1 = _source_span(image.width, placed.width, placed.left, width)
    top, bottom, y0, y1 = _source_span(image.height, placed.height, placed.top, height)
    part = image.crop((left, top, right, bottom))
    return np.asarray(part.resize((width, height), INTERPOLATIONS[preprocess.interpolation], box=(x0, y0, x1, y1)))


def _source_span(side: int, resized: int, start: int, size: int) -> tuple[int, int, float, float]:
    """The source pixels that a crop is made of, along one side.

    Args:
        side, resized: the side before and after the resize, in pixels.
        start, size: first pixel and length of the crop in the resized side.

    Returns:
        (first source pixel, last source pixel + 1, begin of the crop between them, its end), in source pixels.
    """
    scale = side / resized
    begin, end = scale * start, scale * (start + size)
    margin = math.ceil(WIDEST_FILTER * max(scale, 1)) + 1
    first, last = max(math.floor(begin) - margin, 0), min(math.ceil(end) + margin, side)
    return first, last, begin - first, min(end - first, last - first)
