"""Triton kernels of the fused encoder: LayerNorm, attention, embeddings. Their twin: encoder/ops.py, TorchEncoderOps.

T: packed tokens; H: hidden size; N: sequences; D: size of a head. Sums and statistics are in fp32. Each kernel has
one tensor's worth of work behind a pointer, named as in its launcher below, whose docstring has the shapes.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.language.extra import cuda as on_cuda

from handlers.kernels.launching import early

LOG2_E = 1.4426950408889634
TILE = 64  # queries of one sequence that `attention` answers at a time
KEYS = 64
# Programs of `attention` a head: these at least, and room for half as many tiles again as the rows fill. A graph has
# more tiles, which nobody needs unless its texts are very short; then programs take several.
LEAST_PROGRAMS = 32


@triton.jit
def _norm(x, inside, columns, weight, bias, at, eps):  # type: ignore[no-untyped-def]
    mean = tl.sum(x, 1) / columns
    centred = tl.where(inside, x - mean[:, None], 0.0)
    spread = 1.0 / tl.sqrt(tl.sum(centred * centred, 1) / columns + eps)
    scale = tl.load(weight + at, mask=at < columns, other=0.0).to(tl.float32)
    shift = tl.load(bias + at, mask=at < columns, other=0.0).to(tl.float32)
    return centred * spread[:, None] * scale[None, :] + shift[None, :]


@triton.jit
def saturated(x):  # type: ignore[no-untyped-def]
    """x, within what e4m3 can say; NaN stays NaN."""
    return tl.clamp(x, -448.0, 448.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit(do_not_specialize=["rows"])
def _add_norm(  # type: ignore[no-untyped-def]
    parts, residual, added, weight, bias, y, y8, rows, columns, eps, inverse,
    count: tl.constexpr, adds: tl.constexpr, quantises: tl.constexpr,
    rows_a_block: tl.constexpr, block: tl.constexpr, early: tl.constexpr,
):  # fmt: skip
    if early:
        on_cuda.gdc_wait()
    row, at = tl.program_id(0) * rows_a_block + tl.arange(0, rows_a_block), tl.arange(0, block)
    inside = (row < rows)[:, None] & (at < columns)[None, :]
    place = row[:, None].to(tl.int64) * columns + at[None, :]
    value = tl.load(parts + place, mask=inside, other=0.0).to(tl.float32)
    for part in tl.static_range(1, count):
        value += tl.load(parts + part * rows * columns + place, mask=inside, other=0.0).to(tl.float32)
    if adds:
        value += tl.load(residual + place, mask=inside, other=0.0).to(tl.float32)
        value += tl.load(added + at, mask=at < columns, other=0.0).to(tl.float32)[None, :]
    if early:
        on_cuda.gdc_launch_dependents()
    normed = _norm(value, inside, columns, weight, bias, at, eps)
    tl.store(y + place, normed.to(y.dtype.element_ty), mask=inside)
    if quantises:
        tl.store(y8 + place, saturated(normed * inverse).to(y8.dtype.element_ty), mask=inside)


def add_norm(
    parts: torch.Tensor,
    residual: torch.Tensor | None,
    added: torch.Tensor | None,
    weight: torch.Tensor,
    bias: torch.Tensor,
    eps: float,
) -> torch.Tensor:
    """LayerNorm of each row of parts.sum(0) (+ residual + added): (P, T, H), (T, H), (H,) -> (T, H).

    parts: in the weight's dtype, or fp32 sums that a split matrix product left. residual and added come together.
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
    """As add_norm; the second result is the first over `scale` in e4m3, saturated."""
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
    rows_a_block = 1 if columns >= 512 else 4
    _add_norm[(triton.cdiv(rows, rows_a_block),)](
        parts, residual if adds else parts, added if adds else weight, weight, bias, out, out8 if quantises else out,
        rows, columns, eps, inverse, count=count, adds=adds, quantises=quantises, rows_a_block=rows_a_block,
        block=triton.next_power_of_2(columns), num_warps=4, **early(parts),
    )  # fmt: skip


