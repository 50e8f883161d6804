"""Triton kernels of the ResNet engine, where cuDNN and PyTorch leave time unused; TorchOperations is their twin.

Chosen on an H200 in fp16: PyTorch's channels_last max-pooling after the stem takes several times what moving its
bytes does; cuDNN's fused 1x1 convolutions of small batches wait more than they compute; where a block changes its
size, two 1x1 convolutions are added up, for which cuDNN has no single kernel; and the last two convolutions of stage
1 mostly move what lies between them. For other 3x3 convolutions, and other 1x1 ones of large batches, cuDNN is faster
than kernels like these, so it keeps them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from triton.language.extra import cuda as on_cuda

from handlers.kernels.launching import early

BLOCK = 1024
COLUMNS, DEPTH = 32, 64  # of the smallest tile; of a step of every one


class Tile(NamedTuple):
    """Of the output; from how many tiles on, and for which depths of the sum, an H200 is fastest with it."""

    rows: int
    columns: int
    warps: int
    stages: int
    min_tiles: int = 0
    depths: tuple[int, int] = (0, 1 << 30)


TILES = (
    Tile(128, 256, 8, 3, 100, (768, 1 << 30)),
    Tile(128, 128, 8, 3, 150),
    Tile(64, 128, 4, 4, 98, (0, 512)),
    Tile(64, 128, 4, 4, 150),
    Tile(64, 64, 4, 4, 98),
    Tile(64, COLUMNS, 4, 5),
)


@triton.jit
def _relu(x):  # type: ignore[no-untyped-def]
    return tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _max_pool(  # type: ignore[no-untyped-def]
    x, y, total, height, width, out_height, out_width,
    channels: tl.constexpr, block: tl.constexpr, early: tl.constexpr,
):  # fmt: skip
    if early:
        on_cuda.gdc_wait()
    at = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    channel, pixel = at % channels, at // channels
    column, row = pixel % out_width, (pixel // out_width) % out_height
    image = pixel // (out_width * out_height)
    largest = tl.full((block,), float("-inf"), tl.float32)
    for tap in tl.static_range(9):
        i, j = row * 2 - 1 + tap // 3, column * 2 - 1 + tap % 3
        inside = (at < total) & (i >= 0) & (i < height) & (j >= 0) & (j < width)
        value = tl.load(x + ((image * height + i) * width + j) * channels + channel, mask=inside, other=float("-inf"))
        largest = tl.maximum(largest, value.to(tl.float32), propagate_nan=tl.PropagateNan.ALL)
    if early:
        on_cuda.gdc_launch_dependents()
    tl.store(y + at, largest.to(y.dtype.element_ty), mask=at < total)


def max_pool(images: torch.Tensor) -> torch.Tensor:
    """3x3, stride 2, padding 1: (N, C, H, W) channels_last -> (N, C, ceil(H/2), ceil(W/2)).

    Raises ValueError for another layout.
    """
    count, channels, height, width = images.shape
    if not images.is_contiguous(memory_format=torch.channels_last):
        raise ValueError(f"max_pool: strides {images.stride()} came; wanted: channels_last")
    shape = (count, channels, (height + 1) // 2, (width + 1) // 2)
    pooled = torch.empty(shape, dtype=images.dtype, device=images.device, memory_format=torch.channels_last)
    grid = (triton.cdiv(pooled.numel(), BLOCK),)
    _max_pool[grid](
        images, pooled, pooled.numel(), height, width, shape[2], shape[3],
        channels=channels, block=BLOCK, **early(images),
    )  # fmt: skip
    return pooled


@triton.jit
def _pointwise(  # type: ignore[no-untyped-def]
    x, weight, bias, other, projection, y, count, depth, columns,
    other_depth, pixels, width, other_pixels, other_width, stride,
    adds: tl.constexpr, projects: tl.constexpr,
    rows_a_block: tl.constexpr, columns_a_block: tl.constexpr, depth_a_block: tl.constexpr, early: tl.constexpr,
):  # fmt: skip
    across = tl.cdiv(columns, columns_a_block)
    row = tl.program_id(0) // across * rows_a_block + tl.arange(0, rows_a_block)
    column = tl.program_id(0) % across * columns_a_block + tl.arange(0, columns_a_block)
    step, inside = tl.arange(0, depth_a_block), (row < count)[:, None]
    left = x + row[:, None].to(tl.int64) * depth + step[None, :]
    right = weight + column[None, :] * depth + step[:, None]
    if early:
        on_cuda.gdc_wait()
    total = tl.zeros((rows_a_block, columns_a_block), tl.float32)
    for _ in range(depth // depth_a_block):
        total = tl.dot(tl.load(left, mask=inside, other=0.0), tl.load(right), total)
        left += depth_a_block
        right += depth_a_block
    if projects:
        pixel = row % pixels
        source = row // pixels * other_pixels + pixel // width * stride * other_width + pixel % width * stride
        left = other + source[:, None].to(tl.int64) * other_depth + step[None, :]
        right = projection + column[None, :] * other_depth + step[:, None]
        for _ in range(other_depth // depth_a_block):
            total = tl.dot(tl.load(left, mask=inside, other=0.0), tl.load(right), total)
            left += depth_a_block
            right += depth_a_block
    if early:
        on_cuda.gdc_launch_dependents()
    total += tl.load(bias + column).to(tl.float32)[None, :]
    at = row[:, None].to(tl.int64) * columns + column[None, :]
    if adds:
        total += tl.load(other + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + at, _relu(total).to(y.dtype.element_ty), mask=inside)


def pointwise_fits(images: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether `pointwise` or `project` can run this convolution: 1x1, whole blocks of channels, channels_last."""
    return (
        weight.shape[1:] == (images.shape[1], 1, 1)
        and weight.shape[0] % COLUMNS == 0
        and weight.shape[1] % DEPTH == 0
        and images.is_contiguous(memory_format=torch.channels_last)
    )


