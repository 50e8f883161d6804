"""Triton's matrix products of the encoder, used where cuBLAS has no kernel that does all of it, or no fast one.

- `linear_activation`, and in e4m3 `linear_activation8`: a persistent kernel that computes the activation before the
  product leaves the registers. cuBLASLt's own GELU is the tanh form.
- `linear` and `split_linear`: for few rows, which wait for weights more than they compute. They start early (see
  launching.py), and split the depth, so that every multiprocessor has weights to fetch.

In shapes: T rows; K depth; O columns. Sums are in fp32; those of e4m3 products are what tensor cores offer for them.
"""

from __future__ import annotations

import struct
from typing import Any

import torch
import triton
import triton.language as tl
from triton.language.extra import cuda as on_cuda

from handlers.kernels.encoder import clamp_e4m3
from handlers.kernels.launching import pdl_options

try:
    from triton.tools.tensor_descriptor import TensorDescriptor
except ImportError:  # Triton before 3.4 has none
    TensorDescriptor = None

# By the names of transformers' configs; "" is none.
ACTIVATIONS = (
    "", "gelu", "gelu_new", "gelu_pytorch_tanh", "gelu_fast", "gelu_accurate", "relu", "silu", "swish", "quick_gelu"
)  # fmt: skip

TRITON_DTYPES = {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16, torch.float8_e4m3fn: tl.float8e4nv}


@triton.jit
def _erf_gelu(x):  # type: ignore[no-untyped-def]
    """GELU(x) = x * Phi(x) = max(x, 0) - |x| * Phi(-|x|), in fp32.

    A polynomial stands for log2 Phi(-|x|), which is nearly a parabola. It is fitted for the least absolute error of
    the result, 6.4e-7 (scripts/research/fit_gelu.py), and falls for every larger |x|.
    """
    a = tl.abs(x)
    exponent = -0.0004733093664981425 * a + 0.0070845577865839005
    exponent = exponent * a - 0.051827386021614075
    exponent = exponent * a - 0.4599924385547638
    exponent = exponent * a - 1.1507878303527832
    exponent = exponent * a - 1.000037670135498
    return tl.maximum(x, 0.0) - a * tl.exp2(exponent)


# The polynomial of _erf_gelu, of degree 3. The GELU's absolute error is 5.5e-5 (scripts/research/fit_gelu.py
# --degree 3); computed in fp16 it is 3e-4 for negative results. e4m3 rounds the result to 3 bits.
EXPONENT8 = (-0.024885634, -0.49882, -1.129246, -1.0035317)


def _gelu8_ptx() -> str:
    """PTX for two elements: erf GELU(x) * factor, computed in fp16, clamped to e4m3's range.

    Its operands are x and the factor, two fp32 each; its result is two e4m3. In fp32 it would take twice the
    instructions, and this product waits for instructions. Source: PTX ISA, cvt and ex2 of f16x2.
    """
    # A polynomial in -|x|: every second coefficient changes its sign, and the last step needs no extra sign.
    degree = len(EXPONENT8) - 1
    signed = [value if (degree - index) % 2 == 0 else -value for index, value in enumerate(EXPONENT8)]
    constants = [f"mov.b32 c{index}, {_pair(value)};" for index, value in enumerate(signed)]
    horner = ["mov.b32 e, c0;", *(f"fma.rn.f16x2 e, e, a, c{index};" for index in range(1, len(signed)))]
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
    """Return the bits of two equal fp16 as hexadecimal."""
    bits = int.from_bytes(struct.pack("<e", value), "little")
    return f"0x{bits:04x}{bits:04x}"


GELU8 = tl.constexpr(_gelu8_ptx())


