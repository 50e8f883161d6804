"""Triton kernels that turn decoded pictures of any size into one batch of normalised crops.

Two kernels run per batch. The first computes the resampling weights, the second resizes, crops and normalises. They
follow Pillow's `Image.resize` step by step: weights in fp64, then in fixed point with 22 fractional bits; along rows
first; rounded to uint8 before the other direction. So every pixel of a crop equals Pillow's.

In shapes: N pictures; `size` is the side of a crop; `taps` is the most source pixels of one output pixel, per axis.

Source: Pillow, src/libImaging/Resample.c (precompute_coeffs, normalize_coeffs_8bpc, ImagingResample).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl

BITS = tl.constexpr(22)  # fractional bits of a weight: Pillow's PRECISION_BITS
ONE, HALF = tl.constexpr(1 << 22), tl.constexpr(1 << 21)

FIELDS = tl.constexpr(10)  # columns of the table that describes pictures to the kernels; see Picture.row

FILTERS = {"bilinear": (0, 1.0), "bicubic": (1, 2.0)}  # (1 if cubic, support in source pixels)


@triton.jit
def _filter(x, cubic: tl.constexpr):  # type: ignore[no-untyped-def]
    """The filter's weight at the distance x from its centre."""
    x = tl.abs(x)
    if cubic:  # a = -0.5
        near = ((1.5 * x) - 2.5) * x * x + 1.0
        far = (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5
        return tl.where(x < 1.0, near, tl.where(x < 2.0, far, 0.0))
    return tl.where(x < 1.0, 1.0 - x, 0.0)


@triton.jit(do_not_specialize=["taps"])
def _weights(  # type: ignore[no-untyped-def]
    pictures,  # (N, FIELDS) int64
    first,  # (N, 2, size) int32: index of each output pixel's first source pixel, along x and along y
    counts,  # (N, 2) int32: the most source pixels of any output pixel
    weights,  # (N, 2, taps, size) int32: in fixed point; zeros after an output pixel's last source pixel
    size,
    support: tl.constexpr,  # of the filter, in source pixels
    taps,
    cubic: tl.constexpr,
    block: tl.constexpr,  # a power of two, at least size
):  # fmt: skip
    picture, axis = tl.program_id(0).to(tl.int64), tl.program_id(1)
    row = pictures + picture * FIELDS
    length = tl.load(row + 4 + axis)
    resized = tl.load(row + 6 + axis)
    offset = tl.load(row + 8 + axis)
    at = tl.arange(0, block)
    inside = at < size
    scale = length.to(tl.float64) / resized.to(tl.float64)
    stretch = tl.maximum(scale, 1.0)  # a filter never gets narrower than its support
    reach = support * stretch
    center = ((at + offset).to(tl.float64) + 0.5) * scale
    low = tl.maximum((center - reach + 0.5).to(tl.int32), 0)
    count = tl.minimum((center + reach + 0.5).to(tl.int32), length.to(tl.int32)) - low
    total = tl.zeros((block,), tl.float64)
    for tap in range(taps):
        value = _filter(((tap + low).to(tl.float64) - center + 0.5) * (1.0 / stretch), cubic)
        total += tl.where(tap < count, value, 0.0)
    plane = (picture * 2 + axis) * size
    tl.store(first + plane + at, low, mask=inside)
    tl.store(counts + picture * 2 + axis, tl.max(tl.where(inside, count, 0), 0))
    for tap in range(taps):
        value = _filter(((tap + low).to(tl.float64) - center + 0.5) * (1.0 / stretch), cubic)
        value = tl.where((tap < count) & (total != 0.0), value / total, 0.0) * ONE
        fixed = tl.where(value < 0.0, value - 0.5, value + 0.5).to(tl.int32)  # rounds towards zero behind the half
        tl.store(weights + plane * taps + tap * size + at, fixed, mask=inside)


@triton.jit
def _clip(value):  # type: ignore[no-untyped-def]
    """From fixed point to 0..255."""
    return tl.minimum(tl.maximum(value >> BITS, 0), 255)


@triton.jit(do_not_specialize=["taps"])
def _crop(  # type: ignore[no-untyped-def]
    pictures,  # (N, FIELDS) int64
    first,  # (N, 2, size) int32; see _weights
    counts,  # (N, 2) int32
    weights,  # (N, 2, taps, size) int32
    scale, shift,  # (3,) fp32: a value v of 0..255 becomes v * scale - shift
    out,  # (N, size, size, channels)
    size, channels, taps,
    block: tl.constexpr,  # a power of two, at least size
):  # fmt: skip
    picture, y = tl.program_id(0).to(tl.int64), tl.program_id(1)
    x = tl.arange(0, block)
    inside = x < size
    row = pictures + picture * FIELDS
    pixels = tl.load(row).to(tl.pointer_type(tl.uint8))
    row_stride = tl.load(row + 1)
    column_stride, channel_stride = tl.load(row + 2).to(tl.int32), tl.load(row + 3).to(tl.int32)
    columns, rows = picture * 2 * size, (picture * 2 + 1) * size  # where the planes of the two axes begin
    left = tl.load(first + columns + x, mask=inside, other=0)
    top = tl.load(first + rows + y).to(tl.int64)
    across, down = tl.load(counts + picture * 2), tl.load(counts + picture * 2 + 1)
    half = tl.full((block,), HALF, tl.int32)
    red, green, blue = half, half, half
    for j in range(down):
        vertical = tl.load(weights + rows * taps + j * size + y)
        if vertical != 0:
            line = pixels + (top + j) * row_stride
            r, g, b = half, half, half
            for i in range(across):
                horizontal = tl.load(weights + columns * taps + i * size + x, mask=inside, other=0)
                pixel = line + (left + i) * column_stride
                wanted = horizontal != 0
                r += horizontal * tl.load(pixel, mask=wanted, other=0).to(tl.int32)
                g += horizontal * tl.load(pixel + channel_stride, mask=wanted, other=0).to(tl.int32)
                b += horizontal * tl.load(pixel + 2 * channel_stride, mask=wanted, other=0).to(tl.int32)
            red += vertical * _clip(r)
            green += vertical * _clip(g)
            blue += vertical * _clip(b)
    at = out + ((picture * size + y) * size + x) * channels
    tl.store(at, (_clip(red) * tl.load(scale) - tl.load(shift)).to(out.dtype.element_ty), mask=inside)
    tl.store(at + 1, (_clip(green) * tl.load(scale + 1) - tl.load(shift + 1)).to(out.dtype.element_ty), mask=inside)
    tl.store(at + 2, (_clip(blue) * tl.load(scale + 2) - tl.load(shift + 2)).to(out.dtype.element_ty), mask=inside)


def taps_of(reduction: float, interpolation: str) -> int:
    """Return the most source pixels that one output pixel reads per axis.

    Args:
        reduction: how many times smaller a side becomes; less than 1 if it grows.
        interpolation: a key of FILTERS.
    """
    support = FILTERS[interpolation][1] * max(reduction, 1.0)
    return int(support) * 2 + 3


class Picture(NamedTuple):
    """A decoded picture in the GPU's memory, and what is to become of it.

    Args:
        pixels: uint8 tensor, or address of the first pixel's first channel, as the picture is stored.
        strides: bytes to the next row, column and channel. A channel stride of 0 reads grey as RGB.
        width, height: in pixels, as the picture is stored.
        resized: width and height that the upright picture is resized to.
        corner: left and top of the crop within the resized picture.
        orientation: EXIF's, 1 to 8. The picture is turned upright before anything else.
    """

    pixels: torch.Tensor | int
    strides: tuple[int, int, int]
    width: int
    height: int
    resized: tuple[int, int]
    corner: tuple[int, int]
    orientation: int = 1

    def row(self) -> tuple[int, ...]:
        """Return the FIELDS numbers that the kernels read.

        They are the address, the strides to the next row, column and channel of the upright picture, its width and
        height, `resized` and `corner`.
        """
        address = self.pixels.data_ptr() if isinstance(self.pixels, torch.Tensor) else self.pixels
        down, right, channel = self.strides
        if self.orientation in (2, 3, 7, 8):  # the upright picture begins at the stored one's right edge
            address, right = address + (self.width - 1) * right, -right
        if self.orientation in (3, 4, 6, 7):  # it begins at the stored one's bottom
            address, down = address + (self.height - 1) * down, -down
        if self.orientation < 5:
            return (address, down, right, channel, self.width, self.height, *self.resized, *self.corner)
        return (address, right, down, channel, self.height, self.width, *self.resized, *self.corner)

    @property
    def reduction(self) -> float:
        """How many times smaller a side becomes: the larger value of the two sides."""
        _, _, _, _, width, height, *_ = self.row()
        return max(width / self.resized[0], height / self.resized[1])


def crops(
    pictures: Sequence[Picture], interpolation: str, scale: torch.Tensor, shift: torch.Tensor, out: torch.Tensor
) -> torch.Tensor:
    """Resize, centre-crop and normalise pictures of any sizes into `out`, and return it.

    Args:
        pictures: N of them, in the memory of `out`'s device.
        interpolation: a key of FILTERS.
        scale, shift: (3,) fp32 on that device. A value v of 0..255 becomes v * scale - shift.
        out: (N, size, size, C) contiguous, C >= 3, fp16, bf16 or fp32. Channels after the third stay as they are.

    Raises:
        ValueError: for another shape.
    """
    count, size = len(pictures), out.shape[1]
    if out.shape[:3] != (count, size, size) or out.shape[3] < 3 or not out.is_contiguous():
        raise ValueError(f"crops: out {tuple(out.shape)} for {count} pictures; wanted: (N, S, S, 3), contiguous")
    table = torch.tensor([picture.row() for picture in pictures])  # (N, FIELDS) int64
    table = table.to(out.device, non_blocking=True)
    number, support = FILTERS[interpolation]
    taps = taps_of(max(picture.reduction for picture in pictures), interpolation)
    block = max(32, triton.next_power_of_2(size))
    first = torch.empty((count, 2, size), dtype=torch.int32, device=out.device)
    counts = torch.empty((count, 2), dtype=torch.int32, device=out.device)
    weights = torch.empty((count, 2, taps, size), dtype=torch.int32, device=out.device)
    with torch.cuda.device_of(out):
        _weights[(count, 2)](table, first, counts, weights, size, support, taps=taps, cubic=number == 1, block=block)
        _crop[(count, size)](
            table, first, counts, weights, scale, shift, out, size, out.shape[3], taps=taps, block=block
        )  # fmt: skip
    return out
