"""Logits of tokens -> one sparse embedding per text, a few texts at a time.

All logits of a batch would be large: 16,384 tokens with a vocabulary of 30,522 are 2 GB in fp32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch

from handlers.encoder.packing import TokenBatch
from handlers.tasks.shared.sparse_pooling import SparsePooling

LOGITS = 1 << 25  # that are computed at once; 134 MB in fp32
EMBEDDINGS = 1 << 27  # tokens of a batch times the vocabulary; texts of 3 tokens then give 180 MB of embeddings


def per_text(
    logits_of: Callable[[TokenBatch, slice], torch.Tensor], batch: TokenBatch, vocabulary: int, pooling: SparsePooling
) -> torch.Tensor:
    """Return one embedding per text: (N, vocabulary) fp32. A text with a logit that is not finite is all NaN.

    Args:
        logits_of: returns the logits (t, vocabulary) of a part of the batch, for that part's t tokens.
        batch: N texts.
        vocabulary: logits of a token.
        pooling: how they become an embedding.
    """
    embeddings: list[torch.Tensor] = []
    for part, tokens in parts(batch, max(1, LOGITS // vocabulary)):
        logits = logits_of(part, tokens)
        embeddings += [pooled(own, pooling) for own in logits.split(list(part.lengths))]
    return torch.stack(embeddings)


def pooled(logits: torch.Tensor, pooling: SparsePooling) -> torch.Tensor:
    """Return the embedding of one text, (vocabulary,) fp32, from its logits (t, vocabulary).

    The activation grows with its argument, so for "max" only the largest logit of each token of the vocabulary needs
    it. Source: sentence-transformers 6.2, SpladePooling.
    """
    least, largest = logits.aminmax(dim=0)
    if pooling.strategy == "max":
        embedding = activated(largest.float(), pooling.activation)
    else:
        embedding = activated(logits.float(), pooling.activation).sum(dim=0)
    # An overflow below zero would look like a zero after relu.
    return torch.where(least.isfinite().all() & largest.isfinite().all(), embedding, torch.nan)


def activated(logits: torch.Tensor, activation: str) -> torch.Tensor:
    """Return log(1 + relu(x)) of each logit, or log(1 + log(1 + relu(x)))."""
    once = logits.relu().log1p()
    return once.log1p() if activation == "log1p_relu" else once


def parts(batch: TokenBatch, most: int) -> Iterator[tuple[TokenBatch, slice]]:
    """Yield consecutive texts of at most `most` tokens together, and where these tokens are in the batch.

    A text with more tokens comes alone.
    """
    start = first = 0
    for index, lengths in _cut(batch.lengths, most):
        end = start + sum(lengths)
        offsets = batch.cu_seqlens[first : index + 1] - start
        tokens = slice(start, end)
        yield TokenBatch(batch.input_ids[tokens], batch.token_type_ids[tokens], offsets, tuple(lengths)), tokens
        start, first = end, index


def token_budget(usual: int, vocabulary: int) -> int:
    """Return the tokens of one run, so that embeddings of very short texts do not fill the memory."""
    return max(1, min(usual, EMBEDDINGS // vocabulary))


def _cut(lengths: Sequence[int], most: int) -> Iterator[tuple[int, list[int]]]:
    """Yield groups of consecutive lengths, of at most `most` together, each with the index behind it."""
    group: list[int] = []
    for index, length in enumerate(lengths):
        if group and sum(group) + length > most:
            yield index, group
            group = []
        group.append(length)
    yield len(lengths), group
