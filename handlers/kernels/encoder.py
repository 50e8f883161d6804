"""Triton kernels of the fused encoder: LayerNorm, attention, embeddings.

Their twin in PyTorch is handlers.encoder.ops. Sums and statistics are in fp32. A scalar is named like the size that
it holds; a launcher, below each kernel, has the checks.

In shapes: T packed tokens; H hidden size; N sequences; D size of a head.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.language.extra import cuda as on_cuda

from handlers.kernels.launching import pdl_options

LOG2_E = 1.4426950408889634
TILE = 64  # the most queries of one sequence that a program of `attention` answers at a time
KEYS_PER_STEP = 64
# `attention` starts 1.5 programs per TILE rows and head, and at least MIN_PROGRAMS per head. A graph has more tiles
# than that, but only very short texts fill them; programs then take several tiles each.
MIN_PROGRAMS = 32


@triton.jit
def _norm(  # type: ignore[no-untyped-def]
    x,  # (rows, block) fp32 values, zeros outside
    inside,  # (rows, block): which of them exist
    columns,  # H
    weight, bias,  # pointers to (H,)
    at,  # (block,): indices of columns
    eps,
):  # fmt: skip
    """LayerNorm of each row, in fp32."""
    mean = tl.sum(x, 1) / columns
    centred = tl.where(inside, x - mean[:, None], 0.0)
    spread = 1.0 / tl.sqrt(tl.sum(centred * centred, 1) / columns + eps)
    scale = tl.load(weight + at, mask=at < columns, other=0.0).to(tl.float32)
    shift = tl.load(bias + at, mask=at < columns, other=0.0).to(tl.float32)
    return centred * spread[:, None] * scale[None, :] + shift[None, :]


@triton.jit
def clamp_e4m3(x):  # type: ignore[no-untyped-def]
    """Clamp x to the range of e4m3; NaN stays NaN."""
    return tl.clamp(x, -448.0, 448.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit(do_not_specialize=["rows"])
def _add_norm(  # type: ignore[no-untyped-def]
    parts,  # (count, T, H)
    residual,  # (T, H), read if adds
    added,  # (H,), read if adds
    weight, bias,  # (H,), of LayerNorm
    y,  # (T, H)
    y8,  # (T, H) e4m3, written if quantises
    rows, columns, eps,  # T, H
    inverse,  # 1 / scale of y8
    count: tl.constexpr,  # parts
    adds: tl.constexpr, quantises: tl.constexpr,
    block_rows: tl.constexpr,  # rows per program
    block: tl.constexpr,  # the next power of two from H
    pdl: tl.constexpr,  # see launching.py
):  # fmt: skip
    if pdl:
        on_cuda.gdc_wait()
    row, at = tl.program_id(0) * block_rows + tl.arange(0, block_rows), tl.arange(0, block)
    inside = (row < rows)[:, None] & (at < columns)[None, :]
    offset = row[:, None].to(tl.int64) * columns + at[None, :]
    value = tl.load(parts + offset, mask=inside, other=0.0).to(tl.float32)
    for part in tl.static_range(1, count):
        value += tl.load(parts + part * rows * columns + offset, mask=inside, other=0.0).to(tl.float32)
    if adds:
        value += tl.load(residual + offset, mask=inside, other=0.0).to(tl.float32)
        value += tl.load(added + at, mask=at < columns, other=0.0).to(tl.float32)[None, :]
    if pdl:
        on_cuda.gdc_launch_dependents()
    normed = _norm(value, inside, columns, weight, bias, at, eps)
    tl.store(y + offset, normed.to(y.dtype.element_ty), mask=inside)
    if quantises:
        tl.store(y8 + offset, clamp_e4m3(normed * inverse).to(y8.dtype.element_ty), mask=inside)


def add_norm(
    parts: torch.Tensor,
    residual: torch.Tensor | None,
    added: torch.Tensor | None,
    weight: torch.Tensor,
    bias: torch.Tensor,
    eps: float,
) -> torch.Tensor:
    """LayerNorm of each row of parts.sum(0) + residual + added.

    Args:
        parts: (P, T, H), in the weight's dtype; or in fp32, the summands of linear.split_linear.
        residual: (T, H), or None.
        added: (H,), a bias; None if residual is None.
        weight: (H,).
        bias: (H,), of LayerNorm.
        eps: of LayerNorm.

    Returns: (T, H), in the weight's dtype.
    """
    out = torch.empty(parts.shape[1:], dtype=weight.dtype, device=parts.device)
    _launch_add_norm(parts, residual, added, weight, bias, eps, out, None, 1.0)
    return out


def add_norm8(
    parts: torch.Tensor,
    residual: torch.Tensor,
    added: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    eps: float,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `add_norm`, and quantise the result.

    Args:
        parts: (P, T, H), as for `add_norm`.
        residual: (T, H).
        added: (H,).
        weight: (H,).
        bias: (H,).
        eps: of LayerNorm.
        scale: that the second result has to be multiplied by.

    Returns: (T, H) in the weight's dtype, and the same divided by `scale` in e4m3, clamped to its range.
    """
    out = torch.empty(parts.shape[1:], dtype=weight.dtype, device=parts.device)
    out8 = torch.empty_like(out, dtype=torch.float8_e4m3fn)
    _launch_add_norm(parts, residual, added, weight, bias, eps, out, out8, 1.0 / scale)
    return out, out8