@triton.jit
def _embed_norm(  # type: ignore[no-untyped-def]
    words, places, kinds, ids, positions, types, weight, bias, y, columns, eps,
    has_places: tl.constexpr, has_kinds: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    row, at = tl.program_id(0), tl.arange(0, block)
    inside = at < columns
    value = tl.load(words + tl.load(ids + row) * columns + at, mask=inside, other=0.0).to(tl.float32)
    if has_kinds:
        value += tl.load(kinds + tl.load(types + row) * columns + at, mask=inside, other=0.0).to(tl.float32)
    if has_places:
        value += tl.load(places + tl.load(positions + row) * columns + at, mask=inside, other=0.0).to(tl.float32)
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
    """LayerNorm of the sum of up to three embeddings a token: tables (V_i, H), ids (T,) int64 -> (T, H).

    Raises ValueError for more tables. An id outside its table is the caller's to refuse.
    """
    if not 1 <= len(tables) == len(ids) <= 3:
        raise ValueError(f"embed_norm: {len(tables)} tables and {len(ids)} ids came; wanted: one to three of each")
    rows, columns = len(ids[0]), tables[0].shape[1]
    out = torch.empty((rows, columns), dtype=weight.dtype, device=weight.device)
    words, kinds, places = [*tables, *[tables[0]] * (3 - len(tables))]
    word_ids, types, positions = [*ids, *[ids[0]] * (3 - len(ids))]
    _embed_norm[(rows,)](
        words, places, kinds, word_ids, positions, types, weight, bias, out, columns, eps,
        has_places=len(tables) > 2, has_kinds=len(tables) > 1, block=triton.next_power_of_2(columns), num_warps=4,
    )  # fmt: skip
    return out


@triton.jit(do_not_specialize=["tokens", "sequences", "room", "rows"])
def _stage(  # type: ignore[no-untyped-def]
    ids, types, cu_seqlens, tokens, sequences, staged_ids, staged_types, staged_offsets, room, rows,
    has_types: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0) * block + tl.arange(0, block)
    there = at < tokens
    tl.store(staged_ids + at, tl.load(ids + at, mask=there, other=0), mask=at < room)
    if has_types:
        tl.store(staged_types + at, tl.load(types + at, mask=there, other=0), mask=at < room)
    tl.store(staged_offsets + at, tl.load(cu_seqlens + at, mask=at <= sequences, other=tokens), mask=at <= rows)


def stage(
    ids: torch.Tensor,
    types: torch.Tensor | None,
    cu_seqlens: torch.Tensor,
    into: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
) -> None:
    """Copy a batch into a CUDA graph's larger buffers: behind its T tokens zeros, behind its N sequences empty ones.

    ids, types: (T,) int64, types None for zeros; cu_seqlens: (N + 1,) int32. into: the same, of at least that size.
    """
    room, rows = len(into[0]), len(into[2]) - 1
    _stage[(triton.cdiv(max(room, rows + 1), 1024),)](
        ids, ids if types is None else types, cu_seqlens, len(ids), len(cu_seqlens) - 1, *into, room, rows,
        has_types=types is not None, block=1024, num_warps=4,
    )  # fmt: skip


@triton.jit
def _lay_out(  # type: ignore[no-untyped-def]
    cu_seqlens, ids, tiles, positions, offset, skipped,
    tile: tl.constexpr, block: tl.constexpr,
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
        place = tl.where(counts != 0, seen + tl.cumsum(counts, 0), offset - 1)
        tl.store(positions + start + at + step, place.to(tl.int64), mask=there)
        seen += tl.sum(counts, 0)


def lay_out(
    cu_seqlens: torch.Tensor, ids: torch.Tensor, offset: int, skipped: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """cu_seqlens (N + 1,) int32, ids (T,) -> tiles for `attention` (M, 3) int32, and position ids (T,) int64.

    A tile is up to TILE queries of one sequence: the sequence's first row, the tile's first row within it, and the
    sequence's length, which is 0 for tiles that nobody needs: M = T / TILE + N is what could be needed at most.
    Positions: see handlers.encoder.ops.Positions.of, the twin.
    """
    sequences = len(cu_seqlens) - 1
    tiles = cu_seqlens.new_zeros((triton.cdiv(len(ids), TILE) + sequences, 3))
    positions = torch.zeros_like(ids)
    _lay_out[(sequences,)](
        cu_seqlens, ids, tiles, positions, offset, skipped,
        tile=TILE, block=triton.next_power_of_2(sequences), num_warps=1,
    )  # fmt: skip
    return tiles, positions


@triton.jit(do_not_specialize=["count"])
def _attention(  # type: ignore[no-untyped-def]
    qkv, tiles, count, y, scale, inverse, heads: tl.constexpr, size: tl.constexpr, padded: tl.constexpr,
    tile: tl.constexpr, keys_a_block: tl.constexpr, quantises: tl.constexpr, early: tl.constexpr,
):  # fmt: skip
    if early:
        on_cuda.gdc_wait()
    for index in range(tl.program_id(1), count, tl.num_programs(1)):
        mine = tiles + index * 3
        start, first, length = tl.load(mine).to(tl.int64), tl.load(mine + 1), tl.load(mine + 2)
        if length > 0:
            width = 3 * heads * size
            row, at, step = first + tl.arange(0, tile), tl.arange(0, padded), tl.arange(0, keys_a_block)
            base = qkv + start * width + tl.program_id(0) * size
            asked = (row < length)[:, None]
            if padded > size:
                asked &= (at < size)[None, :]
            query = tl.load(base + row[:, None] * width + at[None, :], mask=asked, other=0.0)
            largest = tl.full((tile,), float("-inf"), tl.float32)
            total = tl.zeros((tile,), tl.float32)
            out = tl.zeros((tile, padded), tl.float32)
            for begin in range(0, length, keys_a_block):
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
                # In halves of a head: of one shape, Triton lets a thread read as many elements as the widest access
                # of that shape moves. With 16 e4m3 it would fetch 32 bytes of keys in two steps, half a sector each.
                half: tl.constexpr = padded // 2
                place = tl.arange(0, 2)[None, :, None] * half + tl.arange(0, half)[None, None, :]
                there = (row < length)[:, None, None]
                if padded > size:
                    there &= place < size
                out8 = saturated(tl.reshape(out, (tile, 2, half)) * inverse).to(y.dtype.element_ty)
                tl.store(into + row[:, None, None] * (heads * size) + place, out8, mask=there)
            else:
                tl.store(into + row[:, None] * (heads * size) + at[None, :], out.to(y.dtype.element_ty), mask=asked)
    if early:
        on_cuda.gdc_launch_dependents()


def attention(
    qkv: torch.Tensor, tiles: torch.Tensor, heads: int, scale: float, out_scale: float | None = None,
    programs: int | None = None,
) -> torch.Tensor:  # fmt: skip
    """softmax(scale * Q K^T) V in each sequence and head, online (FlashAttention-2, arXiv:2307.08691).

    qkv: (T, 3H), queries, keys and values side by side. tiles: of `lay_out`. -> (T, H); undefined where no tile is.
    out_scale: None, or what the result is divided by, for e4m3. programs: a head's, None for what the rows ask for.
    """
    hidden = qkv.shape[1] // 3
    size = hidden // heads
    dtype = qkv.dtype if out_scale is None else torch.float8_e4m3fn
    out = torch.empty((len(qkv), hidden), dtype=dtype, device=qkv.device)
    programs = programs or min(len(tiles), max(LEAST_PROGRAMS, triton.cdiv(3 * len(qkv), 2 * TILE)))
    _attention[(heads, programs)](
        qkv, tiles, len(tiles), out, scale * LOG2_E, 1.0 / (out_scale or 1.0), heads=heads, size=size,
        padded=max(16, triton.next_power_of_2(size)), tile=TILE, keys_a_block=KEYS,
        quantises=out_scale is not None, num_warps=4, num_stages=3, **early(qkv),
    )  # fmt: skip
    return out
