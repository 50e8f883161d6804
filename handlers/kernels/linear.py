"""Triton's matrix products of the encoder, where cuBLAS has no kernel that does all of it at once, or no fast one.

- `linear_activation`, and of e4m3 `linear_activation8`: the activation before the product leaves the registers.
  cuBLASLt's own GELU is the tanh form.
- `linear` and `split_linear`: of few rows, which wait for weights more than they compute; started early, and split
  along the depth so that every multiprocessor has weights to fetch.

T: rows; K: depth; O: columns. Sums are in fp32, those of e4m3 products in what tensor cores have for them.
"""

from __future__ import annotations

import struct
from typing import Any

import torch
import triton
import triton.language as tl
from triton.language.extra import cuda as on_cuda

from handlers.kernels.encoder import saturated
from handlers.kernels.launching import early

try:
    from triton.tools.tensor_descriptor import TensorDescriptor
except ImportError:  # Triton before 3.4 has none
    TensorDescriptor = None

ACTIVATIONS = (
    "", "gelu", "gelu_new", "gelu_pytorch_tanh", "gelu_fast", "gelu_accurate", "relu", "silu", "swish", "quick_gelu"
)  # fmt: skip

TRITON_DTYPES = {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16, torch.float8_e4m3fn: tl.float8e4nv}


@triton.jit
def _erf_gelu(x):  # type: ignore[no-untyped-def]
    """x * Phi(x) = max(x, 0) - |x| * Phi(-|x|), and log2 Phi(-|x|), which is nearly a parabola, as a polynomial.

    Fitted for the least absolute error of the result, 6.4e-7 (scripts/research/fit_gelu.py). It falls for ever.
    """
    a = tl.abs(x)
    exponent = -0.0004733093664981425 * a + 0.0070845577865839005
    exponent = exponent * a - 0.051827386021614075
    exponent = exponent * a - 0.4599924385547638
    exponent = exponent * a - 1.1507878303527832
    exponent = exponent * a - 1.000037670135498
    return tl.maximum(x, 0.0) - a * tl.exp2(exponent)


# The exponent as in _erf_gelu, of degree 3: the GELU's absolute error is 5.5e-5 (scripts/research/fit_gelu.py
# --degree 3), and 3e-4 where it is negative with what fp16 adds. e4m3 rounds what comes out to 3 bits.
EXPONENT8 = (-0.024885634, -0.49882, -1.129246, -1.0035317)


def _gelu8_ptx() -> str:
    """x and a factor, two fp32 each -> the erf GELU of x times the factor, two e4m3, saturated; in pairs of fp16.

    PTX ISA: cvt, ex2 of f16x2. fp32 would need twice the instructions, and they are what this product waits for.
    """
    # Of -|x|, for the last step then needs no sign of its own: every second coefficient changes sign.
    signed = [value if (len(EXPONENT8) - 1 - place) % 2 == 0 else -value for place, value in enumerate(EXPONENT8)]
    constants = [f"mov.b32 c{place}, {_pair(value)};" for place, value in enumerate(signed)]
    horner = ["mov.b32 e, c0;", *(f"fma.rn.f16x2 e, e, a, c{place};" for place in range(1, len(signed)))]
    lines = [
        f".reg .b32 x, a, e, f, zero, c<{len(signed)}>;",
        "mov.b32 zero, 0;",
        *constants,
        "cvt.rn.f16x2.f32 x, $2, $1; cvt.rn.f16x2.f32 f, $3, $3;",
        "or.b32 a, x, 0x80008000;",
        *horner,
        "ex2.approx.f16x2 e, e; max.f16x2 x, x, zero; fma.rn.f16x2 x, a, e, x;",
        "mul.f16x2 x, x, f; cvt.rn.satfinite.e4m3x2.f16x2 $0, x;",
    ]
    return "{" + "\n".join(lines) + "}"


def _pair(value: float) -> str:
    """The bits of two equal fp16."""
    bits = int.from_bytes(struct.pack("<e", value), "little")
    return f"0x{bits:04x}{bits:04x}"


GELU8 = tl.constexpr(_gelu8_ptx())


@triton.jit
def _activate(x, activation: tl.constexpr):  # type: ignore[no-untyped-def]
    if activation == "gelu":
        x = _erf_gelu(x)
    elif (
        activation == "gelu_new" or activation == "gelu_pytorch_tanh"
        or activation == "gelu_fast" or activation == "gelu_accurate"
    ):  # fmt: skip
        x = x * tl.sigmoid(1.5957691216057308 * x * (1.0 + 0.044715 * x * x))  # (1 + tanh(z)) / 2 = sigmoid(2 z)
    elif activation == "relu":
        x = tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)
    elif activation == "silu" or activation == "swish":
        x = x * tl.sigmoid(x)
    elif activation == "quick_gelu":
        x = x * tl.sigmoid(1.702 * x)
    return x


