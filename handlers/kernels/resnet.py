"""Triton kernels of the ResNet engine, where cuDNN and PyTorch leave time unused; TorchOperations is their twin.

Chosen on an H200 in fp16: PyTorch's channels_last max-pooling after the stem takes several times what moving its
bytes does, and cuDNN's fused 1x1 convolutions of small batches wait more than they compute. For 3x3 convolutions, and
1x1 ones of large batches, cuDNN is faster than kernels like these, so it keeps them.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

BLOCK = 1024
ROWS, COLUMNS, DEPTH, WARPS, STAGES = 64, 32, 64, 4, 5


@triton.jit
def _max_pool(x, y, total, height, width, out_height, out_width, channels: tl.constexpr, block: tl.constexpr):  # type: ignore[no-untyped-def]
    at = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    channel, pixel = at % channels, at // channels
    column, row = pixel % out_width, (pixel // out_width) % out_height
    image = pixel // (out_width * out_height)
    largest = tl.full((block,), float("-inf"), tl.float32)
    for tap in tl.static_range(9):
        i, j = row * 2 - 1 + tap // 3, column * 2 - 1 + tap % 3
        inside = (at < total) & (i >= 0) & (i < height) & (j >= 0) & (j < width)
        value = tl.load(x + ((image * height + i) * width + j) * channels + channel, mask=inside, other=float("-inf"))
        largest = tl.maximum(largest, value.to(tl.float32))
    tl.store(y + at, largest.to(y.dtype.element_ty), mask=at < total)


def max_pool(images: torch.Tensor) -> torch.Tensor:
    """3x3, stride 2, padding 1: (N, C, H, W) channels_last, C a power of two -> (N, C, ceil(H/2), ceil(W/2)).

    Raises ValueError for another layout or number of channels.
    """
    count, channels, height, width = images.shape
    if not images.is_contiguous(memory_format=torch.channels_last) or channels & (channels - 1):
        raise ValueError(f"max_pool: {channels} channels came, strides {images.stride()}; wanted: 2^k, channels_last")
    shape = (count, channels, (height + 1) // 2, (width + 1) // 2)
    pooled = torch.empty(shape, dtype=images.dtype, device=images.device, memory_format=torch.channels_last)
    grid = (triton.cdiv(pooled.numel(), BLOCK),)
    _max_pool[grid](images, pooled, pooled.numel(), height, width, shape[2], shape[3], channels, BLOCK)
    return pooled


@triton.jit
def _pointwise(  # type: ignore[no-untyped-def]
    x, weight, bias, residual, y, count, depth, columns,
    adds: tl.constexpr, rows_a_block: tl.constexpr, columns_a_block: tl.constexpr, depth_a_block: tl.constexpr,
):  # fmt: skip
    across = tl.cdiv(columns, columns_a_block)
    row = tl.program_id(0) // across * rows_a_block + tl.arange(0, rows_a_block)
    column = tl.program_id(0) % across * columns_a_block + tl.arange(0, columns_a_block)
    step, inside = tl.arange(0, depth_a_block), (row < count)[:, None]
    left = x + row[:, None].to(tl.int64) * depth + step[None, :]
    right = weight + column[None, :] * depth + step[:, None]
    total = tl.zeros((rows_a_block, columns_a_block), tl.float32)
    for _ in range(depth // depth_a_block):
        total = tl.dot(tl.load(left, mask=inside, other=0.0), tl.load(right), total)
        left += depth_a_block
        right += depth_a_block
    total += tl.load(bias + column).to(tl.float32)[None, :]
    at = row[:, None].to(tl.int64) * columns + column[None, :]
    if adds:
        total += tl.load(residual + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + at, tl.maximum(total, 0.0).to(y.dtype.element_ty), mask=inside)


def pointwise_fits(images: torch.Tensor, weight: torch.Tensor, stride: int) -> bool:
    """Whether `pointwise` can run this convolution: 1x1, stride 1, whole blocks of channels, channels_last."""
    return (
        weight.shape[2:] == (1, 1)
        and stride == 1
        and weight.shape[0] % COLUMNS == 0
        and weight.shape[1] % DEPTH == 0
        and images.is_contiguous(memory_format=torch.channels_last)
    )


def pointwise(
    images: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, residual: torch.Tensor | None
) -> torch.Tensor:
    """relu(1x1 convolution + bias (+ residual)): (N, I, H, W), (O, I, 1, 1), (O,), (N, O, H, W) -> (N, O, H, W).

    All channels_last; sums in fp32. Raises ValueError where `pointwise_fits` is false.
    """
    if not pointwise_fits(images, weight, 1):
        raise ValueError(f"pointwise: images {tuple(images.shape)}, weight {tuple(weight.shape)} came; see the docs")
    count, depth, height, width = images.shape
    columns, rows = weight.shape[0], count * height * width
    shape = (count, columns, height, width)
    out = torch.empty(shape, dtype=images.dtype, device=images.device, memory_format=torch.channels_last)
    grid = (triton.cdiv(rows, ROWS) * (columns // COLUMNS),)
    blocks: dict[str, Any] = {
        "rows_a_block": ROWS, "columns_a_block": COLUMNS, "depth_a_block": DEPTH,
        "num_warps": WARPS, "num_stages": STAGES,
    }  # fmt: skip
    added = images if residual is None else residual
    _pointwise[grid](images, weight, bias, added, out, rows, depth, columns, residual is not None, **blocks)
    return out
