"""Triton kernels of the ResNet engine, used where they are faster than cuDNN's and PyTorch's.

Their twin in PyTorch is handlers.engines.folding.TorchResNetOps. All images are channels_last: (N, C, H, W) lies in
memory as (N, H, W, C), so pixels are the rows of a matrix. Sums are in fp32.

Measured on an H200 in fp16: PyTorch's channels_last max-pooling after the stem takes several times as long as moving
its bytes. cuDNN's fused 1x1 convolutions of small batches wait more than they compute. cuDNN has no single kernel for
the two 1x1 convolutions that are added where a block changes its size. The last two convolutions of stage 1's blocks
mostly move what lies between them. cuDNN is faster for other 3x3 convolutions, and for other 1x1 ones in large
batches, so it keeps those.

In shapes: N images; I, J channels in; O channels out; H, W and H', W' sides, in pixels; k: side of a convolution's
kernel.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from triton.language.extra import cuda as on_cuda

from handlers.kernels.launching import pdl_options

BLOCK = 1024  # elements per program of max_pool
COLUMNS = 32  # output channels of the smallest tile; O has to be a multiple of it
DEPTH = 64  # input channels per step of the sum; I has to be a multiple of it


class Tile(NamedTuple):
    """A tile of the output of a 1x1 convolution, and when it is the fastest on an H200.

    Args:
        rows: pixels of the tile.
        columns: output channels of the tile.
        warps: per program.
        stages: of Triton's software pipeline.
        min_tiles: the least number of such tiles in an output.
        depths: the least and the largest number of input channels.
    """

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
    """max(x, 0); NaN stays NaN."""
    return tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _max_pool(  # type: ignore[no-untyped-def]
    x,  # (N, H, W, C)
    y,  # (N, H', W', C)
    total,  # N * H' * W' * C
    height, width,  # H, W
    out_height, out_width,  # H', W'
    channels: tl.constexpr,  # C
    block: tl.constexpr,  # elements of y per program
    pdl: tl.constexpr,  # see launching.py
):  # fmt: skip
    if pdl:
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
    if pdl:
        on_cuda.gdc_launch_dependents()
    tl.store(y + at, largest.to(y.dtype.element_ty), mask=at < total)


def max_pool(images: torch.Tensor) -> torch.Tensor:
    """Max-pooling: 3x3, stride 2, padding 1.

    Args:
        images: (N, C, H, W), channels_last, of any floating dtype.

    Returns: (N, C, ceil(H / 2), ceil(W / 2)), of the same dtype and layout.

    Raises:
        ValueError: for another layout.
    """
    count, channels, height, width = images.shape
    if not images.is_contiguous(memory_format=torch.channels_last):
        raise ValueError(f"max_pool: strides {images.stride()} came; wanted: channels_last")
    shape = (count, channels, (height + 1) // 2, (width + 1) // 2)
    pooled = torch.empty(shape, dtype=images.dtype, device=images.device, memory_format=torch.channels_last)
    grid = (triton.cdiv(pooled.numel(), BLOCK),)
    _max_pool[grid](
        images, pooled, pooled.numel(), height, width, shape[2], shape[3],
        channels=channels, block=BLOCK, **pdl_options(images),
    )  # fmt: skip
    return pooled


@triton.jit
def _conv1x1(  # type: ignore[no-untyped-def]
    x,  # (N, H, W, I)
    weight,  # (O, I)
    bias,  # (O,)
    other,  # adds: the residual (N, H, W, O). projects: the source (N, H', W', J). Else not read.
    projection,  # projects: (O, J). Else not read.
    y,  # (N, H, W, O)
    count,  # N * H * W
    depth,  # I
    columns,  # O
    # The rest up to stride is read only if projects.
    other_depth,  # J
    pixels, width,  # H * W, W
    other_pixels, other_width,  # H' * W', W'
    stride,  # of the projection
    adds: tl.constexpr, projects: tl.constexpr,  # at most one of them is True
    block_rows: tl.constexpr, block_columns: tl.constexpr,  # of the tile of y that a program computes
    block_depth: tl.constexpr,  # channels per step
    pdl: tl.constexpr,  # see launching.py
):  # fmt: skip
    across = tl.cdiv(columns, block_columns)
    row = tl.program_id(0) // across * block_rows + tl.arange(0, block_rows)
    column = tl.program_id(0) % across * block_columns + tl.arange(0, block_columns)
    step, inside = tl.arange(0, block_depth), (row < count)[:, None]
    left = x + row[:, None].to(tl.int64) * depth + step[None, :]
    right = weight + column[None, :] * depth + step[:, None]
    if pdl:
        on_cuda.gdc_wait()
    total = tl.zeros((block_rows, block_columns), tl.float32)
    for _ in range(depth // block_depth):
        total = tl.dot(tl.load(left, mask=inside, other=0.0), tl.load(right), total)
        left += block_depth
        right += block_depth
    if projects:
        pixel = row % pixels
        source = row // pixels * other_pixels + pixel // width * stride * other_width + pixel % width * stride
        left = other + source[:, None].to(tl.int64) * other_depth + step[None, :]
        right = projection + column[None, :] * other_depth + step[:, None]
        for _ in range(other_depth // block_depth):
            total = tl.dot(tl.load(left, mask=inside, other=0.0), tl.load(right), total)
            left += block_depth
            right += block_depth
    if pdl:
        on_cuda.gdc_launch_dependents()
    total += tl.load(bias + column).to(tl.float32)[None, :]
    at = row[:, None].to(tl.int64) * columns + column[None, :]
    if adds:
        total += tl.load(other + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + at, _relu(total).to(y.dtype.element_ty), mask=inside)


def conv1x1_fits(images: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether `conv1x1_relu` and `conv1x1_add_conv1x1_relu` can run a convolution without groups.

    Args:
        images: (N, I, H, W); has to be channels_last, and I a multiple of DEPTH.
        weight: (O, I, k, k); k has to be 1, and O a multiple of COLUMNS.
    """
    return (
        weight.shape[1:] == (images.shape[1], 1, 1)
        and weight.shape[0] % COLUMNS == 0
        and weight.shape[1] % DEPTH == 0
        and images.is_contiguous(memory_format=torch.channels_last)
    )


