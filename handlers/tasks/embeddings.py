"""The task "embeddings": one vector per text, pooled and normalised as the checkpoint says."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from handlers.encoder.packing import TokenBatch
from handlers.protocol import encodings
from handlers.tasks.shared.embeddings import encoded
from handlers.tasks.shared.head import Head
from handlers.tasks.shared.pooling import Pooling
from handlers.tasks.shared.task import Archive, Input, TextTask

HEAD = Head("AutoModel", ("Model",), output="last_hidden_state", rows="token")
OPTIONS = tuple(encodings.OPTIONS)


def pool(vectors: torch.Tensor, cu_seqlens: torch.Tensor, pooling: Pooling) -> torch.Tensor:
    """Return one embedding per text: (N, len(modes) * hidden), fp32.

    Args:
        vectors: (T, hidden) packed token vectors, of any dtype. Tokens that the tokenizer added count.
        cu_seqlens: (N + 1,) int32, where each text begins in `vectors`; the last is T.
        pooling: modes of sentence_transformers.models.Pooling, concatenated in their order.
    """
    vectors = vectors.float()
    offsets = cu_seqlens.long()  # (N + 1,)
    embeddings = torch.cat([_pool_one(vectors, offsets, mode) for mode in pooling.modes], dim=1)
    return F.normalize(embeddings, dim=1) if pooling.normalize else embeddings


def _pool_one(vectors: torch.Tensor, offsets: torch.Tensor, mode: str) -> torch.Tensor:
    if mode == "cls":
        return vectors[offsets[:-1]]
    if mode == "lasttoken":
        return vectors[offsets[1:] - 1]
    if mode in ("mean", "max"):
        return torch.segment_reduce(vectors, mode, offsets=offsets)
    lengths = offsets.diff()  # (N,)
    if mode == "mean_sqrt_len_tokens":
        return torch.segment_reduce(vectors, "sum", offsets=offsets) / lengths.sqrt().unsqueeze(1)
    starts = torch.repeat_interleave(offsets[:-1], lengths, output_size=len(vectors))
    weights = (torch.arange(1, len(vectors) + 1, device=vectors.device) - starts).float().unsqueeze(1)  # (T, 1)
    sums = torch.segment_reduce(vectors * weights, "sum", offsets=offsets)
    return sums / torch.segment_reduce(weights, "sum", offsets=offsets)


class Embeddings(TextTask):
    """Answers with one embedding per text: numbers, base64, or exact values for bytes (protocol/encodings.py).

    Args:
        digits: significant decimal digits of a number in JSON.
    """

    options = encodings.OPTIONS
    media_types = encodings.MEDIA_TYPES

    def __init__(self, pooling: Pooling, digits: int = encodings.DIGITS["fp32"]) -> None:
        self.pooling, self.digits = pooling, digits

    def comparable(self, outputs: torch.Tensor, batch: TokenBatch) -> torch.Tensor:
        return pool(outputs, batch.cu_seqlens, self.pooling)

    def answer(self, outputs: torch.Tensor, batch: TokenBatch, inputs: Sequence[Input]) -> list[object]:
        return encoded(self.comparable(outputs, batch), [options for _, options in inputs], self.digits)


def make(archive: Archive) -> TextTask:
    """Return the task of an archive."""
    return Embeddings(archive.settings.pooling, encodings.DIGITS[archive.precision])
