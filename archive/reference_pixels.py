"""Prepares images for the parity gate's reference as the checkpoint's own library does: file -> normalised pixels.

It shares nothing with the handler's preparation, so a fault there shows in the parity gate. A checkpoint of Hugging
Face's layout goes through transformers' image processor, made from its own file. The steps of torchvision and timm
(whose transforms are torchvision's) are written down here, because neither has to be installed.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoImageProcessor
from transformers.image_transforms import center_crop
from transformers.image_utils import ChannelDimension, load_image

from archive.checkpoints.errors import CheckpointError
from archive.checkpoints.image_checkpoints import ImageCheckpoint
from handlers import LOCAL
from handlers.engines.image_inputs import ImageInputs
from handlers.images import formats, npy_files
from handlers.images.preprocess import Preprocess

Pixels = Callable[[bytes], ImageInputs]
# Pillow's modes with 8 bits per channel. transformers clips deeper ones at 255, and the handler scales them.
_EIGHT_BITS = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")


def pixels_of(checkpoint: ImageCheckpoint, preprocess: Preprocess, max_pixels: int) -> Pixels:
    """Return a function from a sample's bytes to the network's input in fp32 on the CPU.

    For most networks this is (N, 3, height, width) normalised pixels.

    Args:
        checkpoint: whose library is followed.
        preprocess: the archive's. If it is the checkpoint's own and transformers knows it, transformers' processor is
            used; else the steps are taken one by one.
        max_pixels: of one image, width x height.

    Raises:
        CheckpointError: if transformers cannot make the processor that the checkpoint's file describes.
    """
    by_transformers = checkpoint.layout == "huggingface" and checkpoint.preprocess is not None
    if by_transformers and (preprocess.processor or preprocess == checkpoint.preprocess):
        steps: Callable[[Image.Image], ImageInputs] = _processor(checkpoint)
    else:
        crop = _crop_of_transformers if by_transformers else _crop_of_torchvision
        steps = lambda image: _step_by_step(image, preprocess, crop)  # noqa: E731
    return lambda sample: _pixels(sample, steps, max_pixels)


def _pixels(sample: bytes, steps: Callable[[Image.Image], ImageInputs], max_pixels: int) -> ImageInputs:
    if sample.startswith(npy_files.NPY_MAGIC):
        ready = torch.from_numpy(np.load(io.BytesIO(sample), allow_pickle=False)).float()
        return ready.unsqueeze(0) if ready.dim() == 3 else ready
    return steps(_loaded(sample, max_pixels))


def _loaded(sample: bytes, max_pixels: int) -> Image.Image:
    """Return the image upright and in RGB as transformers loads it, or as the handler does if transformers cannot."""
    try:
        with Image.open(io.BytesIO(sample)) as image:
            if image.mode in _EIGHT_BITS:
                # An array holds no note of a transparent colour, which some processors would paint white.
                return Image.fromarray(np.asarray(load_image(image)))
    except Exception:  # noqa: S110, broken data beside the pixels, on which Pillow fails in many ways
        pass
    return formats.decode(sample, max_pixels)


def _processor(checkpoint: ImageCheckpoint) -> Callable[[Image.Image], ImageInputs]:
    folder = checkpoint.weights.parent
    try:
        processor: Any = AutoImageProcessor.from_pretrained(folder, backend="pil", **LOCAL)
    except Exception as error:  # transformers' own, and what its files' parsing trips over
        raise CheckpointError(
            f"{folder.name}: transformers cannot make the image processor that the checkpoint's file describes, so "
            f"the archive cannot be compared with it ({error})"
        ) from error
    return lambda image: _inputs(processor(images=image, return_tensors="pt"))


def _inputs(made: Mapping[str, torch.Tensor]) -> ImageInputs:
    """Pixels alone as a tensor, anything else by name."""
    named = {name: value.float() if value.is_floating_point() else value for name, value in made.items()}
    return named["pixel_values"] if set(named) == {"pixel_values"} else named


def _step_by_step(
    image: Image.Image,
    chosen: Preprocess,
    crop: Callable[[np.ndarray[Any, Any], tuple[int, int]], np.ndarray[Any, Any]],
) -> torch.Tensor:
    side, short, long = chosen.resize, min(image.size), max(image.size)
    # torchvision/transforms/functional.py, _compute_resized_output_size
    stretched = int(side * long / short)
    size = (side, stretched) if image.width <= image.height else (stretched, side)
    if chosen.resize_mode == "square":
        size = (chosen.resize_width or side, side)
    resized = np.asarray(image.resize(size, Image.Resampling[chosen.interpolation.upper()]))
    cropped = crop(resized, (chosen.size, chosen.width or chosen.size))
    cropped = cropped[:, :, ::-1] if chosen.channel_order == "bgr" else cropped
    scaled = torch.from_numpy(cropped.copy()).permute(2, 0, 1).float() / 255
    mean, std = torch.tensor(chosen.mean).view(3, 1, 1), torch.tensor(chosen.std).view(3, 1, 1)
    return ((scaled - mean) / std).unsqueeze(0)


def _crop_of_transformers(image: np.ndarray[Any, Any], size: tuple[int, int]) -> np.ndarray[Any, Any]:
    cropped: np.ndarray[Any, Any] = center_crop(image, size, input_data_format=ChannelDimension.LAST)
    return cropped


def _crop_of_torchvision(image: np.ndarray[Any, Any], size: tuple[int, int]) -> np.ndarray[Any, Any]:
    """torchvision/transforms/functional.py, center_crop."""
    top = round((image.shape[0] - size[0]) / 2.0)
    left = round((image.shape[1] - size[1]) / 2.0)
    return image[top : top + size[0], left : left + size[1]]
