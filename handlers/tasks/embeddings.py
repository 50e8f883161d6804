"""The task "embeddings": one vector per text, pooled and normalised as the checkpoint says."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from handlers.encoder.packing import TokenBatch
from handlers.protocol import encodings
from handlers.protocol.errors import NotFinite, PayloadTooLarge
from handlers.protocol.options import OptionReader, yes_or_no
from handlers.tasks.shared import embedding_head, embeddings
from handlers.tasks.shared.embedding_head import EmbeddingHead
from handlers.tasks.shared.embeddings import significant
from handlers.tasks.shared.head import Head
from handlers.tasks.shared.pooling import Pooling
from handlers.tasks.shared.task import Answers, Archive, Input, TextTask
from handlers.texts.tokenization import Encoded
from handlers.transfers import Download, upload

HEAD = Head("AutoModel", ("Model",), output="last_hidden_state", rows="token")
OPTIONS = (*encodings.OPTIONS, "normalize", "dimensions")
TOKEN_VECTORS = encodings.TOKEN_VECTORS
MAX_TOKEN_VECTOR_BYTES = 8 << 20  # of one request's answer in JSON: a quarter of max_response_size
BYTES_PER_NUMBER = 15  # nine digits, a sign, "0.", two zeros, a comma


def pool(
    vectors: torch.Tensor, cu_seqlens: torch.Tensor, pooling: Pooling, left_out: Sequence[int] = ()
) -> torch.Tensor:
    """Return one embedding per text: (N, len(modes) * hidden), fp32.

    Args:
        vectors: (T, hidden) packed token vectors, of any dtype. Tokens that the tokenizer added count.
        cu_seqlens: (N + 1,) int32, where each text begins in `vectors`; the last is T.
        pooling: modes of sentence_transformers.models.Pooling, concatenated in their order.
        left_out: (N,) tokens at the beginning of each text that are not pooled, less than the text has; or none.
    """
    vectors = vectors.float()
    offsets = cu_seqlens.long()  # (N + 1,)
    starts = offsets[:-1]
    if any(left_out):
        vectors, offsets, starts = _without_beginnings(vectors, offsets, left_out)
    found = torch.cat([_pool_one(vectors, offsets, starts, mode) for mode in pooling.modes], dim=1)
    return F.normalize(found, dim=1) if pooling.normalize else found


def _without_beginnings(
    vectors: torch.Tensor, offsets: torch.Tensor, left_out: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the vectors that are pooled, and where each text begins in them: with and without its beginning.

    Args:
        left_out: (N,), how many vectors of each text are dropped.
    """
    dropped, kept = upload(left_out, offsets.device), len(vectors) - sum(left_out)
    lengths = offsets.diff() - dropped  # (N,), of what is left
    # A mask would be simpler, but selecting by it waits for the GPU: only that knows how many are left.
    skipped = torch.repeat_interleave(dropped.cumsum(0), lengths, output_size=kept)  # (kept,)
    shorter = F.pad(lengths.cumsum(0), (1, 0))
    return vectors[torch.arange(kept, device=vectors.device) + skipped], shorter, shorter[:-1] - dropped


def _pool_one(vectors: torch.Tensor, offsets: torch.Tensor, starts: torch.Tensor, mode: str) -> torch.Tensor:
    """Return (N, hidden). starts: (N,), where position 1 of each text is, which "weightedmean" counts from."""
    if mode == "cls":
        return vectors[offsets[:-1]]
    if mode == "lasttoken":
        return vectors[offsets[1:] - 1]
    if mode in ("mean", "max"):
        return torch.segment_reduce(vectors, mode, offsets=offsets)
    lengths = offsets.diff()  # (N,)
    if mode == "mean_sqrt_len_tokens":
        return torch.segment_reduce(vectors, "sum", offsets=offsets) / lengths.sqrt().unsqueeze(1)
    origins = torch.repeat_interleave(starts, lengths, output_size=len(vectors))
    weights = (torch.arange(1, len(vectors) + 1, device=vectors.device) - origins).float().unsqueeze(1)  # (T, 1)
    sums = torch.segment_reduce(vectors * weights, "sum", offsets=offsets)
    return sums / torch.segment_reduce(weights, "sum", offsets=offsets)


