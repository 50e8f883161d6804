"""How an image becomes the network's input: the settings of an archive, checked when they are read."""

from __future__ import annotations

import math
from dataclasses import dataclass

from PIL import Image

INTERPOLATIONS = {mode.name.lower(): mode for mode in Image.Resampling}
RESIZE_MODES = ("shortest_edge", "square")
CROP_ROUNDINGS = ("down", "even")
CHANNEL_ORDERS = ("rgb", "bgr")


@dataclass(frozen=True)
class Preprocess:
    """Resize, centre crop, scale to 0..1, normalise: in this order, as transformers' image processors do it.

    Attributes:
        size: The height in pixels of the crop that the network sees. It is the crop's width too if `width` is 0.
        resize: The side in pixels that an image is resized to before the centre crop, for instance 256 for a crop of
            224.
        resize_mode: "shortest_edge" keeps the aspect ratio, and the shorter side becomes `resize`. "square" squashes
            the image to a height of `resize` and a width of `resizeWidth`.
        interpolation: "nearest", "bilinear", "bicubic", "lanczos", "box" or "hamming", as in Pillow.
        mean, std: One number per channel, for values scaled to 0..1.
        crop_rounding: Where the crop begins if an odd number of pixels is cut off. Half of that number is rounded
            "down", as transformers' image processors do, or to the nearest "even" number, as those of torchvision and
            timm do. An archive without this setting was made for "down".
        width: The width of the crop in pixels. 0 is `size`.
        resize_width: The width in pixels that "square" squashes to. 0 is `resize`.
        channel_order: "rgb" or "bgr", of the normalised image. `mean` and `std` are given in this order.
        processor: The class of transformers' image processor that makes the network's input on the CPU, from the
            archive's preprocessor_config.json, instead of all these steps. "" takes these steps. Packaging sets it if
            they cannot express the checkpoint's preprocessing. `size` and `width` are then the size of every image
            that the processor makes, or 0 if its outputs are not images of one size.

    Raises:
        ValueError: No image can be prepared with these values.
    """

    size: int
    resize: int
    resize_mode: str = "shortest_edge"
    interpolation: str = "bilinear"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    crop_rounding: str = "down"
    width: int = 0
    resize_width: int = 0
    channel_order: str = "rgb"
    processor: str = ""

    def __post_init__(self) -> None:
        if not self.processor:
            self._check_sizes()
        _check_choice("resize_mode", self.resize_mode, RESIZE_MODES)
        _check_choice("interpolation", self.interpolation, tuple(INTERPOLATIONS))
        _check_choice("crop_rounding", self.crop_rounding, CROP_ROUNDINGS)
        _check_choice("channel_order", self.channel_order, CHANNEL_ORDERS)
        finite = all(map(math.isfinite, (*self.mean, *self.std)))
        if len(self.mean) != 3 or len(self.std) != 3 or not finite or min(self.std) <= 0:
            raise ValueError(f"mean {self.mean} and std {self.std}; wanted: three numbers each, std above 0")

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the crop, in pixels."""
        return self.size, self.width or self.size

    @property
    def square_size(self) -> int:
        """Side of the crop in pixels; 0 if the network's inputs are not squares of one size."""
        height, width = self.shape
        return height if height == width else 0

    def _check_sizes(self) -> None:
        squashes = self.resize_mode == "square"
        width, resize_width = self.shape[1], (self.resize_width or self.resize) if squashes else self.resize
        if not 1 <= self.size <= self.resize:
            raise ValueError(f"size {self.size} and resize {self.resize}; wanted: 1 <= size <= resize")
        if not 1 <= width <= resize_width:
            raise ValueError(f"width {width} and resize_width {resize_width}; wanted: 1 <= width <= resize_width")
        if self.resize_width and not squashes:
            raise ValueError(f"resize_width {self.resize_width} goes with resize_mode square alone")


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        *others, last = choices
        raise ValueError(f"{name} {value!r}; wanted: {', '.join(others)} or {last}")