def pointwise(
    images: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, residual: torch.Tensor | None,
    tile: Tile | None = None,
) -> torch.Tensor:  # fmt: skip
    """relu(1x1 convolution + bias (+ residual)): (N, I, H, W), (O, I, 1, 1), (O,), (N, O, H, W) -> (N, O, H, W).

    All channels_last; sums in fp32. tile: None for that of `tile_of`. Raises ValueError unless `pointwise_fits`.
    """
    if not pointwise_fits(images, weight):
        raise ValueError(f"pointwise: images {tuple(images.shape)}, weight {tuple(weight.shape)} came; see the docs")
    count, depth, height, width = images.shape
    columns, rows = weight.shape[0], count * height * width
    shape = (count, columns, height, width)
    out = torch.empty(shape, dtype=images.dtype, device=images.device, memory_format=torch.channels_last)
    tile = tile or tile_of(rows, columns, depth)
    _pointwise[(triton.cdiv(rows, tile.rows) * (columns // tile.columns),)](
        images, weight, bias, images if residual is None else residual, weight, out, rows, depth, columns,
        other_depth=0, pixels=1, width=1, other_pixels=1, other_width=1, stride=1,  # of a projection, which is none
        adds=residual is not None, projects=False, **_blocks(tile, images),
    )  # fmt: skip
    return out


def _blocks(tile: Tile, like: torch.Tensor) -> dict[str, Any]:
    return {
        "rows_a_block": tile.rows, "columns_a_block": tile.columns, "depth_a_block": DEPTH,
        "num_warps": tile.warps, "num_stages": tile.stages, **early(like),
    }  # fmt: skip


def project(
    images: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor,
    source: torch.Tensor, projection: torch.Tensor, stride: int, tile: Tile | None = None,
) -> torch.Tensor:  # fmt: skip
    """relu(1x1 convolution of images + 1x1 convolution of source, strided, + bias), summed in fp32, rounded once.

    images: (N, I, H, W), weight: (O, I, 1, 1), bias: (O,), source: (N, J, H', W') with H = ceil(H' / stride) and W
    alike, projection: (O, J, 1, 1), all channels_last -> (N, O, H, W). tile: None for that of `tile_of`.
    Raises ValueError for anything else.
    """
    count, depth, height, width = images.shape
    strided = [len(source), *(-(-side // stride) for side in source.shape[2:])]
    fits = pointwise_fits(images, weight) and pointwise_fits(source, projection)
    if not fits or strided != [count, height, width] or len(weight) != len(projection):
        raise ValueError(
            f"project: images {tuple(images.shape)}, weight {tuple(weight.shape)}, source {tuple(source.shape)}, "
            f"projection {tuple(projection.shape)} with stride {stride} came; see pointwise_fits"
        )
    shape = (count, len(weight), height, width)
    out = torch.empty(shape, dtype=images.dtype, device=images.device, memory_format=torch.channels_last)
    rows = count * height * width
    tile = tile or tile_of(rows, len(weight), depth + source.shape[1])
    _pointwise[(triton.cdiv(rows, tile.rows) * (len(weight) // tile.columns),)](
        images, weight, bias, source, projection, out, rows, depth, len(weight),
        source.shape[1], height * width, width, source.shape[2] * source.shape[3], source.shape[3], stride,
        adds=False, projects=True, **_blocks(tile, images),
    )  # fmt: skip
    return out


def tile_of(rows: int, columns: int, depth: int) -> Tile:
    """The first of TILES that divides the columns and is worth it; the last always is. depth: of both products."""
    fitting = (tile for tile in TILES if columns % tile.columns == 0 and tile.depths[0] <= depth <= tile.depths[1])
    return next(tile for tile in fitting if triton.cdiv(rows, tile.rows) * columns // tile.columns >= tile.min_tiles)


@triton.jit
def _window(  # type: ignore[no-untyped-def]
    x, weight, parts, count, height, width, out_height, out_width, stride,
    depth: tl.constexpr, columns, share: tl.constexpr,
    rows_a_block: tl.constexpr, columns_a_block: tl.constexpr, depth_a_block: tl.constexpr, early: tl.constexpr,
):  # fmt: skip
    pixel = tl.program_id(1) * rows_a_block + tl.arange(0, rows_a_block)
    column = tl.program_id(0) * columns_a_block + tl.arange(0, columns_a_block)
    step = tl.arange(0, depth_a_block)
    image = pixel // (out_width * out_height)
    top, left = pixel // out_width % out_height * stride - 1, pixel % out_width * stride - 1
    if early:
        on_cuda.gdc_wait()
    total = tl.zeros((rows_a_block, columns_a_block), tl.float32)
    for block in range(share):
        at = tl.program_id(2) * share + block  # of 9 taps, `depth // depth_a_block` blocks of channels each
        tap, channel = at // (depth // depth_a_block), at % (depth // depth_a_block) * depth_a_block + step
        i, j = top + tap // 3, left + tap % 3
        inside = (pixel < count) & (i >= 0) & (i < height) & (j >= 0) & (j < width)
        where = ((image * height + i) * width + j).to(tl.int64)[:, None] * depth + channel[None, :]
        values = tl.load(x + where, mask=inside[:, None], other=0.0)
        total = tl.dot(
            values, tl.load(weight + column[None, :] * (9 * depth) + tap * depth + channel[:, None]), total
        )
    if early:
        on_cuda.gdc_launch_dependents()
    at = (tl.program_id(2) * count + pixel[:, None]) * columns + column[None, :]
    tl.store(parts + at, total, mask=(pixel < count)[:, None])


@triton.jit
def _add_parts(  # type: ignore[no-untyped-def]
    parts, bias, y, total, columns, splits: tl.constexpr, block: tl.constexpr, early: tl.constexpr
):
    if early:
        on_cuda.gdc_wait()
    at = tl.program_id(0) * block + tl.arange(0, block)
    value = tl.load(bias + at % columns, mask=at < total, other=0.0).to(tl.float32)
    for part in tl.static_range(splits):
        value += tl.load(parts + part * total + at, mask=at < total, other=0.0)
    if early:
        on_cuda.gdc_launch_dependents()
    tl.store(y + at, _relu(value).to(y.dtype.element_ty), mask=at < total)


def window_fits(images: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether `window` can run this convolution: 3x3, ungrouped, whole blocks of channels, channels_last."""
    out, depth, *kernel = weight.shape
    return (
        kernel == [3, 3]
        and depth == images.shape[1]
        and out % 64 == 0
        and depth % 64 == 0
        and images.is_contiguous(memory_format=torch.channels_last)
        and weight.is_contiguous(memory_format=torch.channels_last)
    )


def window(images: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, stride: int) -> torch.Tensor:
    """relu(3x3 convolution, padding 1, + bias) of few pixels: (N, I, H, W), (O, I, 3, 3), (O,) -> (N, O, H', W').

    All channels_last. The nine taps are computed side by side, and then summed in fp32: at batch 1, a multiprocessor
    would else walk through all of them while others wait. Raises ValueError where `window_fits` is false.
    """
    if not window_fits(images, weight):
        raise ValueError(f"window: images {tuple(images.shape)}, weight {tuple(weight.shape)} came; see window_fits")
    number, depth, height, width = images.shape
    shape = (number, len(weight), (height - 1) // stride + 1, (width - 1) // stride + 1)
    out = torch.empty(shape, dtype=images.dtype, device=images.device, memory_format=torch.channels_last)
    count = number * shape[2] * shape[3]
    blocks = 9 * depth // 64
    splits = _splits(triton.cdiv(count, 64) * len(weight) // 64, blocks)
    parts = torch.empty((splits, count, len(weight)), dtype=torch.float32, device=images.device)
    _window[(len(weight) // 64, triton.cdiv(count, 64), splits)](
        images, weight, parts, count, height, width, shape[2], shape[3], stride, depth=depth, columns=len(weight),
        share=blocks // splits, rows_a_block=64, columns_a_block=64, depth_a_block=64, num_warps=4, num_stages=4,
        **early(images),
    )  # fmt: skip
    _add_parts[(triton.cdiv(out.numel(), 512),)](
        parts, bias, out, out.numel(), len(weight), splits=splits, block=512, num_warps=4, **early(images)
    )
    return out


def _splits(tiles: int, blocks: int) -> int:
    """The most parts that divide the blocks and keep to about two programs a multiprocessor."""
    fitting = [count for count in (1, 3, 9, 18, 36) if blocks % count == 0 and tiles * count <= 288]
    return max(fitting, default=1)


@triton.jit
def _window_pointwise(  # type: ignore[no-untyped-def]
    x, inner, inner_bias, weight, bias, other, projection, y, count, height, width, columns,
    depth: tl.constexpr, projects: tl.constexpr, ahead: tl.constexpr,
    rows_a_block: tl.constexpr, columns_a_block: tl.constexpr, early: tl.constexpr,
):  # fmt: skip
    pixel, channel = tl.program_id(0) * rows_a_block + tl.arange(0, rows_a_block), tl.arange(0, depth)
    top, left, inside = pixel // width % height - 1, pixel % width - 1, pixel < count
    if early:
        on_cuda.gdc_wait()
    total = tl.zeros((rows_a_block, depth), tl.float32)
    for tap in range(9):
        i, j = top + tap // 3, left + tap % 3
        there = inside & (i >= 0) & (i < height) & (j >= 0) & (j < width)
        where = (pixel + (tap // 3 - 1) * width + tap % 3 - 1).to(tl.int64)[:, None] * depth + channel[None, :]
        values = tl.load(x + where, mask=there[:, None], other=0.0)
        taps = tl.load(inner + channel[None, :] * (9 * depth) + tap * depth + channel[:, None])
        total = tl.dot(values, taps, total)
    if early:
        on_cuda.gdc_launch_dependents()
    between = _relu(total + tl.load(inner_bias + channel).to(tl.float32)[None, :]).to(x.dtype.element_ty)
    if projects:
        source = tl.load(
            other + pixel.to(tl.int64)[:, None] * depth + channel[None, :], mask=inside[:, None], other=0.0
        )
    for first in tl.range(0, columns, columns_a_block, num_stages=ahead):
        column = first + tl.arange(0, columns_a_block)
        at = pixel.to(tl.int64)[:, None] * columns + column[None, :]
        out = tl.dot(between, tl.load(weight + column[None, :] * depth + channel[:, None]))
        if projects:
            out = tl.dot(source, tl.load(projection + column[None, :] * depth + channel[:, None]), out)
        out += tl.load(bias + column).to(tl.float32)[None, :]
        if not projects:
            out += tl.load(other + at, mask=inside[:, None], other=0.0).to(tl.float32)
        tl.store(y + at, _relu(out).to(y.dtype.element_ty), mask=inside[:, None])


def window_pointwise_fits(images: torch.Tensor, inner: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether `window_pointwise` can run these: 3x3 of 64 channels to 64, then 1x1, ungrouped, channels_last."""
    return (
        inner.shape == (DEPTH, DEPTH, 3, 3)
        and inner.is_contiguous(memory_format=torch.channels_last)
        and weight.shape[0] % DEPTH == 0
        and pointwise_fits(images, weight)
    )


def window_pointwise(
    images: torch.Tensor, inner: torch.Tensor, inner_bias: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor,
    other: torch.Tensor, projection: torch.Tensor | None,
) -> torch.Tensor:  # fmt: skip
    """relu(1x1 convolution of h + bias + shortcut), h = relu(3x3 convolution of images, padding 1, + inner_bias).

    images: (N, 64, H, W), inner: (64, 64, 3, 3), weight: (O, 64, 1, 1), all channels_last -> (N, O, H, W). The
    shortcut is `other` (N, O, H, W) itself, or with a projection (O, 64, 1, 1) its 1x1 convolution, of (N, 64, H, W).
    h is rounded to the images' dtype and never written to memory; sums are in fp32. Raises ValueError for anything
    else.
    """
    count, depth, height, width = images.shape
    columns = len(weight)
    fits = window_pointwise_fits(images, inner, weight)
    if projection is None:
        fits &= other.shape == (count, columns, height, width)
        fits &= other.is_contiguous(memory_format=torch.channels_last)
    else:
        fits &= other.shape == images.shape and len(projection) == columns and pointwise_fits(other, projection)
    if not fits:
        raise ValueError(
            f"window_pointwise: images {tuple(images.shape)}, weights {tuple(inner.shape)}, {tuple(weight.shape)}, "
            f"shortcut {tuple(other.shape)} came; see window_pointwise_fits"
        )
    shape = (count, columns, height, width)
    out = torch.empty(shape, dtype=images.dtype, device=images.device, memory_format=torch.channels_last)
    rows = count * height * width
    # Stages of both loops, the second one's ahead: the fastest on an H200, with these blocks.
    _window_pointwise[(triton.cdiv(rows, 64),)](
        images, inner, inner_bias, weight, bias, other, weight if projection is None else projection, out,
        rows, height, width, columns, depth=depth, projects=projection is not None,
        ahead=3 if projection is None else 2, rows_a_block=64, columns_a_block=64, num_warps=4, num_stages=3,
        **early(images),
    )  # fmt: skip
    return out


@triton.jit
def _mean(x, y, pixels, channels, padded: tl.constexpr, block: tl.constexpr, early: tl.constexpr):  # type: ignore[no-untyped-def]
    if early:
        on_cuda.gdc_wait()
    pixel, channel = tl.arange(0, padded), tl.program_id(0) * block + tl.arange(0, block)
    inside = (pixel < pixels)[:, None] & (channel < channels)[None, :]
    at = (tl.program_id(1) * pixels + pixel[:, None]) * channels + channel[None, :]
    total = tl.sum(tl.load(x + at, mask=inside, other=0.0).to(tl.float32), 0)
    if early:
        on_cuda.gdc_launch_dependents()
    tl.store(y + tl.program_id(1) * channels + channel, total / pixels, mask=channel < channels)


@triton.jit
def _rows(x, weight, bias, y, depth, classes, rows: tl.constexpr, block: tl.constexpr, early: tl.constexpr):  # type: ignore[no-untyped-def]
    if early:
        on_cuda.gdc_wait()
    row, at = tl.program_id(0) * rows + tl.arange(0, rows), tl.arange(0, block)
    inside = (row < classes)[:, None] & (at < depth)[None, :]
    values = tl.load(weight + row[:, None] * depth + at[None, :], mask=inside, other=0.0).to(tl.float32)
    mean = tl.load(x + tl.program_id(1) * depth + at, mask=at < depth, other=0.0)
    total = tl.sum(values * mean[None, :], 1) + tl.load(bias + row, mask=row < classes, other=0.0).to(tl.float32)
    if early:
        on_cuda.gdc_launch_dependents()
    tl.store(y + tl.program_id(1) * classes + row, total.to(y.dtype.element_ty), mask=row < classes)


def classify(images: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Mean over the pixels in fp32, then a linear layer, of few images: (N, C, H, W), (K, C), (K,) -> (N, K)."""
    images = images.contiguous(memory_format=torch.channels_last)
    count, channels, height, width = images.shape
    mean = torch.empty((count, channels), dtype=torch.float32, device=images.device)
    _mean[(triton.cdiv(channels, 64), count)](
        images, mean, height * width, channels, padded=triton.next_power_of_2(height * width), block=64, num_warps=4,
        **early(images),
    )  # fmt: skip
    logits = torch.empty((count, len(weight)), dtype=images.dtype, device=images.device)
    _rows[(triton.cdiv(len(weight), 4), count)](
        mean, weight, bias, logits, channels, len(weight),
        rows=4, block=triton.next_power_of_2(channels), num_warps=4, **early(images),
    )  # fmt: skip
    return logits
