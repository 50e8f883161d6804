"""The 3x3 convolution of few pixels, cut into taps and channels, through Triton's interpreter: however it is cut.

That it is a convolution with bias and ReLU at all is in test_resnet_kernels.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F


@pytest.fixture(scope="module")
def kernels(interpreted: Callable[[str], Any]) -> Any:
    return interpreted("resnet")


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    """Standard normal, channels_last."""
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return values.contiguous(memory_format=torch.channels_last)


# Parts: up to 36 of the 9 taps times the blocks of 64 channels, as far as tiles of 64 pixels and channels leave room.
CUTS = {
    "a tap and block each": (256, 4, 4, 64),
    "two blocks of a tap each": (256, 17, 16, 128),
    "three taps each": (64, 48, 49, 64),
}


@pytest.mark.parametrize(("depth", "height", "width", "columns"), CUTS.values(), ids=CUTS)
@pytest.mark.parametrize("stride", [1, 2])
def test_conv3x3_however_it_is_cut(
    kernels: Any, depth: int, height: int, width: int, columns: int, stride: int
) -> None:
    images, weight = random(1, depth, height, width), random(columns, depth, 3, 3, seed=1) / depth**0.5
    bias = torch.linspace(-1, 1, columns)
    found = kernels.conv3x3_relu(images, weight, bias, stride)
    wanted = F.conv2d(images, weight, bias, stride, padding=1).relu()
    # fp32 sums of 2304 terms, in another order.
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-4)
    assert (wanted == 0).any()  # so that ReLU counts


REFUSED = {
    "1 x 1": ((1, 64, 4, 4), (64, 64, 1, 1)),
    "96 channels in": ((1, 96, 4, 4), (64, 96, 3, 3)),
    "96 channels out": ((1, 64, 4, 4), (96, 64, 3, 3)),
}


@pytest.mark.parametrize(("images", "weight"), REFUSED.values(), ids=REFUSED)
def test_conv3x3_refuses_what_blocks_do_not_fill(
    kernels: Any, images: tuple[int, ...], weight: tuple[int, ...]
) -> None:
    assert not kernels.conv3x3_fits(random(*images), random(*weight))
    with pytest.raises(ValueError, match="came; see conv3x3_fits"):
        kernels.conv3x3_relu(random(*images), random(*weight), torch.zeros(weight[0]), 1)


def test_conv3x3_refuses_other_layouts(kernels: Any) -> None:
    images, weight = random(1, 64, 4, 4), random(64, 64, 3, 3)
    assert kernels.conv3x3_fits(images, weight)
    assert not kernels.conv3x3_fits(images.contiguous(), weight)
    assert not kernels.conv3x3_fits(images, weight.contiguous())
