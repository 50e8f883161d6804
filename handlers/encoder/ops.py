"""The operations of an encoder layer on packed tokens, and their plain PyTorch implementation.

`EncoderOps` is the interface, `TorchEncoderOps` runs anywhere and is the reference of every kernel, and
`handlers.encoder.triton_ops.TritonEncoderOps` runs on NVIDIA GPUs.

Shapes: T tokens of all sequences together, N sequences, H hidden size, I intermediate size, K inputs and O outputs of
a linear layer, D head size.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F

# Keyed by the names of transformers' configs (ACT2FN). The erf GELU and the tanh GELU are two functions.
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
    """The sequence boundaries of a packed batch: sequence i is rows cu_seqlens[i] to cu_seqlens[i + 1].

    Args:
        cu_seqlens: (N + 1,) int32 on the device, cumulative sequence lengths, from 0 to at most T.
        lengths: N ints on the host. None inside a CUDA graph, where they differ from replay to replay.
        tiles: (M, 3) int32 on the device, the work list of Triton's attention kernel, which
            `EncoderOps.prepare_packed` adds. None if the implementation needs none.
    """

    cu_seqlens: torch.Tensor
    lengths: tuple[int, ...] | None = None
    tiles: torch.Tensor | None = None


@dataclass(frozen=True)
class Positions:
    """How a model family counts positions.

    BERT counts every token from 0. RoBERTa and its relatives start one above the id of the padding token, and skip
    padding tokens.

    Args:
        offset: the position id of a sequence's first token.
        skipped: the token id that is not counted and gets the position id offset - 1. -1 if all are counted.
    """

    offset: int = 0
    skipped: int = -1

    def of(self, ids: torch.Tensor, cu_seqlens: torch.Tensor) -> torch.Tensor:
        """Return the position ids of packed tokens.

        Args:
            ids: (T,) int64 token ids.
            cu_seqlens: (N + 1,) int32.

        Returns:
            (T,) int64.
        """
        counts = (ids != self.skipped).long()  # (T,)
        total = counts.cumsum(0)  # (T,)
        before = torch.cat([total.new_zeros(1), total])[cu_seqlens[:-1].long()]  # (N,)
        lengths = cu_seqlens.diff().long()  # (N,)
        before = torch.repeat_interleave(before, lengths, output_size=len(ids))  # (T,)
        return (total - before - 1) * counts + self.offset - (1 - counts)


@dataclass(frozen=True)
class Norm:
    """The parameters of a LayerNorm over the last dimension: weight and bias are (H,)."""

    weight: torch.Tensor
    bias: torch.Tensor
    eps: float


class EncoderOps(Protocol):
    """The operations that an encoder layer calls. An implementation may fuse each as it likes."""

    @property
    def follows_autocast(self) -> bool:
        """Whether the operations cast as torch.autocast asks. If not, they run with autocast switched off."""
        ...

    def linear(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """Return x @ weight.T + bias: (T, K), (O, K), (O,) -> (T, O)."""
        ...

    def linear_activation(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, activation: str
    ) -> torch.Tensor:
        """Return activation(linear(x)), (T, O). activation: a key of ACTIVATIONS."""
        ...

    def linear_add(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, residual: torch.Tensor
    ) -> torch.Tensor:
        """Return linear(x) + residual, (T, O)."""
        ...

    def linear_add_norm(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, residual: torch.Tensor, norm: Norm
    ) -> torch.Tensor:
        """Return norm(linear(x) + residual), (T, O). `residual` may be overwritten."""
        ...

    def norm(self, x: torch.Tensor, norm: Norm) -> torch.Tensor:
        """Return the LayerNorm of each row, (T, H). Mean and variance are computed in fp32."""
        ...

    def attention(self, qkv: torch.Tensor, segments: Segments, heads: int, scale: float) -> torch.Tensor:
        """Return softmax(scale * Q K^T) V within each sequence and head, before the output projection.

        Args:
            qkv: (T, 3H), a token's query, key and value side by side, each with its heads one after another.
            segments: what `prepare_packed` returned.
            heads: number of attention heads.
            scale: factor of the scores, usually D ** -0.5.

        Returns:
            (T, H). Rows after the last sequence are undefined.
        """
        ...

    def prepare_packed(
        self, ids: torch.Tensor, segments: Segments, positions: Positions
    ) -> tuple[Segments, torch.Tensor]:
        """Compute what depends on the sequence boundaries only, once per batch.

        Args:
            ids: (T,) int64 token ids.
            segments: the boundaries of the batch.
            positions: how the model counts positions.

        Returns:
            The segments with everything that `attention` needs, and the position ids, (T,) int64.
        """
        ...

    def embed_norm(self, tables: tuple[torch.Tensor, ...], ids: tuple[torch.Tensor, ...], norm: Norm) -> torch.Tensor:
        """Return norm(sum of tables[i][ids[i]]): tables (V_i, H), ids (T,) int64 -> (T, H)."""
        ...


class TorchEncoderOps:
    """EncoderOps in plain PyTorch, on any device and in any precision."""

    follows_autocast: bool = True

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
        sequences = qkv.split([*lengths, rest])[: len(lengths)]  # each (S, 3H)
        attended = [attend(sequence, heads, scale) for sequence in sequences]
        return torch.cat([*attended, qkv.new_zeros(rest, qkv.shape[1] // 3)])  # (T, H)

    def prepare_packed(
        self, ids: torch.Tensor, segments: Segments, positions: Positions
    ) -> tuple[Segments, torch.Tensor]:
        return segments, positions.of(ids, segments.cu_seqlens)

    def embed_norm(self, tables: tuple[torch.Tensor, ...], ids: tuple[torch.Tensor, ...], norm: Norm) -> torch.Tensor:
        rows = [F.embedding(index, table) for table, index in zip(tables, ids, strict=True)]  # each (T, H)
        return self.norm(torch.stack(rows).sum(dim=0), norm)


def attend(qkv: torch.Tensor, heads: int, scale: float) -> torch.Tensor:
    """Return the attention of one sequence: (S, 3H) -> (S, H)."""
    size = qkv.shape[1] // (3 * heads)
    query, key, value = qkv.view(len(qkv), 3, heads, size).permute(1, 2, 0, 3).unsqueeze(1)  # each (1, heads, S, D)
    context = F.scaled_dot_product_attention(query, key, value, scale=scale)  # (1, heads, S, D)
    return context.squeeze(0).transpose(0, 1).flatten(1)


def launch_context(hidden: torch.Tensor, ops: EncoderOps) -> contextlib.AbstractContextManager[None]:
    """Return a context in which `ops` run on the device of `hidden` and in the types of their arguments.

    Triton launches on the current GPU, wherever its tensors are: the GPU of `hidden` becomes the current one. Under
    torch.autocast, PyTorch's own calls return another type than Triton's kernels: autocast is switched off unless
    `ops` follow it.
    """
    casts = not ops.follows_autocast and torch.is_autocast_enabled(hidden.device.type)
    return _launch_context(hidden.device, casts) if casts or hidden.is_cuda else contextlib.nullcontext()


@contextlib.contextmanager
def _launch_context(device: torch.device, casts: bool) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        if device.type == "cuda":
            stack.enter_context(torch.cuda.device(device))
        if casts:
            stack.enter_context(torch.autocast(device.type, enabled=False))
        yield
