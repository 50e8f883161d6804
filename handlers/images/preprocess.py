"""How an image becomes the network's input: the settings of an archive, checked when they are read."""

from __future__ import annotations

import math
from dataclasses import dataclass

from PIL import Image

INTERPOLATIONS = {mode.name.lower(): mode for mode in Image.Resampling}
RESIZE_MODES = ("shortest_edge", "square")
CROP_ROUNDINGS = ("down", "even")


@dataclass(frozen=True)
class Preprocess:
    """Resize, centre crop, scale to 0..1, normalise: in this order, as transformers' image processors do it.

    size: side of the square the network sees, in pixels.
    resize: the side that is resized to before the centre crop, in pixels (256 for a 224 crop, say).
    resize_mode: "shortest_edge" keeps the aspect ratio, the shorter side becomes `resize`;
        "square" squashes the image to resize x resize.
    interpolation: "nearest", "bilinear", "bicubic", "lanczos", "box" or "hamming", as in Pillow.
    mean, std: per channel, of values scaled to 0..1.
    crop_rounding: where the crop begins if an odd number of pixels is cut off. Half of that number is rounded "down",
        as transformers' image processors do, or to the nearest "even" number, as torchvision's and timm's do.
        An archive without this setting was made for "down".

    Raises ValueError for values that no image can be prepared with.
    """

    size: int
    resize: int
    resize_mode: str = "shortest_edge"
    interpolation: str = "bilinear"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    crop_rounding: str = "down"

    def __post_init__(self) -> None:
        if not 1 <= self.size <= self.resize:
            raise ValueError(f"size {self.size} and resize {self.resize}; wanted: 1 <= size <= resize")
        _check_choice("resize_mode", self.resize_mode, RESIZE_MODES)
        _check_choice("interpolation", self.interpolation, tuple(INTERPOLATIONS))
        _check_choice("crop_rounding", self.crop_rounding, CROP_ROUNDINGS)
        finite = all(map(math.isfinite, (*self.mean, *self.std)))
        if len(self.mean) != 3 or len(self.std) != 3 or not finite or min(self.std) <= 0:
            raise ValueError(f"mean {self.mean} and std {self.std}; wanted: three numbers each, std above 0")


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        *others, last = choices
        raise ValueError(f"{name} {value!r}; wanted: {', '.join(others)} or {last}")