def _launch_add_norm(
    parts: torch.Tensor, residual: torch.Tensor | None, added: torch.Tensor | None, weight: torch.Tensor,
    bias: torch.Tensor, eps: float, out: torch.Tensor, out8: torch.Tensor | None, inverse: float,
) -> None:  # fmt: skip
    count, rows, columns = parts.shape
    adds, quantises = residual is not None, out8 is not None
    block_rows = 1 if columns >= 512 else 4
    _add_norm[(triton.cdiv(rows, block_rows),)](
        parts, residual if adds else parts, added if adds else weight, weight, bias, out, out8 if quantises else out,
        rows, columns, eps, inverse, count=count, adds=adds, quantises=quantises, block_rows=block_rows,
        block=triton.next_power_of_2(columns), num_warps=4, **pdl_options(parts),
    )  # fmt: skip


@triton.jit
def _embed_norm(  # type: ignore[no-untyped-def]
    word_table,  # (V, H)
    position_table,  # (P, H), read if has_positions
    type_table,  # (K, H), read if has_types
    ids,  # (T,) int64
    positions,  # (T,) int64, read if has_positions
    types,  # (T,) int64, read if has_types
    weight, bias,  # (H,), of LayerNorm
    y,  # (T, H)
    columns, eps,  # H
    has_positions: tl.constexpr, has_types: tl.constexpr,
    block: tl.constexpr,  # the next power of two from H
):  # fmt: skip
    row, at = tl.program_id(0), tl.arange(0, block)
    inside = at < columns
    value = tl.load(word_table + tl.load(ids + row) * columns + at, mask=inside, other=0.0).to(tl.float32)
    if has_types:
        value += tl.load(type_table + tl.load(types + row) * columns + at, mask=inside, other=0.0).to(tl.float32)
    if has_positions:
        at_position = position_table + tl.load(positions + row) * columns + at
        value += tl.load(at_position, mask=inside, other=0.0).to(tl.float32)
    normed = _norm(value[None, :], inside[None, :], columns, weight, bias, at, eps)
    where = y + row.to(tl.int64) * columns + at[None, :]
    tl.store(where, normed.to(y.dtype.element_ty), mask=inside[None, :])


def embed_norm(
    tables: tuple[torch.Tensor, ...],
    ids: tuple[torch.Tensor, ...],
    weight: torch.Tensor,
    bias: torch.Tensor,
    eps: float,
) -> torch.Tensor:
    """LayerNorm of the sum of up to three embeddings per token.

    Args:
        tables: (V_i, H) each: of words, token types, positions, in this order.
        ids: (T,) int64 for each table. The caller has to refuse ids outside their table.
        weight: (H,).
        bias: (H,).
        eps: of LayerNorm.

    Returns: (T, H), in the weight's dtype.

    Raises:
        ValueError: for no table, more than three, or another number of ids.
    """
    if not 1 <= len(tables) == len(ids) <= 3:
        raise ValueError(f"embed_norm: {len(tables)} tables and {len(ids)} ids came; wanted: one to three of each")
    rows, columns = len(ids[0]), tables[0].shape[1]
    out = torch.empty((rows, columns), dtype=weight.dtype, device=weight.device)
    word_table, type_table, position_table = [*tables, *[tables[0]] * (3 - len(tables))]
    word_ids, types, positions = [*ids, *[ids[0]] * (3 - len(ids))]
    _embed_norm[(rows,)](
        word_table, position_table, type_table, word_ids, positions, types, weight, bias, out, columns, eps,
        has_positions=len(tables) > 2, has_types=len(tables) > 1, block=triton.next_power_of_2(columns), num_warps=4,
    )  # fmt: skip
    return out