class Embeddings(TextTask):
    """Answers with one embedding per text: numbers, base64, or exact values for bytes (protocol/encodings.py).

    Args:
        digits: significant decimal digits of a number in JSON.
        hidden: numbers of a token vector; 0 if it is not known, and then no request may ask for fewer numbers.
        dimensions: shorter embeddings that the checkpoint was trained for (Matryoshka). A request may ask for the
            first numbers of an embedding, so many.
        head: modules between pooling and the embedding; None if there are none.
        truncate_dim: numbers of an embedding unless a request asks for others; 0 for all.
    """

    media_types = encodings.MEDIA_TYPES
    reads_offsets = False

    def __init__(
        self,
        pooling: Pooling,
        digits: int = encodings.DIGITS["fp32"],
        hidden: int = 0,
        dimensions: Sequence[int] = (),
        head: EmbeddingHead | None = None,
        truncate_dim: int = 0,
    ) -> None:
        self.pooling, self.digits, self.hidden, self.head = pooling, digits, hidden, head
        self.raw_pooling = dataclasses.replace(pooling, normalize=False)
        pooled = hidden * len(pooling.modes)
        if head and head.size_in != pooled:
            raise ValueError(f"{head.steps[0]} follows a pooling that gives {pooled} numbers")
        whole = head.size_out if head else pooled
        self.truncate_dim = truncate_dim if truncate_dim < whole else 0
        shorter = sorted({*dimensions, self.truncate_dim} - {0, whole})
        if any(length > whole for length in shorter):
            raise ValueError(f"dimensions are {shorter}, and the checkpoint's embeddings have {whole} numbers")
        self.options = {**encodings.OPTIONS, "normalize": yes_or_no, "dimensions": _length(whole, shorter)}
        self.details = {"embedding": self._details(whole, shorter)}

    def _details(self, whole: int, shorter: Sequence[int]) -> dict[str, object]:
        """Return what the model's description says of the embeddings."""
        found: dict[str, object] = {
            "dimensions": self.truncate_dim or whole,
            "alsoDimensions": [length for length in (*shorter, whole) if length != (self.truncate_dim or whole)],
            "pooling": list(self.pooling.modes),
            "includePrompt": self.pooling.include_prompt,
            "normalized": self.pooling.normalize,
        }
        if self.head:
            steps = [str(step) for step in self.head.steps]
            found["head"] = {"modules": steps, "runs": "behind the engine, in PyTorch in fp32"}
        return found

    def comparable(self, outputs: torch.Tensor, batch: TokenBatch) -> torch.Tensor:
        return self.compared(outputs, batch, ())

    def compared(self, outputs: torch.Tensor, batch: TokenBatch, encoded: Sequence[Encoded]) -> torch.Tensor:
        found = self._embeddings(outputs, batch, encoded)
        return F.normalize(found, dim=1) if self.pooling.normalize else found

    def _embeddings(self, outputs: torch.Tensor, batch: TokenBatch, encoded: Sequence[Encoded]) -> torch.Tensor:
        """Return whole embeddings, (N, whole) fp32, before they are normalised."""
        left_out = () if self.pooling.include_prompt else [item.left_out for item in encoded]
        pooled = pool(outputs, batch.cu_seqlens, self.raw_pooling, left_out)
        return self.head(pooled) if self.head else pooled

    def check_request(self, encoded: Sequence[Encoded], options: Mapping[str, Any]) -> None:
        """Raises PayloadTooLarge if the token vectors that a request asks for are too many bytes."""
        tokens = sum(len(item.ids) for item in encoded)
        if options.get(TOKEN_VECTORS) and (size := tokens * self.hidden * BYTES_PER_NUMBER) > MAX_TOKEN_VECTOR_BYTES:
            raise PayloadTooLarge(
                f"the vectors of {tokens} tokens are up to {size / 1e6:.0f} MB of JSON; at most "
                f"{MAX_TOKEN_VECTOR_BYTES / 1e6:.0f} MB are sent for one request"
            )

    def begin(self, outputs: torch.Tensor, batch: TokenBatch, inputs: Sequence[Input]) -> Answers:
        if self.truncate_dim:
            inputs = [(encoded, {"dimensions": self.truncate_dim, **options}) for encoded, options in inputs]
        shaped = self._shaped(outputs, batch, inputs)  # (N, whole)
        pooled = embeddings.begin(shaped, [options for _, options in inputs], self.digits)
        by_token = self._begin_token_vectors(outputs, batch, inputs)

        def answers() -> list[object]:
            found = pooled()
            for index, download in by_token.items():
                (vectors,) = download.arrays()  # (T, hidden)
                found[index] = vectors if np.isfinite(vectors).all() else NotFinite()
            return found

        return answers

    def _shaped(self, outputs: torch.Tensor, batch: TokenBatch, inputs: Sequence[Input]) -> torch.Tensor:
        """Return the embeddings, (N, whole), with zeros behind those that are to be shorter.

        The order is that of sentence-transformers' `encode`: the checkpoint's own normalisation, unless the request
        says otherwise; the cut; the normalisation that the request asks for.
        """
        found = self._embeddings(outputs, batch, [encoded for encoded, _ in inputs])
        asked = [options.get("normalize") for _, options in inputs]
        if self.pooling.normalize:
            found = _normalized(found, [wish is None for wish in asked])
        found = _cut(found, [options.get("dimensions", found.shape[1]) for _, options in inputs])
        return _normalized(found, [wish is True for wish in asked])

    def _begin_token_vectors(
        self, outputs: torch.Tensor, batch: TokenBatch, inputs: Sequence[Input]
    ) -> dict[int, Download]:
        """Start the download of the vectors of tokens that requests ask for, by the text's index."""
        ends = list(accumulate(batch.lengths, initial=0))
        return {
            index: Download(significant(outputs[ends[index] : ends[index + 1]].float(), self.digits))
            for index, (_, options) in enumerate(inputs)
            if options.get(TOKEN_VECTORS)
        }