@triton.jit(do_not_specialize=["rows"])
def _tiled(  # type: ignore[no-untyped-def]
    x, weight, bias, y, rows, columns, depth, scale, inverse,
    activation: tl.constexpr, dtype: tl.constexpr, quantises: tl.constexpr, halves: tl.constexpr,
    rows_a_block: tl.constexpr, columns_a_block: tl.constexpr, depth_a_block: tl.constexpr,
    group: tl.constexpr, programs: tl.constexpr,
):  # fmt: skip
    down, across = tl.cdiv(rows, rows_a_block), tl.cdiv(columns, columns_a_block)
    for tile in tl.range(tl.program_id(0), down * across, programs, flatten=True):
        first = tile // (group * across) * group
        size = min(down - first, group)
        row = (first + tile % (group * across) % size) * rows_a_block
        column = tile % (group * across) // size * columns_a_block
        total = tl.zeros((rows_a_block, columns_a_block), tl.float32)
        for step in range(tl.cdiv(depth, depth_a_block)):
            left, right = x.load([row, step * depth_a_block]), weight.load([column, step * depth_a_block])
            total = tl.dot(left, right.T, total)
        at = column + tl.arange(0, columns_a_block)
        if quantises:
            total *= scale
        total += tl.load(bias + at, mask=at < columns, other=0.0).to(tl.float32)[None, :]
        if halves:
            rounded = tl.inline_asm_elementwise(GELU8, "=h,f,f,f,f", [total, inverse], tl.float8e4nv, True, 2)
        else:
            total = _activate(total, activation)
            if quantises:
                total = saturated(total * inverse)
            rounded = total.to(dtype)
        y.store([row, column], rounded)


@triton.jit
def _activation(x, y, total, inverse, activation: tl.constexpr, quantises: tl.constexpr, block: tl.constexpr):  # type: ignore[no-untyped-def]
    at = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    value = _activate(tl.load(x + at, mask=at < total, other=0.0).to(tl.float32), activation)
    if quantises:
        value = saturated(value * inverse)
    tl.store(y + at, value.to(y.dtype.element_ty), mask=at < total)


def has_tensor_memory_access(device: torch.device) -> bool:
    """Whether `linear_activation` can run as one kernel: Hopper and newer, Triton 3.4 and newer."""
    on_gpu = device.type == "cuda" and TensorDescriptor is not None
    return on_gpu and torch.cuda.get_device_capability(device) >= (9, 0)


def tiled_fits(rows: int, columns: int, programs: int) -> bool:
    """Whether `linear_activation` is faster than cuBLAS and `activate` behind it: tiles fill `programs` evenly."""
    tiles = triton.cdiv(rows, 128) * triton.cdiv(columns, 256)
    return rows <= 512 or rows >= 2048 or tiles >= 0.9 * triton.cdiv(tiles, programs) * programs


def linear_activation(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, activation: str, programs: int
) -> torch.Tensor:
    """activation(x W^T + b): (T, K), (O, K), (O,) -> (T, O), tile by tile in programs that stay, `programs` at once.

    programs: multiprocessors. Rows of x and of weight have to be whole 16 bytes (tensor memory access).
    """
    out = torch.empty((len(x), len(weight)), dtype=x.dtype, device=x.device)
    _launch_tiled(x, weight, bias, out, activation, 1.0, 1.0, programs)
    return out


def linear_activation8(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, activation: str,
    scale: float, out_scale: float, programs: int,
) -> torch.Tensor:  # fmt: skip
    """activation(scale * x W^T + b) / out_scale in e4m3, saturated; x (T, K) and weight (O, K) are in e4m3.

    Else as linear_activation. `scale` is both operands' scales multiplied.
    """
    out = torch.empty((len(x), len(weight)), dtype=torch.float8_e4m3fn, device=x.device)
    _launch_tiled(x, weight, bias, out, activation, scale, 1.0 / out_scale, programs)
    return out


def _launch_tiled(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, out: torch.Tensor,
    activation: str, scale: float, inverse: float, programs: int,
) -> None:  # fmt: skip
    few, quantises = len(x) <= 512, x.dtype == torch.float8_e4m3fn
    rows, columns = (64, 128) if few else (128, 256)
    depth = 128 if quantises else 64
    x_block, weight_block, out_block = (
        TensorDescriptor(tensor, list(tensor.shape), list(tensor.stride()), block)
        for tensor, block in ((x, [rows, depth]), (weight, [columns, depth]), (out, [rows, columns]))
    )
    grid = min(programs * (2 if few else 1), triton.cdiv(len(x), rows) * triton.cdiv(len(weight), columns))
    _tiled[(grid,)](
        x_block, weight_block, bias, out_block, len(x), len(weight), x.shape[1], scale, inverse,
        activation=activation, dtype=TRITON_DTYPES[out.dtype], quantises=quantises,
        halves=quantises and activation == "gelu" and x.is_cuda,
        rows_a_block=rows, columns_a_block=columns, depth_a_block=depth, group=8, programs=grid,
        num_warps=4 if few else 8, num_stages=4 if few else 3,
    )  # fmt: skip