@triton.jit(do_not_specialize=["tokens", "sequences", "graph_tokens", "graph_sequences"])
def _copy_to_graph_inputs(  # type: ignore[no-untyped-def]
    ids, types,  # (T,) int64; types are read if has_types
    cu_seqlens,  # (N + 1,) int32
    tokens, sequences,  # T, N
    graph_ids, graph_types,  # (graph_tokens,) int64; types are written if has_types
    graph_offsets,  # (graph_sequences + 1,) int32
    graph_tokens, graph_sequences,
    has_types: tl.constexpr,
    block: tl.constexpr,  # elements per program
):  # fmt: skip
    at = tl.program_id(0) * block + tl.arange(0, block)
    there = at < tokens
    tl.store(graph_ids + at, tl.load(ids + at, mask=there, other=0), mask=at < graph_tokens)
    if has_types:
        tl.store(graph_types + at, tl.load(types + at, mask=there, other=0), mask=at < graph_tokens)
    offsets = tl.load(cu_seqlens + at, mask=at <= sequences, other=tokens)
    tl.store(graph_offsets + at, offsets, mask=at <= graph_sequences)


def copy_to_graph_inputs(
    ids: torch.Tensor,
    types: torch.Tensor | None,
    cu_seqlens: torch.Tensor,
    into: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
) -> None:
    """Copy a batch into a CUDA graph's larger inputs. Zeros follow its tokens, empty sequences follow its sequences.

    Args:
        ids: (T,) int64.
        types: (T,) int64; None leaves the graph's token types as they are, zeros.
        cu_seqlens: (N + 1,) int32.
        into: the graph's ids, types and cu_seqlens, each at least as long.
    """
    graph_tokens, graph_sequences = len(into[0]), len(into[2]) - 1
    _copy_to_graph_inputs[(triton.cdiv(max(graph_tokens, graph_sequences + 1), 1024),)](
        ids, ids if types is None else types, cu_seqlens, len(ids), len(cu_seqlens) - 1,
        *into, graph_tokens, graph_sequences, has_types=types is not None, block=1024, num_warps=4,
    )  # fmt: skip