@triton.jit
def _activate(x, activation: tl.constexpr):  # type: ignore[no-untyped-def]
    """activation(x), one of ACTIVATIONS, in fp32."""
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
def _linear_activation(  # type: ignore[no-untyped-def]
    x,  # descriptor of (T, K), in blocks of (block_rows, block_depth)
    weight,  # descriptor of (O, K), in blocks of (block_columns, block_depth)
    bias,  # (O,)
    y,  # descriptor of (T, O), in blocks of (block_rows, block_columns)
    rows, columns, depth,  # T, O, K
    scale,  # of the product, read if quantises
    inverse,  # 1 / scale of y, read if quantises
    activation: tl.constexpr,  # one of ACTIVATIONS
    dtype: tl.constexpr,  # of y
    quantises: tl.constexpr,  # x, weight and y are e4m3
    gelu_in_fp16: tl.constexpr,  # by GELU8
    block_rows: tl.constexpr, block_columns: tl.constexpr,  # of a tile of y
    block_depth: tl.constexpr,  # per step
    group: tl.constexpr,  # rows of tiles that are computed together, for the L2 cache
    programs: tl.constexpr,  # that run at once, each computing every programs-th tile
):  # fmt: skip
    down, across = tl.cdiv(rows, block_rows), tl.cdiv(columns, block_columns)
    for tile in tl.range(tl.program_id(0), down * across, programs, flatten=True):
        first = tile // (group * across) * group
        size = min(down - first, group)
        row = (first + tile % (group * across) % size) * block_rows
        column = tile % (group * across) // size * block_columns
        total = tl.zeros((block_rows, block_columns), tl.float32)
        for step in range(tl.cdiv(depth, block_depth)):
            left, right = x.load([row, step * block_depth]), weight.load([column, step * block_depth])
            total = tl.dot(left, right.T, total)
        at = column + tl.arange(0, block_columns)
        if quantises:
            total *= scale
        total += tl.load(bias + at, mask=at < columns, other=0.0).to(tl.float32)[None, :]
        if gelu_in_fp16:
            rounded = tl.inline_asm_elementwise(GELU8, "=h,f,f,f,f", [total, inverse], tl.float8e4nv, True, 2)
        else:
            total = _activate(total, activation)
            if quantises:
                total = clamp_e4m3(total * inverse)
            rounded = total.to(dtype)
        y.store([row, column], rounded)


@triton.jit
def _elementwise_activation(  # type: ignore[no-untyped-def]
    x,  # (total,)
    y,  # (total,); e4m3 if quantises
    total,
    inverse,  # 1 / scale of y, read if quantises
    activation: tl.constexpr,  # one of ACTIVATIONS
    quantises: tl.constexpr,
    block: tl.constexpr,  # elements per program
):
    at = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    value = _activate(tl.load(x + at, mask=at < total, other=0.0).to(tl.float32), activation)
    if quantises:
        value = clamp_e4m3(value * inverse)
    tl.store(y + at, value.to(y.dtype.element_ty), mask=at < total)


def has_tensor_memory_access(device: torch.device) -> bool:
    """Whether `linear_activation` can run: on Hopper and newer, with Triton 3.4 and newer."""
    on_gpu = device.type == "cuda" and TensorDescriptor is not None
    return on_gpu and torch.cuda.get_device_capability(device) >= (9, 0)


def persistent_is_faster(rows: int, columns: int, programs: int) -> bool:
    """Whether `linear_activation` is faster than cuBLAS followed by `activate`: if tiles fill the programs evenly.

    Args:
        rows: T.
        columns: O.
        programs: multiprocessors.
    """
    tiles = triton.cdiv(rows, 128) * triton.cdiv(columns, 256)
    return rows <= 512 or rows >= 2048 or tiles >= 0.9 * triton.cdiv(tiles, programs) * programs


def linear_activation(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, activation: str, programs: int
) -> torch.Tensor:
    """activation(x W^T + b), in a persistent kernel. Needs `has_tensor_memory_access`.

    Args:
        x: (T, K), fp16 or bf16. Its rows have to be multiples of 16 bytes (for tensor memory access).
        weight: (O, K), like x.
        bias: (O,).
        activation: one of ACTIVATIONS.
        programs: multiprocessors.

    Returns: (T, O), in x's dtype.
    """
    out = torch.empty((len(x), len(weight)), dtype=x.dtype, device=x.device)
    _launch_linear_activation(x, weight, bias, out, activation, 1.0, 1.0, programs)
    return out


def linear_activation8(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, activation: str,
    scale: float, out_scale: float, programs: int,
) -> torch.Tensor:  # fmt: skip
    """activation(scale * x W^T + b) / out_scale, in a persistent kernel. Needs `has_tensor_memory_access`.

    Args:
        x: (T, K) e4m3. Its rows have to be multiples of 16 bytes (for tensor memory access).
        weight: (O, K) e4m3, like x.
        bias: (O,).
        activation: one of ACTIVATIONS.
        scale: the scale of x times the scale of weight.
        out_scale: of the result.
        programs: multiprocessors.

    Returns: (T, O) e4m3, clamped to its range.
    """
    out = torch.empty((len(x), len(weight)), dtype=torch.float8_e4m3fn, device=x.device)
    _launch_linear_activation(x, weight, bias, out, activation, scale, 1.0 / out_scale, programs)
    return out


