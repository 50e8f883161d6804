"""Cuts tokens to the model's maximum as transformers' `truncation=True` does: the longest first.

The tokenizers library would cut too, but it makes encodings of all that it cuts off, and for a pair in every
combination: 26 seconds and 9 GB for two texts of 40,000 characters each and 64 tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import tokenizers

from handlers.texts.network_inputs import tokenizer_config

T = TypeVar("T")


@dataclass(frozen=True)
class Truncated:
    """The tokens that are left of a tokenizers.Encoding; its attributes have the same names."""

    ids: list[int]
    type_ids: list[int]
    offsets: list[tuple[int, int]]
    special_tokens_mask: list[int]


def truncation_side(folder: Path, tokenizer: tokenizers.Tokenizer) -> str:
    """The side that is cut, "left" or "right": by tokenizer_config.json, else by tokenizer.json, else "right".

    This is the order in which transformers looks. Raises ValueError for another side.
    """
    own = tokenizer.truncation or {}
    side = tokenizer_config(folder).get("truncation_side") or own.get("direction", "right")
    if side not in ("left", "right"):
        raise ValueError(f"tokenizer_config.json: truncation_side is {side!r}; wanted: left or right")
    return str(side)


def truncated(
    encoding: tokenizers.Encoding, max_tokens: int, from_left: bool, only_first: bool = False
) -> Truncated | None:
    """Return the encoding cut to max_tokens; None if the tokens that are kept whole leave no room for text."""
    indices = kept_indices(encoding.sequence_ids, max_tokens, from_left, only_first)
    if indices is None:
        return None

    def kept(values: Sequence[T]) -> list[T]:
        return [values[index] for index in indices]

    return Truncated(
        kept(encoding.ids), kept(encoding.type_ids), kept(encoding.offsets), kept(encoding.special_tokens_mask)
    )


def kept_indices(
    sequences: Sequence[int | None], max_tokens: int, from_left: bool, only_first: bool = False
) -> list[int] | None:
    """Return indices of the tokens that transformers' truncation=True keeps; None if there is no room for text.

    Args:
        sequences: per token, 0 for the text, 1 for its pair, None for what the tokenizer added and is always kept.
        max_tokens: to keep.
        from_left: whether tokens are cut off on the left.
        only_first: keep the pair whole, as transformers' truncation="only_first" does.
    """
    indices = [[index for index, sequence in enumerate(sequences) if sequence == number] for number in (0, 1)]
    lengths = [len(own) for own in indices]
    room = max_tokens - (len(sequences) - sum(lengths))
    if room < 1 + lengths[1] * only_first:
        return None
    kept = {index for index, sequence in enumerate(sequences) if sequence is None}
    counts = (room - lengths[1], lengths[1]) if only_first else _longest_first(lengths[0], lengths[1], room)
    for own, count in zip(indices, counts, strict=True):
        kept.update(own[len(own) - count :] if from_left else own[:count])
    return sorted(kept)


def _longest_first(first: int, second: int, room: int) -> tuple[int, int]:
    """Tokens to keep of a text and of its pair: the longer one is cut to the shorter, then both to half of the room.

    Source: the strategy longest_first of the library tokenizers.
    """
    if first + second <= room:
        return first, second
    shorter, longer = sorted((first, second))
    longer = max(shorter, room - shorter)
    if shorter + longer > room:
        shorter, longer = room // 2, room - room // 2
    return (longer, shorter) if first > second else (shorter, longer)
