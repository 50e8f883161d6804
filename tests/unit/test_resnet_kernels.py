"""Triton's kernels of the cuDNN engine against their PyTorch twin, through Triton's interpreter: no GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from handlers.engines.folding import Convolution, TorchResNetOps

TWIN = TorchResNetOps()


@pytest.fixture(scope="module")
def kernels(interpreted: Callable[[str], Any]) -> Any:
    return interpreted("resnet")


def random(*shape: int, dtype: torch.dtype = torch.float16, seed: int = 0) -> torch.Tensor:
    """Standard normal; of four dimensions channels_last."""
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    return values.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else values


# 1, 1: one window, most of it outside; 2 * 8 * 9 * 6 pooled values: not a multiple of the block.
@pytest.mark.parametrize("shape", [(1, 8, 1, 1), (1, 4, 6, 6), (2, 8, 17, 12), (2, 24, 5, 6), (3, 16, 7, 9)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_max_pool_is_pytorchs(kernels: Any, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    images = random(*shape, dtype=dtype) - 3  # nearly all negative: a border that counted as 0 would show
    pooled = kernels.max_pool(images)
    assert pooled.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(pooled, TWIN.max_pool(images))


def test_max_pool_refuses_other_layouts(kernels: Any) -> None:
    with pytest.raises(ValueError, match="channels_last"):
        kernels.max_pool(random(1, 8, 4, 4).contiguous())


# Rows are N * H * W, blocks 64 of them: less than one, one, and some with a rest.
@pytest.mark.parametrize(("count", "height", "width"), [(1, 1, 1), (1, 8, 8), (3, 5, 7)])
@pytest.mark.parametrize(("depth", "columns"), [(64, 32), (128, 96)])
@pytest.mark.parametrize("adds", [False, True], ids=["plain", "residual"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_conv1x1_is_convolution_bias_residual_and_relu(
    kernels: Any, count: int, height: int, width: int, depth: int, columns: int, adds: bool, dtype: torch.dtype
) -> None:
    images = random(count, depth, height, width, dtype=dtype)
    conv = Convolution(
        random(columns, depth, 1, 1, dtype=dtype, seed=1) / 8, random(columns, dtype=dtype, seed=2), 1, 0
    )
    residual = random(count, columns, height, width, dtype=dtype, seed=3) if adds else None
    out = kernels.conv1x1_relu(images, conv.weight, conv.bias, residual)
    wanted = TWIN.conv_relu(images, conv) if residual is None else TWIN.conv_add_relu(images, conv, residual)
    assert out.is_contiguous(memory_format=torch.channels_last)
    # The twin rounds before it adds, the kernel once at the end: half a step of fp16 at 8, and a step.
    tolerance = 1e-2 if dtype == torch.float16 else 1e-5
    torch.testing.assert_close(out, wanted, rtol=1e-3, atol=tolerance)
    assert (out == 0).any() == (wanted == 0).any()


@pytest.mark.parametrize("tile", range(6))
def test_conv1x1_in_tiles_of_any_size(kernels: Any, tile: int) -> None:
    images, residual = random(3, 64, 7, 7), random(3, 256, 7, 7, seed=3)
    conv = Convolution(random(256, 64, 1, 1, seed=1) / 8, random(256, seed=2), 1, 0)
    out = kernels.conv1x1_relu(images, conv.weight, conv.bias, residual, kernels.TILES[tile])
    torch.testing.assert_close(out, TWIN.conv_add_relu(images, conv, residual), rtol=1e-3, atol=1e-2)


def test_conv1x1_refuses_what_does_not_fit(kernels: Any) -> None:
    with pytest.raises(ValueError, match=r"images \(1, 64, 4, 4\), weight \(30, 64, 1, 1\) came"):
        kernels.conv1x1_relu(random(1, 64, 4, 4), random(30, 64, 1, 1), random(30), None)
    assert not kernels.conv1x1_fits(random(1, 64, 4, 4), random(32, 64, 3, 3))
    assert not kernels.conv1x1_fits(random(1, 128, 4, 4), random(32, 64, 1, 1))
    assert kernels.conv1x1_fits(random(1, 64, 4, 4), random(32, 64, 1, 1))


# Odd sides under stride 2; rows with a rest, or less than a tile of any size.
@pytest.mark.parametrize(("count", "side", "stride"), [(1, 1, 1), (1, 5, 2), (2, 9, 2), (3, 7, 1)])
@pytest.mark.parametrize("tile", range(6))
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_conv1x1_add_conv1x1_is_both_convolutions_bias_and_relu(
    kernels: Any, count: int, side: int, stride: int, tile: int, dtype: torch.dtype
) -> None:  # fmt: skip
    columns, out_side = 256, -(-side // stride)
    images, source = random(count, 64, out_side, out_side, dtype=dtype), random(count, 128, side, side, dtype=dtype)
    bias, zeros = random(columns, dtype=dtype, seed=2), torch.zeros(columns, dtype=dtype)
    conv = Convolution(random(columns, 64, 1, 1, dtype=dtype, seed=1) / 8, bias, 1, 0)
    shortcut = Convolution(random(columns, 128, 1, 1, dtype=dtype, seed=3) / 8, zeros, stride, 0)
    out = kernels.conv1x1_add_conv1x1_relu(
        images, conv.weight, conv.bias, source, shortcut.weight, stride, kernels.TILES[tile]
    )
    assert out.is_contiguous(memory_format=torch.channels_last)
    tolerance = 1e-2 if dtype == torch.float16 else 1e-5
    torch.testing.assert_close(
        out, TWIN.conv_add_conv_relu(images, conv, source, shortcut), rtol=1e-3, atol=tolerance
    )


@pytest.mark.parametrize(
    ("rows", "columns", "depth", "tile"),
    [
        (49, 2048, 1536, (64, 32)),
        (16 * 49, 2048, 1536, (64, 128)),
        (64 * 49, 2048, 1536, (128, 256)),
        (64 * 784, 512, 384, (128, 128)),
        (50_176, 192, 768, (64, 64)),
        (49 * 64, 256, 64, (64, 128)),
        (49 * 64, 256, 768, (64, 64)),
        (1, 32, 128, (64, 32)),
    ],
)
def test_tiles_are_as_large_as_fill_the_gpu(
    kernels: Any, rows: int, columns: int, depth: int, tile: tuple[int, int]
) -> None:
    assert kernels.tile_of(rows, columns, depth)[:2] == tile


def test_conv1x1_add_conv1x1_refuses_what_does_not_fit(kernels: Any) -> None:
    weight, bias = random(32, 64, 1, 1), random(32)
    with pytest.raises(ValueError, match=r"source \(1, 64, 9, 9\), projection .* with stride 2 came"):
        kernels.conv1x1_add_conv1x1_relu(random(1, 64, 4, 4), weight, bias, random(1, 64, 9, 9), weight, 2)
    with pytest.raises(ValueError, match=r"images \(3, 64, 4, 4\), .* source \(1, 64, 4, 4\), .* came"):
        kernels.conv1x1_add_conv1x1_relu(random(3, 64, 4, 4), weight, bias, random(1, 64, 4, 4), weight, 1)


# 7 x 9 and 2 x 5 x 5 pixels: blocks of 64 with a rest; stride 2 of odd sides ends in a window half outside.
@pytest.mark.parametrize(("count", "height", "width"), [(1, 1, 1), (1, 7, 9), (2, 5, 5)])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_conv3x3_is_convolution_bias_and_relu(
    kernels: Any, count: int, height: int, width: int, stride: int, dtype: torch.dtype
) -> None:
    images = random(count, 64, height, width, dtype=dtype)
    conv = Convolution(random(128, 64, 3, 3, dtype=dtype, seed=1) / 24, random(128, dtype=dtype, seed=2), stride, 1)
    out = kernels.conv3x3_relu(images, conv.weight, conv.bias, stride)
    assert out.is_contiguous(memory_format=torch.channels_last)
    tolerance = 1e-2 if dtype == torch.float16 else 1e-5
    torch.testing.assert_close(out, TWIN.conv_relu(images, conv), rtol=1e-3, atol=tolerance)


def test_conv3x3_refuses_groups(kernels: Any) -> None:
    assert not kernels.conv3x3_fits(random(1, 64, 4, 4), random(64, 32, 3, 3))
    with pytest.raises(ValueError, match=r"weight \(64, 32, 3, 3\) came"):
        kernels.conv3x3_relu(random(1, 64, 4, 4), random(64, 32, 3, 3), random(64), 1)


# Pixels, in blocks of 64: one; some with a rest; more than a block a row.
@pytest.mark.parametrize(("count", "height", "width"), [(1, 1, 1), (3, 5, 7), (1, 2, 70)])
@pytest.mark.parametrize("projects", [False, True], ids=["identity", "projection"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_conv3x3_conv1x1_relu_is_the_end_of_a_block(
    kernels: Any, count: int, height: int, width: int, projects: bool, dtype: torch.dtype
) -> None:
    images = random(count, 64, height, width, dtype=dtype)
    inner = Convolution(random(64, 64, 3, 3, dtype=dtype, seed=1) / 24, random(64, dtype=dtype, seed=2), 1, 1)
    last = Convolution(random(128, 64, 1, 1, dtype=dtype, seed=3) / 8, random(128, dtype=dtype, seed=4), 1, 0)
    shortcut, channels = None, 128
    if projects:
        zeros = torch.zeros(128, dtype=dtype)
        shortcut, channels = Convolution(random(128, 64, 1, 1, dtype=dtype, seed=5) / 8, zeros, 1, 0), 64
    source = random(count, channels, height, width, dtype=dtype, seed=6)
    out = kernels.conv3x3_conv1x1_relu(
        images, inner.weight, inner.bias, last.weight, last.bias, source, shortcut.weight if shortcut else None
    )
    assert out.is_contiguous(memory_format=torch.channels_last)
    wanted = TWIN.block_tail(images, inner, last, source, shortcut)
    # The twin rounds each sum; what lies between the convolutions is rounded by both, of sums in another order.
    tolerance = 1e-2 if dtype == torch.float16 else 1e-5
    torch.testing.assert_close(out, wanted, rtol=1e-3, atol=tolerance)
    assert (wanted == 0).any()  # so that ReLU counts


def test_conv3x3_conv1x1_relu_refuses_what_does_not_fit(kernels: Any) -> None:
    inner, weight, bias = random(64, 64, 3, 3), random(128, 64, 1, 1), random(128)
    images = random(1, 64, 4, 4)
    assert kernels.conv3x3_conv1x1_fits(images, inner, weight)
    assert not kernels.conv3x3_conv1x1_fits(random(1, 128, 4, 4), random(128, 128, 3, 3), random(256, 128, 1, 1))
    assert not kernels.conv3x3_conv1x1_fits(images, random(64, 2, 3, 3), weight)
    assert not kernels.conv3x3_conv1x1_fits(images, inner, random(96, 64, 1, 1))
    assert not kernels.conv3x3_conv1x1_fits(images, inner, random(128, 64, 3, 3))
    for other, projection in (
        (random(1, 128, 2, 2), None),
        (random(1, 128, 4, 4).contiguous(), None),
        (random(1, 64, 8, 8), weight),
        (images, random(64, 64, 1, 1)),
    ):
        with pytest.raises(ValueError, match=r"images \(1, 64, 4, 4\), .* shortcut .* came"):
            kernels.conv3x3_conv1x1_relu(images, inner, random(64), weight, bias, other, projection)


@pytest.mark.parametrize(("count", "channels", "side", "classes"), [(1, 64, 1, 4), (2, 96, 3, 10), (1, 512, 7, 1001)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_classify_is_the_mean_and_a_linear_layer(
    kernels: Any, count: int, channels: int, side: int, classes: int, dtype: torch.dtype
) -> None:
    images = random(count, channels, side, side, dtype=dtype)
    weight, bias = random(classes, channels, dtype=dtype, seed=1), random(classes, dtype=dtype, seed=2)
    tolerance = 3e-2 if dtype == torch.float16 else 1e-4
    wanted = TWIN.classify(images, weight, bias)
    torch.testing.assert_close(kernels.classify(images, weight, bias), wanted, rtol=1e-3, atol=tolerance)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_so(kernels: Any, value: float) -> None:
    """ReLU and max-pooling of NaN are NaN, as PyTorch's are: an overflow shall not come out as a number."""
    images = random(2, 64, 6, 6)
    images[0, 5, 2, 3] = value
    conv = Convolution(random(32, 64, 1, 1, seed=1) / 8, random(32, seed=2), 1, 0)
    wide = Convolution(random(64, 64, 3, 3, seed=1) / 24, random(64, seed=2), 1, 1)
    last = Convolution(random(64, 64, 1, 1, seed=1) / 8, random(64, seed=2), 1, 0)
    for found, wanted in (
        (kernels.max_pool(images), TWIN.max_pool(images)),
        (
            kernels.conv3x3_conv1x1_relu(images, wide.weight, wide.bias, last.weight, last.bias, images, None),
            TWIN.block_tail(images, wide, last, images, None),
        ),
        (kernels.conv1x1_relu(images, conv.weight, conv.bias, None), TWIN.conv_relu(images, conv)),
        (kernels.conv3x3_relu(images, wide.weight, wide.bias, 1), TWIN.conv_relu(images, wide)),
    ):
        assert torch.equal(found.isnan(), wanted.isnan())
        assert torch.equal(found.isposinf(), wanted.isposinf())
        assert not found[0].isfinite().all()
