"""The task "embeddings": one vector per text, pooled and normalised as the checkpoint says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from handlers.encoder.packing import TokenBatch
from handlers.protocol import encodings
from handlers.protocol.errors import NotFinite
from handlers.settings import Pooling
from handlers.tasks.base import Archive, Input, TextTask


def pool(vectors: torch.Tensor, cu_seqlens: torch.Tensor, pooling: Pooling) -> torch.Tensor:
    """(T, hidden) packed token vectors -> (N, len(modes) * hidden) fp32 embeddings.

    Modes are those of sentence_transformers.models.Pooling: added tokens count, padding does not exist here.
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


def significant(values: torch.Tensor, digits: int) -> torch.Tensor:
    """Round fp32 values to so many significant decimal digits; the shortest JSON of each is then that short.

    Values that are not finite, and those below 1e-30, stay as they are. 9 digits and more change nothing.
    """
    if digits >= 9:
        return values
    wide = values.double()
    exponents = wide.abs().clamp_min(1e-30).log10().floor()
    factors = torch.pow(10.0, digits - 1 - exponents)
    rounded = (wide * factors).round() / factors
    narrow = torch.where(wide.abs() >= 1e-30, rounded, wide).float()
    return torch.where(narrow.isfinite(), narrow, values)


class Embeddings(TextTask):
    """Token vectors (T, hidden) -> one embedding per text: numbers, base64 or bytes, see protocol/encodings.py.

    digits: significant decimal digits of a number in JSON.
    """

    options = encodings.OPTIONS
    forms = encodings.MEDIA_TYPES

    def __init__(self, pooling: Pooling, digits: int = encodings.DIGITS["fp32"]) -> None:
        self.pooling, self.digits = pooling, digits

    def figures(self, outputs: torch.Tensor, batch: TokenBatch) -> torch.Tensor:
        return pool(outputs, batch.cu_seqlens, self.pooling)

    def answer(self, outputs: torch.Tensor, batch: TokenBatch, inputs: Sequence[Input]) -> list[object]:
        return encoded(self.figures(outputs, batch), [options for _, options in inputs], self.digits)


def make(archive: Archive) -> TextTask:
    """Return the task of an archive."""
    return Embeddings(archive.settings.pooling, encodings.DIGITS[archive.precision])


def encoded(embeddings: torch.Tensor, options: Sequence[Mapping[str, Any]], digits: int) -> list[object]:
    """Return one answer per embedding: an array of numbers, base64, or NotFinite.

    Args:
        embeddings: (N, hidden) fp32.
        options: of each embedding's request, by encodings.OPTIONS.
        digits: significant decimal digits of a number in JSON.
    """
    finite = embeddings.isfinite().all(dim=1)
    wanted = [chosen.get("encoding_format", "float") for chosen in options]
    if "float" in wanted:
        as_numbers = torch.tensor([encoding == "float" for encoding in wanted], device=embeddings.device)
        rounded = significant(embeddings, digits)
        embeddings = torch.where(as_numbers.unsqueeze(1), rounded, embeddings)
    halved = torch.tensor([chosen.get("dtype") == "float16" for chosen in options], device=finite.device)
    finite &= ~halved | embeddings.half().isfinite().all(dim=1)  # float16 ends at 65,504
    rows = zip(embeddings.cpu().numpy(), finite.tolist(), options, strict=True)
    return [_encoded(row, chosen) if good else NotFinite() for row, good, chosen in rows]


def _encoded(row: Any, options: Mapping[str, Any]) -> object:
    return encodings.as_base64(row, options) if options.get("encoding_format") == "base64" else row