@triton.jit
def _tiles_and_positions(  # type: ignore[no-untyped-def]
    cu_seqlens,  # (N + 1,) int32
    ids,  # (T,) int64
    tiles,  # (M, 3) int32
    positions,  # (T,) int64
    offset, skipped,  # see handlers.encoder.ops.Positions
    tile: tl.constexpr,  # TILE
    block: tl.constexpr,  # the next power of two from N
):  # fmt: skip
    me = tl.program_id(0)
    others = tl.arange(0, block)
    before = others < me
    starts = tl.load(cu_seqlens + others, mask=before, other=0)
    ends = tl.load(cu_seqlens + others + 1, mask=before, other=0)
    into = tiles + tl.sum((ends - starts + tile - 1) // tile, 0) * 3
    start = tl.load(cu_seqlens + me)
    length = tl.load(cu_seqlens + me + 1) - start
    step = tl.arange(0, tile)
    seen = offset - 1
    for at in range(0, length, tile):
        tl.store(into, start)
        tl.store(into + 1, at)
        tl.store(into + 2, length)
        into += 3
        there = at + step < length
        counts = (there & (tl.load(ids + start + at + step, mask=there, other=0) != skipped)).to(tl.int32)
        position = tl.where(counts != 0, seen + tl.cumsum(counts, 0), offset - 1)
        tl.store(positions + start + at + step, position.to(tl.int64), mask=there)
        seen += tl.sum(counts, 0)


def tiles_and_positions(
    cu_seqlens: torch.Tensor, ids: torch.Tensor, offset: int, skipped: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cut sequences into tiles for `attention`, and number their tokens.

    Args:
        cu_seqlens: (N + 1,) int32.
        ids: (T,) int64 token ids.
        offset, skipped: see handlers.encoder.ops.Positions; its method `of` is the twin for positions.

    Returns: tiles (M, 3) int32, and position ids (T,) int64. A tile is up to TILE queries of one sequence: the row
        where the sequence starts, the tile's first row within the sequence, and the sequence's length. M is the most
        that can be needed, ceil(T / TILE) + N; the length of unused tiles is 0.
    """
    sequences = len(cu_seqlens) - 1
    tiles = cu_seqlens.new_zeros((triton.cdiv(len(ids), TILE) + sequences, 3))
    positions = torch.zeros_like(ids)
    _tiles_and_positions[(sequences,)](
        cu_seqlens, ids, tiles, positions, offset, skipped,
        tile=TILE, block=triton.next_power_of_2(sequences), num_warps=1,
    )  # fmt: skip
    return tiles, positions


@triton.jit(do_not_specialize=["count"])
def _attention(  # type: ignore[no-untyped-def]
    qkv,  # (T, 3, heads, D)
    tiles,  # (M, 3) int32
    count,  # M
    y,  # (T, heads, D); e4m3 if quantises
    scale,  # of the scores, times log2(e)
    inverse,  # 1 / scale of y, read if quantises
    heads: tl.constexpr,
    size: tl.constexpr,  # D
    padded: tl.constexpr,  # the next power of two from D, at least 16
    tile: tl.constexpr,  # TILE
    block_keys: tl.constexpr,  # keys per step
    quantises: tl.constexpr,
    pdl: tl.constexpr,  # see launching.py
):  # fmt: skip
    if pdl:
        on_cuda.gdc_wait()
    for index in range(tl.program_id(1), count, tl.num_programs(1)):
        mine = tiles + index * 3
        start, first, length = tl.load(mine).to(tl.int64), tl.load(mine + 1), tl.load(mine + 2)
        if length > 0:
            width = 3 * heads * size
            row, at, step = first + tl.arange(0, tile), tl.arange(0, padded), tl.arange(0, block_keys)
            base = qkv + start * width + tl.program_id(0) * size
            asked = (row < length)[:, None]
            if padded > size:
                asked &= (at < size)[None, :]
            query = tl.load(base + row[:, None] * width + at[None, :], mask=asked, other=0.0)
            largest = tl.full((tile,), float("-inf"), tl.float32)
            total = tl.zeros((tile,), tl.float32)
            out = tl.zeros((tile, padded), tl.float32)
            for begin in range(0, length, block_keys):
                there = (begin + step) < length
                where, inside = base + (begin + step)[:, None] * width + at[None, :], there[:, None]
                if padded > size:
                    inside &= (at < size)[None, :]
                keys = tl.load(where + heads * size, mask=inside, other=0.0)
                scores = tl.where(there[None, :], tl.dot(query, keys.T), float("-inf"))
                highest = tl.maximum(largest, tl.max(scores, 1) * scale)
                shares = tl.exp2(scores * scale - highest[:, None])
                fade = tl.exp2(largest - highest)
                values = tl.load(where + 2 * heads * size, mask=inside, other=0.0)
                total = total * fade + tl.sum(shares, 1)
                out = tl.dot(shares.to(values.dtype), values, out * fade[:, None])
                largest = highest
            into = y + start * (heads * size) + tl.program_id(0) * size
            out *= (1.0 / total)[:, None]
            if quantises:
                # Stored in halves of a head. For accesses of one shape, Triton lets a thread read as many elements as
                # the widest of them moves. With 16 e4m3 stored, a thread would read 32 bytes of keys in two steps of
                # half a sector each.
                half: tl.constexpr = padded // 2
                column = tl.arange(0, 2)[None, :, None] * half + tl.arange(0, half)[None, None, :]
                there = (row < length)[:, None, None]
                if padded > size:
                    there &= column < size
                out8 = clamp_e4m3(tl.reshape(out, (tile, 2, half)) * inverse).to(y.dtype.element_ty)
                tl.store(into + row[:, None, None] * (heads * size) + column, out8, mask=there)
            else:
                tl.store(into + row[:, None] * (heads * size) + at[None, :], out.to(y.dtype.element_ty), mask=asked)
    if pdl:
        on_cuda.gdc_launch_dependents()


def attention(
    qkv: torch.Tensor, tiles: torch.Tensor, heads: int, scale: float, out_scale: float | None = None,
    programs: int | None = None,
) -> torch.Tensor:  # fmt: skip
    """softmax(scale * Q K^T) V within each sequence and head, with an online softmax.

    Args:
        qkv: (T, 3H): each row has its queries, then its keys, then its values.
        tiles: (M, 3) int32, from `tiles_and_positions`.
        heads: their number.
        scale: of the scores.
        out_scale: None, or what the result is divided by before it becomes e4m3, clamped to its range.
        programs: per head; None for as many as the rows need.

    Returns: (T, H), in qkv's dtype or e4m3. Rows without a tile are undefined.

    Source: FlashAttention-2, arXiv:2307.08691.
    """
    hidden = qkv.shape[1] // 3
    size = hidden // heads
    dtype = qkv.dtype if out_scale is None else torch.float8_e4m3fn
    out = torch.empty((len(qkv), hidden), dtype=dtype, device=qkv.device)
    programs = programs or min(len(tiles), max(MIN_PROGRAMS, triton.cdiv(3 * len(qkv), 2 * TILE)))
    _attention[(heads, programs)](
        qkv, tiles, len(tiles), out, scale * LOG2_E, 1.0 / (out_scale or 1.0), heads=heads, size=size,
        padded=max(16, triton.next_power_of_2(size)), tile=TILE, block_keys=KEYS_PER_STEP,
        quantises=out_scale is not None, num_warps=4, num_stages=3, **pdl_options(qkv),
    )  # fmt: skip
    return out
