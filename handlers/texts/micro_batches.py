"""Sorts inputs by length and cuts them into batches by a budget of tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence


def micro_batches(lengths: Sequence[int], token_budget: int, pads: bool) -> Iterator[list[int]]:
    """Indices of inputs that run together, the longest first.

    Sorting keeps padding small. An engine without padding gains too, because its attention is evenly loaded.

    Args:
        lengths: tokens of each input.
        token_budget: tokens of one batch, at most; an input with more runs alone.
        pads: whether the engine pads to the longest input, so that padding counts.
    """
    batch: list[int] = []
    tokens = 0
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        tokens += lengths[batch[0]] if batch and pads else lengths[index]
        if batch and tokens > token_budget:
            yield batch
            batch, tokens = [], lengths[index]
        batch.append(index)
    if batch:
        yield batch
