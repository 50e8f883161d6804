"""What a fused encoder computes with: tensors in, tensors out, packed tokens without padding.

`TorchOperations` is plain PyTorch: the path of CPUs, and the reference of every kernel. T: tokens of all sequences
together; H: hidden size; I: intermediate size; N: sequences.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F

# By the names of transformers' configs (ACT2FN); erf GELU and tanh GELU are two functions.
ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "gelu": F.gelu,
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_fast": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_accurate": lambda x: F.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "relu": F.relu,
    "silu": F.silu,
    "swish": F.silu,
    "tanh": torch.tanh,
}


@dataclass(frozen=True)
class Segments:
    """Where each sequence lies in a packed batch: sequence i is rows cu_seqlens[i] to cu_seqlens[i + 1].

    cu_seqlens: (N + 1,) int32 on the device, from 0 to at most T.
    lengths: N ints on the host, or None inside a CUDA graph, where they differ from replay to replay.
    tiles: (M, 3) int32, what Triton's attention reads (handlers.kernels.encoder.tiles_and_positions), or None.
    """

    cu_seqlens: torch.Tensor
    lengths: tuple[int, ...] | None = None
    tiles: torch.Tensor | None = None


@dataclass(frozen=True)
class Positions:
    """How a family counts: from `offset` on, leaving out tokens that are `skipped` (-1: none), which get offset - 1.

    BERT counts from 0; RoBERTa and its kin from behind the padding token's id, which they skip.
    """

    offset: int = 0
    skipped: int = -1

    def of(self, ids: torch.Tensor, cu_seqlens: torch.Tensor) -> torch.Tensor:
        """(T,) packed token ids -> (T,) int64 position ids."""
        counts = (ids != self.skipped).long()  # (T,)
        total = counts.cumsum(0)
        before = torch.cat([total.new_zeros(1), total])[cu_seqlens[:-1].long()]  # (N,)
        lengths = cu_seqlens.diff().long()
        before = torch.repeat_interleave(before, lengths, output_size=len(ids))
        return (total - before - 1) * counts + self.offset - (1 - counts)


@dataclass(frozen=True)
class Norm:
    """LayerNorm over the last dimension: weight, bias (H,)."""

    weight: torch.Tensor
    bias: torch.Tensor
    eps: float


class Operations(Protocol):
    """The calls that an encoder layer is made of; an implementation may fuse each as it likes."""

    def linear(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """(T, K), (O, K), (O,) -> (T, O)"""
        ...

    def linear_activation(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, activation: str
    ) -> torch.Tensor:
        """activation(linear(x)); activation: a key of ACTIVATIONS"""
        ...

    def linear_add(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, residual: torch.Tensor
    ) -> torch.Tensor:
        """linear(x) + residual (T, O)"""
        ...

    def linear_add_norm(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, residual: torch.Tensor, norm: Norm
    ) -> torch.Tensor:
        """norm(linear(x) + residual): (T, O). The residual may be overwritten."""
        ...

    def norm(self, x: torch.Tensor, norm: Norm) -> torch.Tensor:
        """LayerNorm of each row (T, H), statistics in fp32"""
        ...

    def attention(self, qkv: torch.Tensor, segments: Segments, heads: int, scale: float) -> torch.Tensor:
        """(T, 3H), the rows' queries, keys and values side by side -> (T, H).

        softmax(scale * Q K^T) V within each sequence and head. Rows behind the last sequence are undefined.
        """
        ...

    def lay_out(self, ids: torch.Tensor, segments: Segments, positions: Positions) -> tuple[Segments, torch.Tensor]:
        """(T,) token ids -> segments with what `attention` needs, and position ids (T,) int64"""
        ...

    def embed_norm(self, tables: tuple[torch.Tensor, ...], ids: tuple[torch.Tensor, ...], norm: Norm) -> torch.Tensor:
        """norm(sum of tables[i][ids[i]]): tables (V_i, H), ids (T,) int64 -> (T, H)"""
        ...


class TorchOperations:
    """Each call in plain PyTorch, on any device and in any precision."""

    def linear(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return F.linear(x, weight, bias)

    def linear_activation(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, activation: str
    ) -> torch.Tensor:
        return ACTIVATIONS[activation](F.linear(x, weight, bias))

    def linear_add(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, residual: torch.Tensor
    ) -> torch.Tensor:
        return F.linear(x, weight, bias) + residual

    def linear_add_norm(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, residual: torch.Tensor, norm: Norm
    ) -> torch.Tensor:
        return self.norm(self.linear_add(x, weight, bias, residual), norm)

    def norm(self, x: torch.Tensor, norm: Norm) -> torch.Tensor:
        return F.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, norm.eps)

    def attention(self, qkv: torch.Tensor, segments: Segments, heads: int, scale: float) -> torch.Tensor:
        lengths = segments.lengths or tuple(segments.cu_seqlens.diff().tolist())
        rest = len(qkv) - sum(lengths)
        parts = qkv.split([*lengths, rest])[: len(lengths)]
        attended = [attend(part, heads, scale) for part in parts]
        return torch.cat([*attended, qkv.new_zeros(rest, qkv.shape[1] // 3)])

    def lay_out(self, ids: torch.Tensor, segments: Segments, positions: Positions) -> tuple[Segments, torch.Tensor]:
        return segments, positions.of(ids, segments.cu_seqlens)

    def embed_norm(self, tables: tuple[torch.Tensor, ...], ids: tuple[torch.Tensor, ...], norm: Norm) -> torch.Tensor:
        rows = [F.embedding(places, table) for table, places in zip(tables, ids, strict=True)]
        return self.norm(torch.stack(rows).sum(dim=0), norm)


def attend(qkv: torch.Tensor, heads: int, scale: float) -> torch.Tensor:
    """One sequence: (S, 3H) -> (S, H)."""
    size = qkv.shape[1] // (3 * heads)
    query, key, value = qkv.view(len(qkv), 3, heads, size).permute(1, 2, 0, 3).unsqueeze(1)  # each (1, heads, S, D)
    context = F.scaled_dot_product_attention(query, key, value, scale=scale)
    return context.squeeze(0).transpose(0, 1).flatten(1)
