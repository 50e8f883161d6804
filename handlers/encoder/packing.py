"""Packed batches: N sequences of different lengths as one run of T tokens, without padding.

The layout is that of variable-length attention kernels (FlashAttention, arXiv:2205.14135, `bert_padding`): sequence i
is `tokens[cu_seqlens[i]:cu_seqlens[i + 1]]`. S is the length of the longest sequence.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch

from handlers.encoder.ops import Segments


@dataclass(frozen=True)
class TokenBatch:
    """Packed token ids of N sequences, T tokens in all. `TokenBatch.pack` makes one from lists.

    Args:
        input_ids: (T,) int64 token ids.
        token_type_ids: (T,) int64.
        cu_seqlens: (N + 1,) int32, cumulative sequence lengths, from 0 to T.
        lengths: N ints on the host, so that reading them does not wait for the device.
        selected: (M,) int64, the packed indices of the tokens whose outputs are wanted, or None for all.
    """

    input_ids: torch.Tensor
    token_type_ids: torch.Tensor
    cu_seqlens: torch.Tensor
    lengths: tuple[int, ...]
    selected: torch.Tensor | None = None

    @classmethod
    def pack(
        cls,
        input_ids: Sequence[Sequence[int]],
        token_type_ids: Sequence[Sequence[int]],
        device: torch.device,
        selected: Sequence[int] | None = None,
    ) -> TokenBatch:
        """Pack lists of token ids, with one copy to the device.

        Args:
            input_ids: the token ids of each sequence.
            token_type_ids: the same lengths.
            device: where the tensors go.
            selected: packed indices of the tokens whose outputs are wanted, or None for all.

        Raises:
            ValueError: there is no sequence, one is empty, or the token types have other lengths.
        """
        lengths = tuple(map(len, input_ids))
        if not lengths or min(lengths) == 0 or lengths != tuple(map(len, token_type_ids)):
            raise ValueError(f"sequence lengths {lengths[:8]}; wanted: one or more, none empty, token types alike")
        indices = list(selected or ())
        flat = array("q")  # int64; torch.tensor takes four times as long to read a list
        for numbers in (*input_ids, *token_type_ids, list(accumulate(lengths, initial=0)), indices):
            flat.extend(numbers)
        host = torch.frombuffer(flat, dtype=torch.int64)
        if device.type == "cuda":
            host = host.pin_memory()
        tokens = sum(lengths)
        sizes = [tokens, tokens, len(lengths) + 1, len(indices)]
        ids, types, offsets, on_device = torch.split(host.to(device, non_blocking=True), sizes)
        return cls(ids, types, offsets.int(), lengths, None if selected is None else on_device)

    def __len__(self) -> int:
        """N, the number of sequences."""
        return len(self.lengths)

    @property
    def tokens(self) -> int:
        """T, the number of tokens."""
        return sum(self.lengths)

    @property
    def segments(self) -> Segments:
        """The sequence boundaries, as the fused encoder takes them."""
        return Segments(self.cu_seqlens, self.lengths)

    def padded_positions(self) -> torch.Tensor:
        """Return the index of each packed token in the flattened padded batch (N*S,): (T,) int64."""
        device, longest = self.input_ids.device, max(self.lengths)
        lengths = self.cu_seqlens.diff().long()  # (N,)
        rows = torch.repeat_interleave(torch.arange(len(self), device=device), lengths, output_size=self.tokens)
        starts = self.cu_seqlens[:-1].long()[rows]  # (T,)
        return rows * longest + torch.arange(self.tokens, device=device) - starts


def pad(values: torch.Tensor, batch: TokenBatch, fill: int) -> torch.Tensor:
    """Pad packed values with `fill`: (T,) -> (N, S)."""
    shape = (len(batch), max(batch.lengths))
    padded = values.new_full((shape[0] * shape[1],), fill)  # (N*S,)
    padded[batch.padded_positions()] = values
    return padded.view(shape)


def unpad(values: torch.Tensor, batch: TokenBatch) -> torch.Tensor:
    """Take the padding out of padded values: (N, S, ...) -> (T, ...)."""
    return values.flatten(0, 1)[batch.padded_positions()]