def activate(x: torch.Tensor, activation: str) -> torch.Tensor:
    """activation(x) of any contiguous x, in place."""
    grid = (triton.cdiv(x.numel(), 2048),)
    _activation[grid](x, x, x.numel(), 1.0, activation=activation, quantises=False, block=2048, num_warps=4)
    return x


def activate8(x: torch.Tensor, activation: str, scale: float) -> torch.Tensor:
    """activation(x) / scale in e4m3, saturated; of any contiguous x, in its shape."""
    out = torch.empty_like(x, dtype=torch.float8_e4m3fn)
    grid = (triton.cdiv(x.numel(), 2048),)
    _activation[grid](x, out, x.numel(), 1.0 / scale, activation=activation, quantises=True, block=2048, num_warps=4)
    return out


@triton.jit(do_not_specialize=["rows"])
def _split(  # type: ignore[no-untyped-def]
    x, weight, bias, y, rows, columns, depth, activation: tl.constexpr, has_bias: tl.constexpr,
    share: tl.constexpr, rows_a_block: tl.constexpr, columns_a_block: tl.constexpr, depth_a_block: tl.constexpr,
    early: tl.constexpr,
):  # fmt: skip
    column = tl.program_id(0) * columns_a_block + tl.arange(0, columns_a_block)
    row = tl.program_id(1) * rows_a_block + tl.arange(0, rows_a_block)
    step = tl.program_id(2) * share + tl.arange(0, depth_a_block)
    inside, wide = (row < rows)[:, None], (column < columns)[None, :]
    left = x + row[:, None] * depth + step[None, :]
    right = weight + column[None, :] * depth + step[:, None]
    if early:
        on_cuda.gdc_wait()
    total = tl.zeros((rows_a_block, columns_a_block), tl.float32)
    for _ in range(share // depth_a_block):
        total = tl.dot(tl.load(left, mask=inside, other=0.0), tl.load(right, mask=wide, other=0.0), total)
        left += depth_a_block
        right += depth_a_block
    if early:
        on_cuda.gdc_launch_dependents()
    if has_bias:
        total += tl.load(bias + column, mask=column < columns, other=0.0).to(tl.float32)[None, :]
    at = tl.program_id(2) * rows * columns + row[:, None] * columns + column[None, :]
    tl.store(y + at, _activate(total, activation).to(y.dtype.element_ty), mask=inside & wide)


def split_linear(x: torch.Tensor, weight: torch.Tensor, splits: int) -> torch.Tensor:
    """x W^T as `splits` fp32 summands along the depth: (T, K), (O, K) -> (splits, T, O)."""
    out = torch.empty((splits, len(x), len(weight)), dtype=torch.float32, device=x.device)
    return _few_rows(x, weight, weight, out, "", False, x.shape[1] // splits)


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, activation: str = "") -> torch.Tensor:
    """activation(x W^T + b): (T, K), (O, K), (O,) -> (T, O), for few rows."""
    out = torch.empty((len(x), len(weight)), dtype=x.dtype, device=x.device)
    return _few_rows(x, weight, bias, out, activation, True, x.shape[1])


def _few_rows(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, out: torch.Tensor,
    activation: str, has_bias: bool, share: int,
) -> torch.Tensor:  # fmt: skip
    if share % 64:
        raise ValueError(f"a depth of {x.shape[1]} came, {share} a program; wanted: a multiple of 64 for each")
    # Rows and columns of a block, and its depth: the fastest for BERT-Large's shapes on an H200.
    if not has_bias:
        columns, depth = 64, 64
    elif len(x) <= 128:
        columns, depth = 32, 128 if share % 128 == 0 else 64
    else:
        columns, depth = 128, 64
    rows, stages = 64, 4 if depth == 128 else 5
    grid = (triton.cdiv(len(weight), columns), triton.cdiv(len(x), rows), x.shape[1] // share)
    options: dict[str, Any] = {"num_warps": 4, "num_stages": stages, **early(x)}
    _split[grid](
        x, weight, bias, out, len(x), len(weight), x.shape[1], activation=activation, has_bias=has_bias,
        share=share, rows_a_block=rows, columns_a_block=columns, depth_a_block=depth, **options,
    )  # fmt: skip
    return out