def conv1x1_relu(
    images: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, residual: torch.Tensor | None,
    tile: Tile | None = None,
) -> torch.Tensor:  # fmt: skip
    """relu(conv(images) + bias (+ residual)), for a 1x1 convolution of stride 1.

    Args:
        images: (N, I, H, W), channels_last.
        weight: (O, I, 1, 1).
        bias: (O,).
        residual: (N, O, H, W), channels_last; or None.
        tile: None to let `tile_of` choose.

    Returns: (N, O, H, W), channels_last, in the images' dtype.

    Raises:
        ValueError: unless `conv1x1_fits`.
    """
    if not conv1x1_fits(images, weight):
        raise ValueError(
            f"conv1x1_relu: images {tuple(images.shape)}, weight {tuple(weight.shape)} came; see conv1x1_fits"
        )
    count, depth, height, width = images.shape
    columns, rows = weight.shape[0], count * height * width
    shape = (count, columns, height, width)
    out = torch.empty(shape, dtype=images.dtype, device=images.device, memory_format=torch.channels_last)
    tile = tile or tile_of(rows, columns, depth)
    _conv1x1[(triton.cdiv(rows, tile.rows) * (columns // tile.columns),)](
        images, weight, bias, images if residual is None else residual, weight, out, rows, depth, columns,
        other_depth=0, pixels=1, width=1, other_pixels=1, other_width=1, stride=1,  # not read
        adds=residual is not None, projects=False, **_blocks(tile, images),
    )  # fmt: skip
    return out


def _blocks(tile: Tile, like: torch.Tensor) -> dict[str, Any]:
    """Return _conv1x1's launch options for a tile."""
    return {
        "block_rows": tile.rows, "block_columns": tile.columns, "block_depth": DEPTH,
        "num_warps": tile.warps, "num_stages": tile.stages, **pdl_options(like),
    }  # fmt: skip


def conv1x1_add_conv1x1_relu(
    images: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor,
    source: torch.Tensor, projection: torch.Tensor, stride: int, tile: Tile | None = None,
) -> torch.Tensor:  # fmt: skip
    """relu(conv(images) + projection(source) + bias), for two 1x1 convolutions. The sum is rounded once.

    Args:
        images: (N, I, H, W), channels_last.
        weight: (O, I, 1, 1), of stride 1.
        bias: (O,).
        source: (N, J, H', W'), channels_last, with H = ceil(H' / stride) and W = ceil(W' / stride).
        projection: (O, J, 1, 1).
        stride: of the projection.
        tile: None to let `tile_of` choose.

    Returns: (N, O, H, W), channels_last, in the images' dtype.

    Raises:
        ValueError: for other shapes, or unless `conv1x1_fits` both convolutions.
    """
    count, depth, height, width = images.shape
    strided = [len(source), *(-(-side // stride) for side in source.shape[2:])]
    fits = conv1x1_fits(images, weight) and conv1x1_fits(source, projection)
    if not fits or strided != [count, height, width] or len(weight) != len(projection):
        raise ValueError(
            f"conv1x1_add_conv1x1_relu: images {tuple(images.shape)}, weight {tuple(weight.shape)}, "
            f"source {tuple(source.shape)}, projection {tuple(projection.shape)} with stride {stride} came; "
            "see conv1x1_fits"
        )
    shape = (count, len(weight), height, width)
    out = torch.empty(shape, dtype=images.dtype, device=images.device, memory_format=torch.channels_last)
    rows = count * height * width
    tile = tile or tile_of(rows, len(weight), depth + source.shape[1])
    _conv1x1[(triton.cdiv(rows, tile.rows) * (len(weight) // tile.columns),)](
        images, weight, bias, source, projection, out, rows, depth, len(weight),
        source.shape[1], height * width, width, source.shape[2] * source.shape[3], source.shape[3], stride,
        adds=False, projects=True, **_blocks(tile, images),
    )  # fmt: skip
    return out


def tile_of(rows: int, columns: int, depth: int) -> Tile:
    """Return the first of TILES that divides the columns and is the fastest; the last one always fits.

    Args:
        rows: N * H * W.
        columns: O.
        depth: I, or I + J if a projection is added.
    """
    fitting = (tile for tile in TILES if columns % tile.columns == 0 and tile.depths[0] <= depth <= tile.depths[1])
    return next(tile for tile in fitting if triton.cdiv(rows, tile.rows) * columns // tile.columns >= tile.min_tiles)


@triton.jit
def _conv3x3(  # type: ignore[no-untyped-def]
    x,  # (N, H, W, I)
    weight,  # (O, 3, 3, I)
    parts,  # (splits, N, H', W', O) fp32: summands of the output, one per program of the third axis
    count,  # N * H' * W'
    height, width,  # H, W
    out_height, out_width,  # H', W'
    stride,
    depth: tl.constexpr,  # I
    columns,  # O
    share: tl.constexpr,  # blocks of (tap, block_depth channels) that a program sums
    block_rows: tl.constexpr, block_columns: tl.constexpr,  # of the tile of pixels and channels that it computes
    block_depth: tl.constexpr,  # channels per step
    pdl: tl.constexpr,  # see launching.py
):  # fmt: skip
    pixel = tl.program_id(1) * block_rows + tl.arange(0, block_rows)
    column = tl.program_id(0) * block_columns + tl.arange(0, block_columns)
    step = tl.arange(0, block_depth)
    image = pixel // (out_width * out_height)
    top, left = pixel // out_width % out_height * stride - 1, pixel % out_width * stride - 1
    if pdl:
        on_cuda.gdc_wait()
    total = tl.zeros((block_rows, block_columns), tl.float32)
    for block in range(share):
        at = tl.program_id(2) * share + block  # of 9 taps with `depth // block_depth` blocks of channels each
        tap, channel = at // (depth // block_depth), at % (depth // block_depth) * block_depth + step
        i, j = top + tap // 3, left + tap % 3
        inside = (pixel < count) & (i >= 0) & (i < height) & (j >= 0) & (j < width)
        where = ((image * height + i) * width + j).to(tl.int64)[:, None] * depth + channel[None, :]
        values = tl.load(x + where, mask=inside[:, None], other=0.0)
        total = tl.dot(
            values, tl.load(weight + column[None, :] * (9 * depth) + tap * depth + channel[:, None]), total
        )
    if pdl:
        on_cuda.gdc_launch_dependents()
    at = (tl.program_id(2) * count + pixel[:, None]) * columns + column[None, :]
    tl.store(parts + at, total, mask=(pixel < count)[:, None])


@triton.jit
def _sum_splits(  # type: ignore[no-untyped-def]
    parts,  # (splits, N, H', W', O) fp32
    bias,  # (O,)
    y,  # (N, H', W', O): relu(sum of the parts + bias)
    total,  # N * H' * W' * O
    columns,  # O
    splits: tl.constexpr,
    block: tl.constexpr,  # elements of y per program
    pdl: tl.constexpr,  # see launching.py
):
    if pdl:
        on_cuda.gdc_wait()
    at = tl.program_id(0) * block + tl.arange(0, block)
    value = tl.load(bias + at % columns, mask=at < total, other=0.0).to(tl.float32)
    for part in tl.static_range(splits):
        value += tl.load(parts + part * total + at, mask=at < total, other=0.0)
    if pdl:
        on_cuda.gdc_launch_dependents()
    tl.store(y + at, _relu(value).to(y.dtype.element_ty), mask=at < total)


def conv3x3_fits(images: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether `conv3x3_relu` can run a convolution.

    Args:
        images: (N, I, H, W); has to be channels_last, and I a multiple of 64.
        weight: (O, I / groups, k, k); k has to be 3, groups 1, O a multiple of 64, and the layout channels_last.
    """
    out, depth, *kernel = weight.shape
    return (
        kernel == [3, 3]
        and depth == images.shape[1]
        and out % 64 == 0
        and depth % 64 == 0
        and images.is_contiguous(memory_format=torch.channels_last)
        and weight.is_contiguous(memory_format=torch.channels_last)
    )


def conv3x3_relu(images: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, stride: int) -> torch.Tensor:
    """relu(conv(images) + bias), for a 3x3 convolution with padding 1 and few pixels.

    Programs compute parts of the nine taps and of the input channels in parallel, and a second kernel sums them in
    fp32. At batch 1, one multiprocessor would otherwise compute all of them while others wait.

    Args:
        images: (N, I, H, W), channels_last.
        weight: (O, I, 3, 3), channels_last.
        bias: (O,).
        stride: in pixels.

    Returns: (N, O, H', W'), channels_last, in the images' dtype. H' = ceil(H / stride), W' = ceil(W / stride).

    Raises:
        ValueError: unless `conv3x3_fits`.
    """
    if not conv3x3_fits(images, weight):
        given = f"images {tuple(images.shape)}, weight {tuple(weight.shape)}"
        raise ValueError(f"conv3x3_relu: {given} came; see conv3x3_fits")
    number, depth, height, width = images.shape
    shape = (number, len(weight), (height - 1) // stride + 1, (width - 1) // stride + 1)
    out = torch.empty(shape, dtype=images.dtype, device=images.device, memory_format=torch.channels_last)
    count = number * shape[2] * shape[3]
    blocks = 9 * depth // 64
    splits = _splits(triton.cdiv(count, 64) * len(weight) // 64, blocks)
    parts = torch.empty((splits, count, len(weight)), dtype=torch.float32, device=images.device)
    _conv3x3[(len(weight) // 64, triton.cdiv(count, 64), splits)](
        images, weight, parts, count, height, width, shape[2], shape[3], stride, depth=depth, columns=len(weight),
        share=blocks // splits, block_rows=64, block_columns=64, block_depth=64, num_warps=4, num_stages=4,
        **pdl_options(images),
    )  # fmt: skip
    _sum_splits[(triton.cdiv(out.numel(), 512),)](
        parts, bias, out, out.numel(), len(weight), splits=splits, block=512, num_warps=4, **pdl_options(images)
    )
    return out


def _splits(tiles: int, blocks: int) -> int:
    """Return the largest number of parts that divides the blocks and gives at most two programs per multiprocessor.

    Args:
        tiles: of the output.
        blocks: of (tap, 64 channels) that each tile sums.
    """
    fitting = [count for count in (1, 3, 9, 18, 36) if blocks % count == 0 and tiles * count <= 288]
    return max(fitting, default=1)


@triton.jit
def _conv3x3_conv1x1(  # type: ignore[no-untyped-def]
    x,  # (N, H, W, 64)
    inner,  # (64, 3, 3, 64): the 3x3 convolution
    inner_bias,  # (64,)
    weight,  # (O, 64): the 1x1 convolution
    bias,  # (O,)
    other,  # projects: the source (N, H, W, 64). Else the residual (N, H, W, O).
    projection,  # projects: (O, 64). Else not read.
    y,  # (N, H, W, O)
    count,  # N * H * W
    height, width,  # H, W
    columns,  # O
    depth: tl.constexpr,  # 64
    projects: tl.constexpr,  # the shortcut is a convolution
    ahead: tl.constexpr,  # pipeline stages of the loop over output channels
    block_rows: tl.constexpr,  # pixels per program
    block_columns: tl.constexpr,  # output channels per step
    pdl: tl.constexpr,  # see launching.py
):  # fmt: skip
    pixel, channel = tl.program_id(0) * block_rows + tl.arange(0, block_rows), tl.arange(0, depth)
    top, left, inside = pixel // width % height - 1, pixel % width - 1, pixel < count
    if pdl:
        on_cuda.gdc_wait()
    total = tl.zeros((block_rows, depth), tl.float32)
    for tap in range(9):
        i, j = top + tap // 3, left + tap % 3
        there = inside & (i >= 0) & (i < height) & (j >= 0) & (j < width)
        where = (pixel + (tap // 3 - 1) * width + tap % 3 - 1).to(tl.int64)[:, None] * depth + channel[None, :]
        values = tl.load(x + where, mask=there[:, None], other=0.0)
        taps = tl.load(inner + channel[None, :] * (9 * depth) + tap * depth + channel[:, None])
        total = tl.dot(values, taps, total)
    if pdl:
        on_cuda.gdc_launch_dependents()
    between = _relu(total + tl.load(inner_bias + channel).to(tl.float32)[None, :]).to(x.dtype.element_ty)
    if projects:
        source = tl.load(
            other + pixel.to(tl.int64)[:, None] * depth + channel[None, :], mask=inside[:, None], other=0.0
        )
    for first in tl.range(0, columns, block_columns, num_stages=ahead):
        column = first + tl.arange(0, block_columns)
        at = pixel.to(tl.int64)[:, None] * columns + column[None, :]
        out = tl.dot(between, tl.load(weight + column[None, :] * depth + channel[:, None]))
        if projects:
            out = tl.dot(source, tl.load(projection + column[None, :] * depth + channel[:, None]), out)
        out += tl.load(bias + column).to(tl.float32)[None, :]
        if not projects:
            out += tl.load(other + at, mask=inside[:, None], other=0.0).to(tl.float32)
        tl.store(y + at, _relu(out).to(y.dtype.element_ty), mask=inside[:, None])


def conv3x3_conv1x1_fits(images: torch.Tensor, inner: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether `conv3x3_conv1x1_relu` can run two convolutions without groups, of stride 1.

    Args:
        images: (N, 64, H, W); has to be channels_last.
        inner: has to be (64, 64, 3, 3), channels_last.
        weight: has to be (O, 64, 1, 1), O a multiple of 64.
    """
    return (
        inner.shape == (DEPTH, DEPTH, 3, 3)
        and inner.is_contiguous(memory_format=torch.channels_last)
        and weight.shape[0] % DEPTH == 0
        and conv1x1_fits(images, weight)
    )


def conv3x3_conv1x1_relu(
    images: torch.Tensor, inner: torch.Tensor, inner_bias: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor,
    other: torch.Tensor, projection: torch.Tensor | None,
) -> torch.Tensor:  # fmt: skip
    """relu(conv1x1(h) + bias + shortcut), with h = relu(conv3x3(images) + inner_bias): the end of a residual block.

    h is rounded to the images' dtype, and never written to memory.

    Args:
        images: (N, 64, H, W), channels_last.
        inner: (64, 64, 3, 3), channels_last: the 3x3 convolution, with padding 1.
        inner_bias: (64,).
        weight: (O, 64, 1, 1): the 1x1 convolution.
        bias: (O,).
        other: channels_last. Without a projection (N, O, H, W), the shortcut; with one (N, 64, H, W), its input.
        projection: (O, 64, 1, 1), the shortcut's 1x1 convolution; or None.

    Returns: (N, O, H, W), channels_last, in the images' dtype.

    Raises:
        ValueError: for other shapes, or unless `conv3x3_conv1x1_fits`.
    """
    count, depth, height, width = images.shape
    columns = len(weight)
    fits = conv3x3_conv1x1_fits(images, inner, weight)
    if projection is None:
        fits &= other.shape == (count, columns, height, width)
        fits &= other.is_contiguous(memory_format=torch.channels_last)
    else:
        fits &= other.shape == images.shape and len(projection) == columns and conv1x1_fits(other, projection)
    if not fits:
        raise ValueError(
            f"conv3x3_conv1x1_relu: images {tuple(images.shape)}, weights {tuple(inner.shape)}, "
            f"{tuple(weight.shape)}, shortcut {tuple(other.shape)} came; see conv3x3_conv1x1_fits"
        )
    shape = (count, columns, height, width)
    out = torch.empty(shape, dtype=images.dtype, device=images.device, memory_format=torch.channels_last)
    rows = count * height * width
    # num_stages is of the loop over taps, `ahead` of the one over output channels. Fastest on an H200, with 64 x 64.
    _conv3x3_conv1x1[(triton.cdiv(rows, 64),)](
        images, inner, inner_bias, weight, bias, other, weight if projection is None else projection, out,
        rows, height, width, columns, depth=depth, projects=projection is not None,
        ahead=3 if projection is None else 2, block_rows=64, block_columns=64, num_warps=4, num_stages=3,
        **pdl_options(images),
    )  # fmt: skip
    return out


@triton.jit
def _mean_pool(  # type: ignore[no-untyped-def]
    x,  # (N, H, W, C)
    y,  # (N, C) fp32
    pixels,  # H * W
    channels,  # C
    padded: tl.constexpr,  # the next power of two from H * W
    block: tl.constexpr,  # channels per program
    pdl: tl.constexpr,  # see launching.py
):
    if pdl:
        on_cuda.gdc_wait()
    pixel, channel = tl.arange(0, padded), tl.program_id(0) * block + tl.arange(0, block)
    inside = (pixel < pixels)[:, None] & (channel < channels)[None, :]
    at = (tl.program_id(1) * pixels + pixel[:, None]) * channels + channel[None, :]
    total = tl.sum(tl.load(x + at, mask=inside, other=0.0).to(tl.float32), 0)
    if pdl:
        on_cuda.gdc_launch_dependents()
    tl.store(y + tl.program_id(1) * channels + channel, total / pixels, mask=channel < channels)


@triton.jit
def _linear(  # type: ignore[no-untyped-def]
    x,  # (N, C) fp32
    weight,  # (K, C)
    bias,  # (K,)
    y,  # (N, K)
    depth,  # C
    classes,  # K
    rows: tl.constexpr,  # classes per program
    block: tl.constexpr,  # the next power of two from C
    pdl: tl.constexpr,  # see launching.py
):
    if pdl:
        on_cuda.gdc_wait()
    row, at = tl.program_id(0) * rows + tl.arange(0, rows), tl.arange(0, block)
    inside = (row < classes)[:, None] & (at < depth)[None, :]
    values = tl.load(weight + row[:, None] * depth + at[None, :], mask=inside, other=0.0).to(tl.float32)
    mean = tl.load(x + tl.program_id(1) * depth + at, mask=at < depth, other=0.0)
    total = tl.sum(values * mean[None, :], 1) + tl.load(bias + row, mask=row < classes, other=0.0).to(tl.float32)
    if pdl:
        on_cuda.gdc_launch_dependents()
    tl.store(y + tl.program_id(1) * classes + row, total.to(y.dtype.element_ty), mask=row < classes)


def classify(images: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Mean over the pixels, then a linear layer, for few images. The mean stays in fp32.

    Args:
        images: (N, C, H, W).
        weight: (K, C).
        bias: (K,).

    Returns: logits (N, K), in the images' dtype.
    """
    images = images.contiguous(memory_format=torch.channels_last)
    count, channels, height, width = images.shape
    mean = torch.empty((count, channels), dtype=torch.float32, device=images.device)
    _mean_pool[(triton.cdiv(channels, 64), count)](
        images, mean, height * width, channels, padded=triton.next_power_of_2(height * width), block=64, num_warps=4,
        **pdl_options(images),
    )  # fmt: skip
    logits = torch.empty((count, len(weight)), dtype=images.dtype, device=images.device)
    _linear[(triton.cdiv(len(weight), 4), count)](
        mean, weight, bias, logits, channels, len(weight),
        rows=4, block=triton.next_power_of_2(channels), num_warps=4, **pdl_options(images),
    )  # fmt: skip
    return logits