def _launch_linear_activation(
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
    _linear_activation[(grid,)](
        x_block, weight_block, bias, out_block, len(x), len(weight), x.shape[1], scale, inverse,
        activation=activation, dtype=TRITON_DTYPES[out.dtype], quantises=quantises,
        gelu_in_fp16=quantises and activation == "gelu" and x.is_cuda,
        block_rows=rows, block_columns=columns, block_depth=depth, group=8, programs=grid,
        num_warps=4 if few else 8, num_stages=4 if few else 3,
    )  # fmt: skip


def activate(x: torch.Tensor, activation: str) -> torch.Tensor:
    """activation(x), in place. x: contiguous, of any shape. Returns x."""
    grid = (triton.cdiv(x.numel(), 2048),)
    _elementwise_activation[grid](
        x, x, x.numel(), 1.0, activation=activation, quantises=False, block=2048, num_warps=4
    )
    return x


def activate8(x: torch.Tensor, activation: str, scale: float) -> torch.Tensor:
    """activation(x) / scale. x: contiguous, of any shape. Returns e4m3 of that shape, clamped to its range."""
    out = torch.empty_like(x, dtype=torch.float8_e4m3fn)
    grid = (triton.cdiv(x.numel(), 2048),)
    _elementwise_activation[grid](
        x, out, x.numel(), 1.0 / scale, activation=activation, quantises=True, block=2048, num_warps=4
    )
    return out


@triton.jit(do_not_specialize=["rows"])
def _split_linear(  # type: ignore[no-untyped-def]
    x,  # (T, K)
    weight,  # (O, K)
    bias,  # (O,), read if has_bias
    y,  # (splits, T, O)
    rows, columns, depth,  # T, O, K
    activation: tl.constexpr,  # one of ACTIVATIONS
    has_bias: tl.constexpr,
    share: tl.constexpr,  # K / splits
    block_rows: tl.constexpr, block_columns: tl.constexpr,  # of the tile of y that a program computes
    block_depth: tl.constexpr,  # per step
    pdl: tl.constexpr,  # see launching.py
):  # fmt: skip
    column = tl.program_id(0) * block_columns + tl.arange(0, block_columns)
    row = tl.program_id(1) * block_rows + tl.arange(0, block_rows)
    step = tl.program_id(2) * share + tl.arange(0, block_depth)
    inside, wide = (row < rows)[:, None], (column < columns)[None, :]
    left = x + row[:, None] * depth + step[None, :]
    right = weight + column[None, :] * depth + step[:, None]
    if pdl:
        on_cuda.gdc_wait()
    total = tl.zeros((block_rows, block_columns), tl.float32)
    for _ in range(share // block_depth):
        total = tl.dot(tl.load(left, mask=inside, other=0.0), tl.load(right, mask=wide, other=0.0), total)
        left += block_depth
        right += block_depth
    if pdl:
        on_cuda.gdc_launch_dependents()
    if has_bias:
        total += tl.load(bias + column, mask=column < columns, other=0.0).to(tl.float32)[None, :]
    at = tl.program_id(2) * rows * columns + row[:, None] * columns + column[None, :]
    tl.store(y + at, _activate(total, activation).to(y.dtype.element_ty), mask=inside & wide)


def split_linear(x: torch.Tensor, weight: torch.Tensor, splits: int) -> torch.Tensor:
    """x W^T for few rows, as summands over parts of the depth.

    Args:
        x: (T, K).
        weight: (O, K).
        splits: the number of parts; K / splits has to be a multiple of 64.

    Returns: (splits, T, O) fp32; encoder.add_norm sums them.

    Raises:
        ValueError: for another depth.
    """
    out = torch.empty((splits, len(x), len(weight)), dtype=torch.float32, device=x.device)
    return _launch_split_linear(x, weight, weight, out, "", False, x.shape[1] // splits)


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, activation: str = "") -> torch.Tensor:
    """activation(x W^T + b), for few rows.

    Args:
        x: (T, K); K has to be a multiple of 64.
        weight: (O, K).
        bias: (O,).
        activation: one of ACTIVATIONS.

    Returns: (T, O), in x's dtype.

    Raises:
        ValueError: for another depth.
    """
    out = torch.empty((len(x), len(weight)), dtype=x.dtype, device=x.device)
    return _launch_split_linear(x, weight, bias, out, activation, True, x.shape[1])


def _launch_split_linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, out: torch.Tensor,
    activation: str, has_bias: bool, share: int,
) -> torch.Tensor:  # fmt: skip
    if share % 64:
        raise ValueError(f"a depth of {x.shape[1]} came, {share} a program; wanted: a multiple of 64 for each")
    # Columns and depth of a block: the fastest for BERT-Large's shapes on an H200.
    if not has_bias:
        columns, depth = 64, 64
    elif len(x) <= 128:
        columns, depth = 32, 128 if share % 128 == 0 else 64
    else:
        columns, depth = 128, 64
    rows, stages = 64, 4 if depth == 128 else 5
    grid = (triton.cdiv(len(weight), columns), triton.cdiv(len(x), rows), x.shape[1] // share)
    options: dict[str, Any] = {"num_warps": 4, "num_stages": stages, **pdl_options(x)}
    _split_linear[grid](
        x, weight, bias, out, len(x), len(weight), x.shape[1], activation=activation, has_bias=has_bias,
        share=share, block_rows=rows, block_columns=columns, block_depth=depth, **options,
    )  # fmt: skip
    return out
