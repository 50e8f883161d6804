"""The task "embeddings": one vector per text, pooled and normalised as the checkpoint says."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from transformers import AutoConfig

from handlers.encoder.packing import TokenBatch
from handlers.protocol import encodings
from handlers.protocol.errors import NotFinite, PayloadTooLarge
from handlers.protocol.options import OptionReader, yes_or_no
from handlers.tasks.shared.embeddings import encoded as encoded_answers
from handlers.tasks.shared.embeddings import significant
from handlers.tasks.shared.head import Head
from handlers.tasks.shared.pooling import Pooling
from handlers.tasks.shared.task import Archive, Input, TextTask
from handlers.texts.tokenization import Encoded

HEAD = Head("AutoModel", ("Model",), output="last_hidden_state", rows="token")
OPTIONS = (*encodings.OPTIONS, "normalize", "dimensions")
TOKEN_VECTORS = encodings.TOKEN_VECTORS
MAX_TOKEN_VECTOR_BYTES = 8 << 20  # of one request's answer in JSON: a quarter of max_response_size
BYTES_PER_NUMBER = 15  # nine digits, a sign, "0.", two zeros, a comma


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
        hidden: numbers of a token vector; 0 if it is not known, and then no request may ask for fewer numbers.
        dimensions: shorter embeddings that the checkpoint was trained for (Matryoshka). A request may ask for the
            first numbers of an embedding, so many.
    """

    media_types = encodings.MEDIA_TYPES

    def __init__(
        self,
        pooling: Pooling,
        digits: int = encodings.DIGITS["fp32"],
        hidden: int = 0,
        dimensions: Sequence[int] = (),
    ) -> None:
        self.pooling, self.digits, self.hidden = pooling, digits, hidden
        self.raw_pooling = dataclasses.replace(pooling, normalize=False)
        whole = hidden * len(pooling.modes)
        if any(length > whole for length in dimensions):
            raise ValueError(
                f"dimensions is {list(dimensions)}, and the checkpoint's embeddings have {whole} numbers"
            )
        self.options = {**encodings.OPTIONS, "normalize": yes_or_no, "dimensions": _length(whole, dimensions)}

    def comparable(self, outputs: torch.Tensor, batch: TokenBatch) -> torch.Tensor:
        return pool(outputs, batch.cu_seqlens, self.pooling)

    def check_request(self, encoded: Sequence[Encoded], options: Mapping[str, Any]) -> None:
        """Raises PayloadTooLarge if the token vectors that a request asks for are too many bytes."""
        tokens = sum(len(item.ids) for item in encoded)
        if options.get(TOKEN_VECTORS) and (size := tokens * self.hidden * BYTES_PER_NUMBER) > MAX_TOKEN_VECTOR_BYTES:
            raise PayloadTooLarge(
                f"the vectors of {tokens} tokens are up to {size / 1e6:.0f} MB of JSON; at most "
                f"{MAX_TOKEN_VECTOR_BYTES / 1e6:.0f} MB are sent for one request"
            )

    def answer(self, outputs: torch.Tensor, batch: TokenBatch, inputs: Sequence[Input]) -> list[object]:
        embeddings = self._shaped(outputs, batch, inputs)  # (N, hidden)
        answers = encoded_answers(embeddings, [options for _, options in inputs], self.digits)
        for index, (_, options) in enumerate(inputs):
            if options.get(TOKEN_VECTORS):
                answers[index] = self._token_vectors(outputs, batch, index)
        return answers

    def _shaped(self, outputs: torch.Tensor, batch: TokenBatch, inputs: Sequence[Input]) -> torch.Tensor:
        """Return the embeddings, (N, hidden), with zeros behind those that a request wants shorter."""
        embeddings = pool(outputs, batch.cu_seqlens, self.raw_pooling)
        lengths = [options.get("dimensions", embeddings.shape[1]) for _, options in inputs]
        if min(lengths) < embeddings.shape[1]:
            columns = torch.arange(embeddings.shape[1], device=embeddings.device)
            kept = columns < torch.tensor(lengths, device=embeddings.device).unsqueeze(1)  # (N, hidden)
            embeddings = torch.where(kept, embeddings, 0)
        wanted = [bool(options.get("normalize", self.pooling.normalize)) for _, options in inputs]
        if not any(wanted):
            return embeddings
        unit = F.normalize(embeddings, dim=1)
        if all(wanted):
            return unit
        is_unit = torch.tensor(wanted, device=embeddings.device).unsqueeze(1)  # (N, 1)
        return torch.where(is_unit, unit, embeddings)

    def _token_vectors(self, outputs: torch.Tensor, batch: TokenBatch, index: int) -> object:
        """Return the vectors of one text's tokens, (T, hidden), or NotFinite."""
        start, end = batch.cu_seqlens[index : index + 2].tolist()
        vectors = outputs[start:end].float()
        return significant(vectors, self.digits).cpu().numpy() if bool(vectors.isfinite().all()) else NotFinite()


def make(archive: Archive) -> TextTask:
    """Return the task of an archive."""
    hidden = AutoConfig.from_pretrained(archive.folder).hidden_size  # under whatever name the family has it
    settings = archive.settings
    return Embeddings(settings.pooling, encodings.DIGITS[archive.precision], hidden, settings.dimensions)


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
