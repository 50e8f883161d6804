"""The GPU's resize, crop and normalising against Pillow's pixels, through Triton's interpreter: no GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from handlers.images import cropping, geometry
from handlers.images.preprocess import INTERPOLATIONS, Preprocess

ONES, ZEROS = torch.ones(3), torch.zeros(3)


@pytest.fixture(scope="module")
def kernels(interpreted: Callable[[str], Any]) -> Any:
    return interpreted("resize")


def noise(height: int, width: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(height * 1000 + width).integers(0, 256, (height, width, 3), dtype=np.uint8)


def described(kernels: Any, pixels: torch.Tensor, preprocess: Preprocess, orientation: int = 1) -> Any:
    """Interleaved pixels (H, W, 3) as the kernels take them."""
    height, width = pixels.shape[:2]
    upright = (width, height) if orientation < 5 else (height, width)
    resized = geometry.resized_size(*upright, preprocess)
    left, top = ((side - preprocess.size) // 2 for side in resized)
    return kernels.module.Picture(pixels, pixels.stride(), width, height, resized, (left, top), orientation)


def run(
    kernels: Any, pictures: list[Any], preprocess: Preprocess, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    out = torch.zeros((len(pictures), preprocess.size, preprocess.size, 3), dtype=dtype)
    result: torch.Tensor = kernels.crops(pictures, preprocess.interpolation, ONES, ZEROS, out)
    return result


# Smaller and larger than the crop, equal, odd, much larger in one direction.
SIZES = [(8, 8), (5, 5), (9, 13), (16, 16), (31, 17), (40, 111), (3, 7)]


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("mode", ["shortest_edge", "square"])
def test_crops_are_pillows(kernels: Any, interpolation: str, mode: str) -> None:
    preprocess = Preprocess(size=8, resize=10, resize_mode=mode, interpolation=interpolation)
    pictures = [torch.from_numpy(noise(*size)) for size in SIZES]
    found = run(kernels, [described(kernels, pixels, preprocess) for pixels in pictures], preprocess)
    for pixels, one in zip(pictures, found, strict=True):
        image = Image.fromarray(pixels.numpy())
        size = geometry.resized_size(image.width, image.height, preprocess)
        whole = np.asarray(image.resize(size, INTERPOLATIONS[interpolation]))
        left, top = ((side - 8) // 2 for side in size)
        difference = np.abs(one.numpy() - whole[top : top + 8, left : left + 8])
        # Pillow 13 resizes columns first if that is cheaper, and rounds between the two directions.
        assert difference.max() <= (mode == "square"), image.size


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_upright_as_pillow_turns_them(kernels: Any, orientation: int) -> None:
    preprocess = Preprocess(size=6, resize=7)
    pixels = torch.from_numpy(noise(9, 14))
    found = run(kernels, [described(kernels, pixels, preprocess, orientation)], preprocess)[0]
    image = Image.fromarray(pixels.numpy())
    image.getexif()[0x0112] = orientation
    wanted = cropping.crop(ImageOps.exif_transpose(image), preprocess)
    assert np.array_equal(found.numpy(), wanted)


def test_grey_and_planar_pictures(kernels: Any) -> None:
    preprocess = Preprocess(size=6, resize=7)
    pixels = noise(9, 14)
    grey, planar = torch.from_numpy(pixels[:, :, 0].copy()), torch.from_numpy(pixels.transpose(2, 0, 1).copy())
    like = described(kernels, torch.from_numpy(pixels), preprocess)
    pictures = [
        like._replace(pixels=grey, strides=(14, 1, 0)),
        like._replace(pixels=planar, strides=(14, 1, 9 * 14)),
    ]
    found = run(kernels, pictures, preprocess).numpy()
    assert np.array_equal(found[0], cropping.crop(Image.fromarray(pixels[:, :, 0]).convert("RGB"), preprocess))
    assert np.array_equal(found[1], cropping.crop(Image.fromarray(pixels), preprocess))


def test_crops_are_normalised_and_other_channels_are_left_alone(kernels: Any) -> None:
    preprocess = Preprocess(size=6, resize=7)
    pixels = torch.from_numpy(noise(9, 14))
    out = torch.full((1, 6, 6, 4), 7.0, dtype=torch.float16)
    scale, shift = torch.tensor([0.5, 0.25, 2.0]), torch.tensor([1.0, 2.0, 3.0])
    found = kernels.crops([described(kernels, pixels, preprocess)], "bilinear", scale, shift, out)
    crop = torch.from_numpy(cropping.crop(Image.fromarray(pixels.numpy()), preprocess).copy())
    assert torch.equal(found[0, :, :, :3], (crop.float() * scale - shift).half())
    assert (found[0, :, :, 3] == 7).all()


def test_another_shape_is_refused(kernels: Any) -> None:
    picture = described(kernels, torch.from_numpy(noise(9, 14)), Preprocess(size=6, resize=7))
    with pytest.raises(ValueError, match=r"wanted: \(N, S, S, 3\)"):
        kernels.crops([picture], "bilinear", ONES, ZEROS, torch.zeros((2, 6, 6, 3)))
