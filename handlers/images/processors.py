"""transformers' own image processor, on the CPU, for preprocessing that `Preprocess` cannot express.

The backend is transformers' PIL one, which works without torchvision.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from PIL import Image

from handlers import LOCAL
from handlers.protocol.errors import InvalidImage

Processed = dict[str, torch.Tensor]  # one image's input of the network, by name, without the batch's dimension
PIXELS = "pixel_values"
# A longer strip, whose shorter side is resized to a few hundred pixels, would fill the memory.
MAX_ASPECT = 20


class Processor:
    """The image processor that a folder's preprocessor_config.json describes.

    Raises ValueError if transformers cannot make it.
    """

    def __init__(self, folder: Path) -> None:
        from transformers import AutoImageProcessor  # slow to import, and few archives need it

        try:
            self.own: Any = AutoImageProcessor.from_pretrained(folder, backend="pil", **LOCAL)
        except Exception as error:  # transformers has many classes of its own
            raise ValueError(f"transformers cannot make the image processor of {folder.name}: {error}") from error

    @property
    def name(self) -> str:
        """Its class, without the backend: "Siglip2ImageProcessor"."""
        return type(self.own).__name__.removesuffix("Pil").removesuffix("Fast")

    @property
    def resizes(self) -> bool:
        """Whether it resizes images; otherwise it turns all of their pixels into floating-point numbers."""
        return getattr(self.own, "do_resize", True) is not False

    def __call__(self, image: Image.Image) -> Processed:
        """The network's input for one image, on the CPU.

        Args:
            image: upright, in RGB.

        Raises InvalidImage if the image is too elongated, or if the processor fails on it.
        """
        size = f"{image.width} x {image.height} pixels"
        if max(image.size) > MAX_ASPECT * min(image.size):
            raise InvalidImage(
                f"the image is {size}; one side may be at most {MAX_ASPECT} times as long as the other for this model"
            )
        try:
            made = self.own(images=image, return_tensors="pt")
        except Exception as error:  # each processor raises whatever its steps trip over
            raise InvalidImage(
                f"transformers' {self.name} cannot process an image of {size}: {type(error).__name__}"
            ) from error
        return {name: value[0] for name, value in made.items()}

    def varies(self) -> bool:
        """Whether the shapes of its outputs depend on the image's size."""
        shapes = [
            shapes_of(self(Image.new("RGB", size, (120, 90, 60)))) for size in ((64, 48), (90, 160), (640, 480))
        ]
        return any(found != shapes[0] for found in shapes)


def shapes_of(item: Processed) -> dict[str, tuple[int, ...]]:
    """The shape of each of an image's tensors, by name."""
    return {name: tuple(value.shape) for name, value in item.items()}