def _normalized(vectors: torch.Tensor, chosen: Sequence[bool]) -> torch.Tensor:
    """Return the embeddings, (N, K), with the chosen rows scaled to length 1."""
    if not any(chosen):
        return vectors
    unit = F.normalize(vectors, dim=1)
    return unit if all(chosen) else torch.where(upload(chosen, vectors.device).unsqueeze(1), unit, vectors)


def _cut(vectors: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
    """Return the embeddings, (N, K), with zeros behind the first `lengths` numbers of each row."""
    if min(lengths) >= vectors.shape[1]:
        return vectors
    columns = torch.arange(vectors.shape[1], device=vectors.device)
    return torch.where(columns < upload(lengths, vectors.device).unsqueeze(1), vectors, 0)


def make(archive: Archive) -> TextTask:
    """Return the task of an archive."""
    hidden = _hidden_size(archive)
    settings = archive.settings
    return Embeddings(
        settings.pooling,
        encodings.DIGITS[archive.precision],
        hidden,
        settings.dimensions,
        embedding_head.read(archive.folder),
        settings.truncate_dim,
    )


def _hidden_size(archive: Archive) -> int:
    """Return the length of a token's vector, under whatever name the family has it."""
    plain = archive.config.get("hidden_size")
    if type(plain) is int:
        return plain
    from transformers import AutoConfig  # slow to import, and few families need it

    return int(AutoConfig.from_pretrained(archive.folder).hidden_size)


def _length(whole: int, trained: Sequence[int]) -> OptionReader:
    """An option that takes the length of an embedding: the whole, or one that the checkpoint was trained for."""
    known = sorted({*trained, whole} - {0})

    def read(value: object) -> int:
        text = value if isinstance(value, str) else str(value) if type(value) is int else ""
        if text not in map(str, known):
            names = ", ".join(map(str, known))
            why = "" if trained else ": the checkpoint was not trained for shorter embeddings"
            raise ValueError(f"wanted: {names}{why}")
        return int(text)

    return read
